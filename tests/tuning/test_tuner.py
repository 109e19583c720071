"""`tune`: what it measures in child processes, keeps, and leaves alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_gguf import write_tiny

from llama_cffi import (
    CancelledError,
    Engine,
    LlamaError,
    ModelLoadError,
    TunedSettings,
    ValidationError,
    get_library,
    tune,
)
from llama_cffi.binding import tuned
from llama_cffi.gguf.header_check import check_gguf
from llama_cffi.tuning import tuner
from llama_cffi.tuning.children import Children
from llama_cffi.tuning.timing import Request, Sample

OLD = TunedSettings(n_ubatch=8)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the settings."""
    path = tmp_path / "tuned.json"
    for owner in (tuned, tuner):
        monkeypatch.setattr(owner, "tuned_file", lambda: path)
    monkeypatch.setenv("LLAMA_CFFI_N_THREADS", "1")
    return path


class FakeChildren(Children):
    """Measures by a formula: `flash_attn=True` takes half the time."""

    flash_s, error = 0.5, ""

    def facts(self, variant: str | None = None) -> dict[str, Any]:
        """Return the defaults."""
        return {
            "cpu_variant": "", "offloads": False, "n_threads": 1, "n_threads_batch": 1,
            "flash_attn": False,
        }  # fmt: skip

    def measure(self, settings: TunedSettings, request: Request) -> Sample:
        """Return the seconds."""
        if self.error and settings:
            raise LlamaError(self.error)
        second = self.flash_s if settings.flash_attn else 1.0
        return Sample(1e-6 * second * request.n_prompt, 1e-6 * second * request.n_gen)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeChildren]:
    """A machine that is made up."""
    kind = type("Fake", (FakeChildren,), {})
    monkeypatch.setattr(tuner, "Children", kind)
    monkeypatch.setattr(tuner, "_cpu_variants", lambda *_: [])
    return kind


def kept(model: Path) -> TunedSettings:
    return tuned.kept(get_library().build, check_gguf(model), offloads=False)


def keep_old(model: Path) -> None:
    tuned.keep(get_library().build, check_gguf(model), OLD, {}, offloads=False)


@pytest.mark.usefixtures("fake")
def test_what_is_faster_is_kept_and_used(tiny_model: Path, file: Path) -> None:
    keep_old(tiny_model)
    result = tune(tiny_model)
    assert result.settings == TunedSettings(flash_attn=True)
    assert result.ratio == pytest.approx(0.5)
    assert kept(tiny_model) == result.settings
    (entry,) = json.loads(file.read_text())["models"].values()
    assert entry["ratio"] == pytest.approx(0.5)
    assert str(file) in str(result)
    assert "flash_attn=on" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["settings"] == {"flash_attn": True}
    with Engine(tiny_model, n_ctx=64) as engine:
        assert engine.context.flash_attn is True
        assert engine.context.tuned == result.settings
        assert "tuned" in repr(engine)


def test_where_the_defaults_are_as_fast_nothing_is_kept(
    tiny_model: Path, fake: type[FakeChildren]
) -> None:
    keep_old(tiny_model)
    fake.flash_s = 1.0
    result = tune(tiny_model)
    assert (result.settings, result.ratio) == (TunedSettings(), 1.0)
    assert not kept(tiny_model)
    assert "the defaults are kept" in str(result)


@pytest.mark.usefixtures("fake")
def test_a_dry_run_tells_what_would_be_measured_and_keeps_nothing(
    tiny_model: Path, file: Path
) -> None:
    keep_old(tiny_model)
    result = tune(tiny_model, dry_run=True, n_prompt=200, seconds=5)
    assert result.ratio is None
    assert result.settings == OLD
    assert result.candidates == {"flash_attn": [True], "n_ubatch": [128]}
    assert 0 < result.seconds <= 5
    for part in ("would measure", "flash_attn: on", "n_ubatch: 128", "seconds"):
        assert part in str(result)
    assert kept(tiny_model) == OLD


def test_errors_and_ctrl_c_leave_what_was_kept(
    tiny_model: Path, fake: type[FakeChildren], file: Path
) -> None:
    keep_old(tiny_model)
    before = file.read_bytes()
    calls = []

    def stop(done: float) -> bool:
        calls.append(done)
        return len(calls) < 12

    with pytest.raises(CancelledError, match="as they were"):
        tune(tiny_model, progress=stop)
    assert len(calls) == 12

    def interrupt(done: float) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(tiny_model, progress=interrupt)
    assert file.read_bytes() == before
    fake.error = "out of memory"
    result = tune(tiny_model)  # only candidates fail
    assert {step.error for step in result.steps} == {"out of memory"}
    assert not kept(tiny_model)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0}, {"seconds": -1}, {"seconds": float("nan")}, {"n_prompt": 0},
        {"n_gen": 0}, {"n_gpu_layers": -2}, {"dry_run": 2}, {"seconds": "x"},
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(tiny_model: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        tune(tiny_model, **wrong)


def test_a_file_that_cannot_be_loaded_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no\.gguf"):
        tune(tmp_path / "no.gguf")


def test_a_program_that_cannot_start_python_is_told_what_to_do(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(LlamaError, match="run `llama-cffi tune`"):
        tune(tiny_model)


@pytest.mark.usefixtures("fake")
def test_requests_fit_the_training_length_and_the_time(tmp_path: Path) -> None:
    short = write_tiny(tmp_path / "short.gguf", n_ctx=64)
    request = tune(short).request
    assert request.n_prompt + request.n_gen <= 64
    assert request.n_repeat == 20
    long = write_tiny(tmp_path / "long.gguf", n_ctx=4096)
    request = tune(long, n_prompt=2048, seconds=0.001).request
    assert (request.n_prompt, request.n_gen) < (2048, 128)
    assert (request.n_prompt, request.n_gen) >= (64, 16)


@pytest.fixture(scope="module")
def children(tiny_model: Path) -> Iterator[Children]:
    """Real child processes, of which one at a time may run."""
    with Children(get_library().path, tiny_model, 0) as found:
        yield found


def test_a_child_measures_with_the_settings(children: Children) -> None:
    facts = children.facts()
    assert facts["n_threads"] == 1
    assert facts["cpu_variant"] in ("", *get_library().build.cpu_variants)
    settings = TunedSettings(n_threads=1, n_threads_batch=1, flash_attn=False, n_ubatch=4)
    sample = children.measure(settings, Request(16, 2, 2))
    assert min(sample.prefill_s, sample.decode_s) > 0
    assert sample.total_s == sample.prefill_s + sample.decode_s
    assert children.measure(TunedSettings(), Request(8, 0)).decode_s >= 0


def test_a_child_tells_errors_by_their_kind_and_goes_on(children: Children) -> None:
    with pytest.raises(ValidationError, match="pos=-1"):
        children.measure(TunedSettings(n_ubatch=4), Request(-1, 4))
    assert children.measure(TunedSettings(), Request(8, 1)).total_s > 0


def test_a_child_that_died_is_told_and_replaced(children: Children) -> None:
    children.facts()
    (child,) = children._running.values()
    child._process.kill()
    with pytest.raises(LlamaError, match="the process that measures ended"):
        children.measure(TunedSettings(), Request(8, 1))
    assert children.measure(TunedSettings(), Request(8, 1)).total_s > 0


def test_a_cpu_variant_that_does_not_exist_is_an_error(children: Children) -> None:
    if get_library().build.cpu_variants:
        with pytest.raises(LlamaError, match="'none' is not a CPU variant"):
            children.facts("none")
    assert len(children._running) <= children.most
