"""Pictures in conversations: Engine, Llama, and many requests at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from multimodal.conftest import KINDS, Files, picture

from llama_cffi import Engine, InferenceEngine, Llama, PromptLookup, ValidationError

A, B = picture(1, 30, 20), picture(2, 20, 30)


def ask(*parts: Any) -> list[dict[str, Any]]:
    content = [
        {"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p}
        for p in parts
    ]
    return [{"role": "user", "content": content}]


def answer(llm: Llama, messages: list[dict[str, Any]]) -> tuple[str, list[float]]:
    done = llm.create_chat_completion(messages, max_tokens=8, temperature=0, logprobs=True)
    (choice,) = done["choices"]
    content = choice["logprobs"]["content"]
    return choice["message"]["content"], [token["logprob"] for token in content]


def first(llm: Llama, messages: list[dict[str, Any]]) -> list[float]:
    """Return the log-probabilities of the most likely first tokens."""
    done = llm.create_chat_completion(
        messages, max_tokens=1, temperature=0, logprobs=True, top_logprobs=20
    )
    top = done["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [entry["logprob"] for entry in top]


@pytest.fixture(scope="module", params=[1, 3], ids=["one at a time", "batched"])
def llm(request: pytest.FixtureRequest, kind: str, files: dict[str, Files]) -> Iterator[Llama]:
    with Llama(
        files[kind].model, n_ctx=1024, n_threads=1, n_parallel=request.param, n_ubatch=64
    ) as llm:
        yield llm


def test_the_projector_beside_the_model_is_found(llm: Llama) -> None:
    assert llm.modalities == ("text", "image")


def test_same_picture_same_logits_other_picture_other_logits(llm: Llama) -> None:
    of_a, of_b = first(llm, ask(A, "what?")), first(llm, ask(B, "what?"))
    assert not np.allclose(of_a, of_b, atol=1e-3)
    assert np.allclose(of_a, first(llm, ask(A, "what?")), atol=1e-4)


def test_order_matters(llm: Llama) -> None:
    orders = [ask(A, B, "x"), ask(B, A, "x"), ask(A, "x", B, "y"), ask("x", A, B)]
    found = [first(llm, [*o, {"role": "user", "content": "?"}]) for o in orders]
    for a, b in itertools.combinations(found, 2):
        assert not np.allclose(a, b, atol=1e-3)


def test_cached_equals_fresh(llm: Llama, kind: str, files: dict[str, Files]) -> None:
    turns = [*ask(A, "what?"), {"role": "assistant", "content": "a"}, *ask(B, "and this?")]
    answer(llm, turns[:1])
    continued = answer(llm, turns)
    with Llama(files[kind].model, n_ctx=1024, n_threads=1) as fresh:
        text, logprobs = answer(fresh, turns)
    assert continued[0] == text
    assert np.allclose(continued[1], logprobs, atol=5e-3)  # kernels round


def test_batched_with_others_equals_alone(kind: str, files: dict[str, Files]) -> None:
    asked = [ask(A, "x"), ask("only text, and more of it"), ask(B, "y"), ask(A, B, "z")]
    with Llama(files[kind].model, n_ctx=512, n_threads=1) as llm:
        alone = [answer(llm, messages) for messages in asked]
    with (
        Llama(files[kind].model, n_ctx=512, n_threads=1, n_parallel=4, n_kv_tokens=2048) as llm,
        ThreadPoolExecutor(4) as pool,
    ):
        together = list(pool.map(lambda messages: answer(llm, messages), asked))
    for (text, logprobs), (expected, expected_logprobs) in zip(together, alone, strict=True):
        assert text == expected
        assert np.allclose(logprobs, expected_logprobs, atol=5e-3)  # kernels round


def test_a_picture_is_encoded_once(llm: Llama) -> None:
    cache = llm.engine.media.cache
    cache.clear()
    before = cache.n_encoded
    turns: list[dict[str, Any]] = ask(picture(7), "what?")
    for i in range(5):
        answer(llm, turns)
        turns += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": f"and {i}?"}]
    n_chunks = len(llm.renderer.render(turns).tokens.spans())  # one, or its tiles
    assert cache.n_encoded == before + n_chunks


def test_engine_takes_the_same_messages(kind: str, files: dict[str, Files]) -> None:
    messages = ask(A, "what?")
    with Llama(files[kind].model, n_ctx=512, n_threads=1) as llm:
        expected, _ = answer(llm, messages)
    with Engine(files[kind].model, n_ctx=512, n_threads=1) as engine:
        assert engine.generate_chat(messages, 8, temperature=0) == expected
    with InferenceEngine(files[kind].model, 2, 512, n_threads=1) as shared:
        tokens = shared.tokenize_chat(messages)
        assert shared.generate(tokens, 8, temperature=0) == expected


def test_the_usage_counts_cells(llm: Llama, kind: str) -> None:
    def n_prompt(messages: list[dict[str, Any]]) -> int:
        done = llm.create_chat_completion(messages, max_tokens=1)
        return done["usage"]["prompt_tokens"]

    tokens = llm.renderer.render(ask(A, "what?")).tokens
    n_cells = sum(span.media.n_cells for span in tokens.spans())
    assert n_cells == {"janus_pro": 16, "gemma3": 4, "idefics3": 52, "qwen2vl_merger": 12}[kind]
    assert n_prompt(ask(A, "what?")) == len(tokens) >= n_prompt(ask("what?")) + n_cells


def test_what_a_user_writes_is_no_picture(llm: Llama) -> None:
    done = llm.create_chat_completion(ask("<__media__> [[media 0]]"), max_tokens=1)
    assert done["choices"][0]["finish_reason"] in ("length", "stop")


def test_speculation_and_grammars_skip_pictures(kind: str, files: dict[str, Files]) -> None:
    messages = ask(A, "x x x x x x", A, "x x x")
    for options in ({}, {"response_format": {"type": "json_object"}}):
        with Llama(files[kind].model, n_ctx=512, n_threads=1) as llm:
            expected = llm.create_chat_completion(messages, max_tokens=12, temperature=0, **options)
        with Llama(files[kind].model, n_ctx=512, n_threads=1, draft=PromptLookup()) as llm:
            drafted = llm.create_chat_completion(messages, max_tokens=12, temperature=0, **options)
        assert drafted["choices"] == expected["choices"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_needs_more_than_the_context(kind: str, files: dict[str, Files]) -> None:
    from llama_cffi import ContextOverflowError

    with (
        Llama(files[kind].model, n_ctx=256, n_threads=1) as llm,
        pytest.raises(ContextOverflowError),
    ):
        llm.create_chat_completion(ask(*[A] * 30, "x" * 250), max_tokens=1)


def test_a_prompt_that_ends_with_a_picture(llm: Llama) -> None:
    prompt = llm.engine.renderer.render(ask(A, "what?")).tokens
    (span, *_) = prompt.spans()
    with pytest.raises(ValidationError, match="cannot end with a picture"):
        list(llm.engine.steps(prompt.part(0, span.end), 4))
