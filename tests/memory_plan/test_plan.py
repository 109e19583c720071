"""Plans against what C allocates, and what is decided by them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.children import Child
from support.sparse_gguf import KINDS, write_sparse

from llama_cffi import (
    Engine,
    InferenceEngine,
    Llama,
    LlamaConfig,
    LlamaPool,
    Model,
    ModelLoadError,
    OutOfMemoryError,
    UnknownOptionError,
    ValidationError,
    child_process,
    plan,
)
from llama_cffi.binding import Context, Device
from llama_cffi.binding.memory_lines import parse_lines
from llama_cffi.cli import main
from llama_cffi.memory_plan import estimate, options_of
from llama_cffi.memory_plan import planner as planner_module
from llama_cffi.memory_plan.planner import Planner
from llama_cffi.system_memory import SystemMemory, system_memory

_MIB = 2**20
_WEIGHTS = re.compile(r"(\S+) model buffer size = +([\d.]+) MiB")
# Context size of each answer and answers together.
_SETTINGS = ((4096, 1), (1024, 3))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model of each kind of memory."""
    folder = tmp_path_factory.mktemp("sparse")
    return {kind: write_sparse(folder / f"{kind}.gguf", kind) for kind in KINDS}


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the free RAM in bytes, as a cgroup that limits it."""

    def set_free(n_bytes: int) -> None:
        ram = SystemMemory(n_bytes, n_bytes, "cgroup", 0)
        monkeypatch.setattr(planner_module, "system_memory", lambda: ram)

    return set_free


def _real(path: Path, n_ctx: int, n_parallel: int, **options: Any) -> dict[str, int]:
    """Load the model as the engines do, and return the sizes of the buffers that C logs."""
    from llama_cffi.binding import get_library

    logs = get_library().logs
    sizes_of = {"n_ctx": n_ctx * n_parallel, "n_seq_max": n_parallel, "n_threads": 1}
    with (
        logs.capture(logging.DEBUG) as loading,
        Model(path, use_mmap=False) as model,  # a mapped range may span what is copied elsewhere
        logs.capture(logging.DEBUG) as lines,
        Context(model, **sizes_of, **options),
    ):
        pass
    found = parse_lines(lines).buffers
    sizes = {kind: sum(n for (k, _), n in found.items() if k == kind) for kind, _ in found}
    weights = [float(m[2]) for line in loading if (m := _WEIGHTS.search(line))]
    return {**sizes, "weights": round(sum(weights) * _MIB)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_is_what_c_allocates(kind: str, models: dict[str, Path]) -> None:
    path = models[kind]
    with Planner(path, {}) as exact, Planner(path, {}, measures=False) as formulae:
        for n_ctx, n_parallel in _SETTINGS:
            real = _real(path, n_ctx, n_parallel)
            measured = exact.sizes(n_ctx, n_parallel, 0)
            assert measured.exact, exact.notes
            for name, key in (
                ("compute", "compute"), ("kv", "KV"), ("recurrent", "RS"), ("weights", "weights"),
            ):  # fmt: skip
                size = sum(getattr(measured, name).values())
                assert size == pytest.approx(real.get(key, 0), rel=0.02, abs=0.02 * _MIB), name
            estimated = formulae.sizes(n_ctx, n_parallel, 0)
            assert not estimated.exact
            names = ("compute", "kv", "recurrent", "weights", "output")
            total = sum(sum(getattr(estimated, name).values()) for name in names)
            assert total == pytest.approx(sum(real.values()), rel=0.1), estimated


def test_types_of_the_cache_and_flash_attention(models: dict[str, Path]) -> None:
    options: dict[str, Any] = {"type_k": "q8_0", "type_v": "q4_0"}
    real = _real(models["gqa"], 4096, 1, **options)
    found = plan(models["gqa"], n_ctx=4096, **options).devices[0]
    assert found.kv_bytes == pytest.approx(real["KV"], rel=0.02)
    assert found.compute_bytes == pytest.approx(real["compute"], rel=0.02)
    with Planner(models["gqa"], options, measures=False) as formulae:
        assert sum(formulae.sizes(4096, 1, 0).kv.values()) == pytest.approx(real["KV"], rel=0.02)
    off = _real(models["gqa"], 4096, 1, flash_attn=False)
    with Planner(models["gqa"], {"flash_attn": False}, measures=False) as formulae:
        compute = sum(formulae.sizes(4096, 1, 0).compute.values())
    assert compute == pytest.approx(off["compute"], rel=0.1)


def test_the_process_takes_what_was_planned(models: dict[str, Path], child: Child) -> None:
    result = child(
        """
        import sys
        from llama_cffi import Context, Model

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096

        with Model(sys.argv[1], vocab_only=True):
            pass
        before = resident()
        with Model(sys.argv[1]) as model, Context(model, n_ctx=16384, n_threads=1):
            print(resident() - before)
        """,
        models["dense"],
    )
    grown = int(result.stdout)
    (ram,) = plan(models["dense"], n_ctx=16384).devices
    # The cache is cleared; weights and compute buffers are only touched when they are used.
    assert ram.kv_bytes * 0.98 < grown < ram.total_bytes * 1.02


def test_a_plan_can_be_read_and_written_as_json(models: dict[str, Path]) -> None:
    found = plan(models["swa"], n_ctx=2048, n_parallel=2, swa_full=False)
    text = str(found)
    for word in ("weights", "KV cache", "compute", "output", "total", "free", "It fits"):
        assert word in text
    assert "n_ctx 2,048 (trained for 32,768), n_parallel 2" in text
    assert max(map(len, text.splitlines())) < 160
    data = json.loads(json.dumps(found.to_dict()))
    assert data["fits"] is True
    assert data["devices"][0]["total_bytes"] == found.total_bytes
    assert data["total_bytes"] == sum(d["total_bytes"] for d in data["devices"])


def test_the_settings_of_a_config_are_planned(models: dict[str, Path]) -> None:
    config = LlamaConfig(n_ctx=512, n_parallel=4, type_k="q8_0", n_ubatch=128)
    found = plan(models["gqa"], config)
    assert (found.n_ctx, found.n_parallel) == (512, 4)
    assert found.settings["type_k"] == "q8_0"
    assert options_of(config)["n_parallel"] == 4


def test_weights_of_a_loaded_model_are_not_needed_again(models: dict[str, Path]) -> None:
    with Model(models["dense"]) as model:
        (ram,) = estimate(model, {"n_ctx": 512})[0].devices
    assert ram.weights_bytes > 40 * _MIB
    assert ram.needed_bytes == ram.total_bytes - ram.weights_bytes - ram.other_bytes


def test_what_is_loaded_beside_the_model_counts(models: dict[str, Path]) -> None:
    options: dict[str, Any] = {"n_ctx": 512}
    alone = estimate(models["dense"], options)[0].devices[0]
    both = estimate(models["dense"], {**options, "draft": str(models["gqa"])})[0].devices[0]
    draft = estimate(models["gqa"], options)[0].devices[0]
    assert alone.draft_bytes == 0
    assert both.draft_bytes == draft.total_bytes
    assert both.total_bytes == alone.total_bytes + both.draft_bytes


def test_the_largest_settings_fit_and_no_larger_ones(
    models: dict[str, Path], free: Callable[[int], None]
) -> None:
    free(300 * _MIB)
    with Planner(models["dense"], {"n_ctx": 1024}) as planner:
        found = planner.plan()
        other = found.total_bytes - _total(planner, 1024, 1)
        most = 300 * _MIB * 9 // 10 - other  # a tenth stays free
        assert found.fits
        assert 1024 < found.max_n_ctx < 32768
        assert (
            _total(planner, found.max_n_ctx, 1) <= most < _total(planner, found.max_n_ctx + 256, 1)
        )
        n = found.max_n_parallel
        assert 1 < n < 256
        assert _total(planner, 1024, n) <= most < _total(planner, 1024, n + 1)


def _total(planner: Planner, n_ctx: int, n_parallel: int) -> int:
    sizes = planner.sizes(n_ctx, n_parallel, 0)
    assert sizes.exact
    names = ("weights", "kv", "recurrent", "compute", "output")
    return sum(sum(getattr(sizes, name).values()) for name in names)


def test_a_plan_that_does_not_fit_says_by_how_much(
    models: dict[str, Path], free: Callable[[int], None]
) -> None:
    free(100 * _MIB)
    found = plan(models["dense"], n_ctx=16384)
    assert not found.fits
    assert found.missing_bytes == found.total_bytes - 100 * _MIB
    assert re.search(
        r"It does not fit: it lacks \d+ MiB of RAM \(\d+ MiB needed, 100 MiB free", str(found)
    )


def test_auto_chooses_the_context_by_the_free_memory(
    models: dict[str, Path], free: Callable[[int], None]
) -> None:
    free(300 * _MIB)
    most = plan(models["dense"], n_ctx="auto").n_ctx
    assert 4096 < most < 32768
    with Llama(models["dense"], n_ctx="auto", n_gpu_layers="auto", n_ubatch=512) as llm:
        assert llm.n_ctx == most
        assert llm.config.n_ctx == most
    with Engine(models["dense"], n_ctx="auto", n_gpu_layers="auto") as engine:
        assert engine.n_ctx == most
    with InferenceEngine(models["dense"], 2, n_ctx="auto", start=False) as batched:
        assert 4096 <= batched.n_ctx < most


def test_what_cannot_fit_is_refused_with_numbers(
    models: dict[str, Path], free: Callable[[int], None], tmp_path: Path
) -> None:
    """A cgroup of 512 MiB: the process would be killed."""
    free(512 * _MIB)
    large: dict[str, Any] = {"n_ctx": 32768, "n_parallel": 2}
    message = r"needs \d+ MiB of RAM \(KV cache 768 MiB, compute .*its cgroup has 512 MiB free"
    with pytest.raises(OutOfMemoryError, match=message):
        Llama(models["dense"], **large)
    with pytest.raises(OutOfMemoryError, match="check_memory=False"):
        LlamaPool(models["dense"], 2, n_ctx=32768, n_gpu_layers=0)
    with pytest.raises(OutOfMemoryError, match="its cgroup has 512 MiB free"):
        Engine(models["dense"], n_ctx=65536)
    heavy = write_sparse(tmp_path / "heavy.gguf", n_layer=12, n_embd=2048, n_head=16, n_ff=5632)
    with pytest.raises(OutOfMemoryError, match=r"weights .*1\.\d GiB.* 512 MiB"):
        Llama(heavy)


def test_the_files_of_a_cgroup_end_in_one_sentence_of_the_command_line(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {
        "proc/meminfo": "MemTotal: 4096000 kB\nMemAvailable: 4000000 kB\nSwapFree: 0 kB\n",
        "proc/self/cgroup": "0::/box\n",
        "sys/fs/cgroup/box/memory.max": f"{512 * _MIB}\n",
        "sys/fs/cgroup/box/memory.current": f"{100 * _MIB}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(planner_module, "system_memory", lambda: system_memory(tmp_path))
    for command in (["generate", "-n", "1", "hi"], ["decide", "--predicate", "It is.", "hi"]):
        assert main([*command, "-m", str(models["dense"]), "-c", "65536"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert re.search(r"^error: .* needs \d+ MiB of RAM .*its cgroup has 412 MiB free", err)


def test_absurd_sizes_are_refused_without_a_measurement(models: dict[str, Path]) -> None:
    """C keeps books about each token while it measures, too."""
    with pytest.raises(OutOfMemoryError, match=r"needs [\d,.]+ GiB of RAM \(KV cache"):
        Llama(models["dense"], n_ctx=2**31 - 1)
    with pytest.raises(ValidationError, match="n_ctx"):
        Llama(models["dense"], n_ctx=2**32)


def test_mapped_weights_are_a_warning_and_no_refusal(
    models: dict[str, Path], free: Callable[[int], None]
) -> None:
    free(60 * _MIB)  # the weights take 47
    with pytest.warns(UserWarning, match="does not fit: it lacks"):
        Llama(models["dense"], n_ctx=256).close()
    free(10 * _MIB)
    with Llama(models["dense"], n_ctx=256, check_memory=False) as llm:
        assert llm.n_ctx == 256


def test_layers_are_planned_on_gpus(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By formulae, with a GPU that does not exist."""
    gpu = Device("CUDA0", "a GPU", "gpu", 60 * _MIB, 80 * _MIB)
    monkeypatch.setattr(Planner, "_usable_devices", lambda _: {"CUDA0": gpu})
    with Planner(models["dense"], {"n_ctx": 512}, measures=False) as planner:
        found = planner.plan()
    ram, device = found.devices
    assert (found.n_gpu_layers, found.n_layer) == (7, 7)
    assert device.weights_bytes > 40 * _MIB
    assert ram.weights_bytes == 4096 * 512 * 2  # the embeddings
    assert not found.fits
    assert "of CUDA0" in found.verdict
    assert 0 < found.max_n_gpu_layers < 7
    with Planner(
        models["dense"], {"n_ctx": 512, "n_gpu_layers": "auto"}, measures=False
    ) as planner:
        chosen = planner.plan()
    assert chosen.n_gpu_layers == found.max_n_gpu_layers
    assert chosen.fits


def test_without_a_measurement_formulae_are_used(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        child_process, "child_command", lambda *_: ["python-that-does-not-exist", "-c", ""]
    )
    found = plan(models["dense"])
    assert not found.exact
    assert "no child process could be started" in str(found)
    assert "estimated" in str(found)


def test_wrong_arguments_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    path: Any = models["dense"]
    with pytest.raises(UnknownOptionError, match="n_parallel"):
        plan(path, n_paralel=2)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="q8_0"):
        plan(path, type_k="q8")
    with pytest.raises(ValidationError, match="n_ctx"):
        plan(path, n_ctx="much")  # type: ignore[typeddict-item]
    with pytest.raises(ValidationError, match="n_parallel"):
        plan(path, n_parallel=0)
    with pytest.raises(ValidationError, match="flash_attn"):
        plan(path, type_v="q8_0", flash_attn=False)
    with pytest.raises(ModelLoadError, match="missing"):
        plan(tmp_path / "missing.gguf")
    with pytest.raises(ValidationError, match="auto"):
        LlamaConfig(n_ctx="all")  # type: ignore[arg-type]
