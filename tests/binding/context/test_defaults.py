"""What a context gets where its caller sets nothing, through every class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.tiny_encoders import write_bert
from support.tiny_gguf import write_tiny

from llama_cffi import Engine, InferenceEngine, Llama, get_library
from llama_cffi.binding import Context, Library, Model, compat, processors
from llama_cffi.binding import tuned as kept_settings
from llama_cffi.binding.tuned import TunedSettings, keep
from llama_cffi.memory_plan.planner import Planner

SMALL_CTX = {"n_ctx": 64, "n_threads": 1}


@pytest.fixture
def avx512(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Sets whether the loaded CPU backend counts as compiled for AVX-512."""

    def pretend(uses: bool) -> None:
        monkeypatch.setattr(Library, "uses", lambda _, feature: uses and feature == "AVX512")

    return pretend


@pytest.fixture(autouse=True)
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the settings, which does not exist yet."""
    path = tmp_path / "tuned.json"
    monkeypatch.setattr(kept_settings, "tuned_file", lambda: path)
    return path


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model with heads of 64."""
    path = write_tiny(tmp_path_factory.mktemp("wide") / "wide.gguf", n_embd=128)
    with Model(path) as model:
        yield model


def flash_attn(model: Model, **options: object) -> bool | None:
    with Context(model, **{**SMALL_CTX, **options}) as context:  # type: ignore[arg-type]
        return context.flash_attn


def test_small_heads_get_no_flash_attention_from_kernels_for_avx512(
    model: Model, wide: Model, avx512: Callable[[bool], None]
) -> None:
    avx512(True)
    assert (flash_attn(model), flash_attn(wide)) == (False, None)
    avx512(False)
    assert (flash_attn(model), flash_attn(wide)) == (None, None)


def test_what_is_asked_for_wins(model: Model, avx512: Callable[[bool], None]) -> None:
    avx512(True)
    assert flash_attn(model, flash_attn=True) is True
    assert flash_attn(model, type_v="q8_0") is True  # which needs it
    assert flash_attn(model, embeddings=True) is None  # decodes no single tokens


def test_gpus_and_encoders_keep_the_choice_of_the_build(
    model: Model, avx512: Callable[[bool], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    avx512(True)
    monkeypatch.setattr(model, "offloads", True)
    assert flash_attn(model) is None
    write_bert(tmp_path / "bert.gguf")
    with Model(tmp_path / "bert.gguf") as bert:
        assert flash_attn(bert) is None


def test_builds_with_flash_attention_off_by_default_are_left_alone(
    model: Model, avx512: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    avx512(True)
    old = compat.MemoryLayout(flash_attn=False)
    monkeypatch.setattr(compat, "memory_layout", lambda _: old)
    assert flash_attn(model) is None


def test_the_loaded_backend_says_what_it_was_compiled_for() -> None:
    library = get_library()
    assert library.uses("AVX512") == ("AVX512 = 1" in library.system_info)
    assert not library.uses("AVX51")
    assert not library.uses("NO_SUCH_FEATURE")
    assert library.cpu_variant in ("", *library.build.cpu_variants)


def test_every_class_and_the_memory_plan_take_the_same_defaults(
    model: Model, avx512: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CFFI_N_THREADS", raising=False)
    measured = TunedSettings(n_threads=1, n_ubatch=32, flash_attn=True)
    for settings, expected in ((TunedSettings(), (False, 64)), (measured, (True, 32))):
        avx512(True)
        keep(model.library.build, model.gguf, settings, {}, offloads=False)
        with (
            Context(model, n_ctx=64) as context,
            Engine(model, n_ctx=64) as engine,
            Llama(model, n_ctx=64) as llm,
            InferenceEngine(model, 1, 64, start=False) as many,
        ):
            for made in (context, engine.context, llm.engine.context, many.context):
                assert (made.flash_attn, made.n_ubatch) == expected
                assert made.tuned == settings
                assert made.n_threads == (settings.n_threads or context.n_threads)
        with Planner(model, {"n_ctx": 64}) as planner:
            found = planner.sizes(64, 1, 0)
        named = {"n_ctx": 64, "flash_attn": expected[0], "n_ubatch": expected[1]}
        with Planner(model, named) as planner:
            assert planner.sizes(64, 1, 0) == found


def test_tuned_settings_are_for_what_the_caller_left_open(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TunedSettings(n_threads=1, n_threads_batch=2, n_ubatch=16, flash_attn=False)
    keep(model.library.build, model.gguf, settings, {}, offloads=False)
    monkeypatch.setattr(processors, "usable_cpus", lambda: 8)

    def threads(**options: int) -> tuple[int, int]:
        with Context(model, n_ctx=64, **options) as context:  # type: ignore[arg-type]
            return context.n_threads, context.n_threads_batch

    assert threads() == (1, 2)
    assert threads(n_threads=3) == (3, 3)
    assert threads(n_threads_batch=4) == (1, 4)
    assert flash_attn(model, flash_attn=True) is True
    with Context(model, n_ctx=64, n_ubatch=8) as context:
        assert context.n_ubatch == 8
    monkeypatch.setenv("LLAMA_CFFI_N_THREADS", "4")
    assert threads() == (4, 4)
    monkeypatch.setenv("LLAMA_CFFI_TUNED", "0")
    with Context(model, **SMALL_CTX) as context:  # type: ignore[arg-type]
        assert (context.n_ubatch, bool(context.tuned)) == (64, False)


def test_settings_of_another_cpu_variant_are_not_used(model: Model) -> None:
    settings = TunedSettings(cpu_variant="other", n_ubatch=16)
    keep(model.library.build, model.gguf, settings, {}, offloads=False)
    with Context(model, **SMALL_CTX) as context:  # type: ignore[arg-type]
        assert (context.n_ubatch, bool(context.tuned)) == (64, False)
