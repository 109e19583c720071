"""State, KV cache and adapters of a Llama: only matching cells are reused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.loras import make_pairs, write_lora
from support.odd_models import write_recurrent, write_windowed

from llama_cffi import Llama, ModelLoadError, SamplingParams, ValidationError

GREEDY = SamplingParams(temperature=0)
PROMPT = "The quick brown fox jumps over the lazy dog"  # 43 tokens, one per byte


@pytest.fixture(scope="module", params=["llama", "gemma2", "mamba"])
def llm(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Llama]:
    """Return models whose cache can truncate and shift, has a sliding window, or can do neither."""
    folder = tmp_path_factory.mktemp("models")
    path = {
        "llama": lambda: tiny_model,
        "gemma2": lambda: write_windowed(folder / "swa.gguf"),
        "mamba": lambda: write_recurrent(folder / "mamba.gguf"),
    }[request.param]()
    with Llama(path, None, GREEDY, n_ctx=256, n_threads=1, n_seq_max=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Iterator[Llama]:
    with Llama(tiny_model, None, GREEDY, n_ctx=256, n_threads=1, n_seq_max=2) as llm:
        yield llm


def go_on(llm: Llama) -> tuple[str, int]:
    """Return the continuation, and how many prompt tokens were cached."""
    text = llm.generate(PROMPT, 40)
    return text, llm.engine.stats.n_reused


CHANGES: dict[str, Callable[[Llama], object]] = {
    "rm the tail": lambda llm: llm.kv_cache_seq_rm(0, 40, -1),
    "rm the middle": lambda llm: llm.kv_cache_seq_rm(0, 10, 20),
    "rm the head": lambda llm: llm.kv_cache_seq_rm(0, -1, 5),
    "rm all": lambda llm: llm.kv_cache_seq_rm(0),
    "rm every sequence": lambda llm: llm.kv_cache_seq_rm(-1, 12, -1),
    "add": lambda llm: llm.kv_cache_seq_add(0, 8, -1, 3),
    "shift": lambda llm: (llm.kv_cache_seq_rm(0, 4, 8), llm.kv_cache_seq_add(0, 8, -1, -4)),
    "keep": lambda llm: llm.kv_cache_seq_keep(0),
    "keep another": lambda llm: llm.kv_cache_seq_keep(1),
    "cp to another": lambda llm: llm.kv_cache_seq_cp(0, 1),
    "cp there and back": lambda llm: (
        llm.kv_cache_seq_cp(0, 1),
        llm.kv_cache_seq_rm(0),
        llm.kv_cache_seq_cp(1, 0),
    ),
    "state": lambda llm: llm.set_state(llm.get_state()),
    "state after rm": lambda llm: (
        llm.kv_cache_seq_rm(0, 20, -1),
        llm.set_state(llm.get_state()),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_answers_after_changes_equal_those_of_an_empty_cache(llm: Llama, name: str) -> None:
    llm.reset()
    expected = llm.generate(PROMPT, 40)
    try:
        CHANGES[name](llm)
    except ValidationError:
        # This memory can neither truncate nor shift.
        assert llm.model.metadata["general.architecture"] == "mamba"
    assert go_on(llm)[0] == expected
    assert go_on(llm)[0] == expected


def test_remaining_prefix_is_reused(plain: Llama) -> None:
    reused = {
        "rm the tail": 40,
        "rm the middle": 10,
        "rm the head": 0,
        "rm every sequence": 12,
        "add": 8,
        "shift": 4,
        "keep": 42,
        "keep another": 0,
        "cp to another": 42,
        "state": 42,
        "state after rm": 20,
    }
    assert plain.n_tokens(PROMPT) == 43
    for name, n in reused.items():
        plain.generate(PROMPT, 40)
        CHANGES[name](plain)
        assert go_on(plain)[1] == n, name


def test_invalid_state_leaves_an_empty_cache(plain: Llama, llm: Llama, tmp_path: Path) -> None:
    expected = plain.generate(PROMPT, 40)
    state = plain.get_state()
    if llm.model.metadata["general.architecture"] != "llama":
        with pytest.raises(ValidationError):
            llm.set_state(state)
    for bad in (state[:-1], state[:100], b"", b"x" * 100, state[:200] + b"x" + state[201:]):
        with pytest.raises(ValidationError):
            plain.set_state(bad)
        assert plain.generate(PROMPT, 40) == expected
    with pytest.raises(FileNotFoundError):
        plain.load_state(tmp_path / "none")
    plain.save_state(tmp_path / "state")
    assert plain.load_state(str(tmp_path / "state")) == 43 + 39


@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm.kv_cache_seq_rm(2),
        lambda llm: llm.kv_cache_seq_rm(0, "x"),
        lambda llm: llm.kv_cache_seq_cp(0, 5),
        lambda llm: llm.kv_cache_seq_keep(-1),
        lambda llm: llm.kv_cache_seq_add(0, 0, -1, -5),
        lambda llm: llm.kv_cache_seq_pos_max(7),
    ],
)
def test_refused_calls_change_nothing(plain: Llama, call: Callable[[Llama], object]) -> None:
    plain.generate(PROMPT, 40)
    with pytest.raises(ValidationError):
        call(plain)
    assert go_on(plain)[1] == 42


def test_adapters(tiny_model: Path, tmp_path: Path) -> None:
    one = write_lora(tmp_path / "one.gguf", make_pairs(1))
    two = write_lora(tmp_path / "two.gguf", make_pairs(2))

    def logits(llm: Llama) -> Any:
        llm.generate(PROMPT, 1)
        return llm.engine.context.logits()

    with (
        Llama(tiny_model, None, GREEDY, n_ctx=256, n_threads=1) as llm,
        Llama(
            tiny_model, None, GREEDY, n_ctx=256, n_threads=1, lora_path=one, lora_scale=0.5
        ) as born,
    ):
        plain = logits(llm)
        assert llm.load_lora(one, 0.5) == str(one)
        half = logits(llm)
        assert np.abs(half - plain).max() > 0.01
        np.testing.assert_allclose(logits(born), half, atol=1e-4)
        born.remove_lora(one)
        np.testing.assert_allclose(logits(born), plain, atol=1e-4)
        llm.load_lora(one, 1.0)  # changes the scale, does not add it again
        llm.load_lora(str(two))
        both = logits(llm)
        llm.reset()
        np.testing.assert_allclose(logits(llm), both, atol=1e-4)
        llm.clear_lora()
        np.testing.assert_allclose(logits(llm), plain, atol=1e-4)
        with pytest.raises(ValidationError, match="loaded: none"):
            llm.remove_lora(one)
        with pytest.raises(ModelLoadError):
            llm.load_lora(tmp_path / "none.gguf")
        np.testing.assert_allclose(logits(llm), plain, atol=1e-4)
    with pytest.raises(ModelLoadError, match=r"none\.gguf"):
        Llama(tiny_model, n_ctx=64, lora_path=str(tmp_path / "none.gguf"))
