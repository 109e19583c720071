"""`reset_kv_cache=False`: the prompt follows what the KV cache holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.answers import exact
from support.tiny_gguf import write_tiny

import llama_cffi.llama_cpp as llama_cpp
from llama_cffi import ContextOverflowError, Engine, InferenceEngine, Llama, ValidationError

OPTIONS: dict[str, Any] = {"temperature": 0, "logit_bias": {256: -1e5, 258: -1e5}}


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=256, n_threads=1, **exact()) as engine:
        yield engine


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_session_is_one_text(engine: Engine, n: int) -> None:
    """Several prompts with their answers are what one prompt of all tokens is."""
    engine.cache_clear()
    history: list[int] = []
    for i, prompt in enumerate(([1, 2, 3], [70, 71], [9], [*range(40)])):
        reset = {"reset_kv": True} if i == 0 else {"reset_kv": False}
        found = engine.generate_tokens(prompt, n, **reset, **OPTIONS)
        n_reused, n_prompt = engine.stats.n_reused, engine.stats.n_prompt
        # All but the last token of the answer before is in the cache.
        assert n_reused == max(0, len(history) - 1)
        history += prompt
        assert n_prompt == len(history)
        with Engine(engine.model, n_ctx=256, n_threads=1, **exact()) as other:
            assert other.generate_tokens(history, n, **OPTIONS) == found
        history += found
    assert engine.tokens == history[:-1]


def test_without_reset_the_same_prompt_is_asked_twice(engine: Engine) -> None:
    """It is not prefix reuse, for which `cache_prompt` is."""
    first = engine.generate_tokens([1, 2, 3], 4, **OPTIONS)
    assert engine.generate_tokens([1, 2, 3], 4, **OPTIONS) == first
    assert engine.stats.n_prompt == 3
    second = engine.generate_tokens([1, 2, 3], 4, reset_kv_cache=False, **OPTIONS)
    assert engine.stats.n_prompt == 3 + 4 + 3
    uncached = engine.generate_tokens([1, 2, 3, *first, 1, 2, 3], 4, cache_prompt=False, **OPTIONS)
    assert uncached == second


@pytest.mark.parametrize("variable", ["POLARIS_RESET_KV", "LLAMA_CFFI_RESET_KV"])
def test_the_variable(engine: Engine, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    engine.generate("x", max_tokens=3, raw=True, **OPTIONS)
    monkeypatch.setenv(variable, "0")
    engine.generate("y", max_tokens=3, raw=True, **OPTIONS)
    assert engine.stats.n_prompt == 5
    engine.generate("z", max_tokens=3, raw=True, reset_kv=True, **OPTIONS)
    assert engine.stats.n_prompt == 1
    monkeypatch.setenv(variable, "1")
    engine.generate("y", max_tokens=3, raw=True, **OPTIONS)
    assert engine.stats.n_prompt == 1


def test_bos_is_not_repeated(tmp_path: Path) -> None:
    def edit(writer: Any) -> None:
        writer.kv_data[0]["tokenizer.ggml.add_bos_token"].value = True

    with Engine(write_tiny(tmp_path / "bos.gguf", edit=edit), n_ctx=64, n_threads=1) as engine:
        engine.generate("ab", max_tokens=2, raw=True, **OPTIONS)
        engine.generate("cd", max_tokens=2, raw=True, reset_kv=False, **OPTIONS)
        tokens = engine.tokens
        assert tokens[0] == 256
        assert tokens.count(256) == 1
        assert engine.detokenize(tokens[:3]) == "ab"
        assert engine.detokenize(tokens[5:7]) == "cd"


def test_a_session_after_other_uses_of_the_cache(engine: Engine, tiny_model: Path) -> None:
    engine.generate_tokens([1, 2, 3], 4, **OPTIONS)
    engine.cache_clear()
    engine.generate_tokens([5], 2, reset_kv=False, **OPTIONS)
    assert engine.stats.n_prompt == 1
    # A stream that was left: what it gave is part of the session.
    stream = engine.steps([1, 2, 3], 20, **OPTIONS)
    given = [next(stream).token for _ in range(5)]
    stream.close()
    engine.generate_tokens([7], 1, reset_kv=False, **OPTIONS)
    assert engine.tokens == [1, 2, 3, *given, 7]
    with Llama(tiny_model, n_ctx=128, n_threads=1) as llm:
        llm.generate("abc", 4, **OPTIONS)
        state = llm.get_state()
        llm.generate("something else", 4, **OPTIONS)
        assert llm.set_state(state) == 6
        llm.generate("x", 1, reset_kv_cache=False, **OPTIONS)
        assert llm.engine.stats.n_prompt == 7
        llm.kv_cache_seq_rm(0, 2)
        llm.generate("y", 1, reset_kv_cache=False, **OPTIONS)
        assert llm.engine.tokens == llm.tokenize("aby")


def test_a_session_of_other_calls(tiny_model: Path) -> None:
    ask = [{"role": "user", "content": "x"}]
    for llm in (
        Llama(tiny_model, n_ctx=256, n_threads=1),
        llama_cpp.Llama(str(tiny_model), n_ctx=256, n_threads=1, verbose=False),
    ):
        n = 0
        for more in ({}, {"reset_kv_cache": False}, {"reset_kv_cache": False, "stream": True}):
            answer: Any = llm.create_completion("ab", max_tokens=4, **more, **OPTIONS)
            if "stream" in more:
                list(answer)
            assert llm.engine.stats.n_prompt == n + 2
            n += 2 + 4
        chat: Any = llm.create_chat_completion(ask, max_tokens=4, reset_kv_cache=False, **OPTIONS)
        n_chat = len(llm.renderer.render(ask).tokens)
        assert chat["usage"]["prompt_tokens"] == n + n_chat
        assert llm.kv_cache_seq_pos_max() + 1 == n + n_chat + 4 - 1
        llm.close()


def test_a_session_that_fills_the_context(tiny_model: Path) -> None:
    with Engine(tiny_model, n_ctx=256, n_threads=1, safety=0) as engine:
        engine.generate_tokens([5] * 200, 50, **OPTIONS)
        with pytest.raises(ContextOverflowError, match="the prompt has 260 tokens"):
            engine.generate_tokens([6] * 10, 1, reset_kv=False, **OPTIONS)
        engine.generate_tokens(
            [6] * 10, 20, reset_kv=False, context_policy="truncate_left", **OPTIONS
        )
        assert engine.stats.n_truncated == 260 - (256 - 20)


def test_batched_requests_have_no_session(tiny_model: Path) -> None:
    with InferenceEngine(tiny_model, 2, 64, n_threads=1) as engine:
        with pytest.raises(ValidationError, match="one request at a time"):
            engine.submit("x", reset_kv_cache=False)
        assert engine.submit("x", 1, reset_kv_cache=True).result() is not None
    with pytest.raises(ValidationError, match="reset_kv_cache"):
        Llama(tiny_model, n_ctx=64).generate("x", reset_kv_cache="no")  # type: ignore[call-overload]
