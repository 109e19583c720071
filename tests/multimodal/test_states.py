"""Saved states, slots and stored prompts with pictures."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from multimodal.conftest import Files, picture
from multimodal.test_chat import ask
from support.http_requests import Reply, post

from llama_cffi import InferenceEngine, Llama, LlamaPool, ValidationError

KINDS = ("janus_pro", "gemma3", "qwen2vl_merger")
A, B = picture(1, 30, 20), picture(2, 30, 20)
ROUNDING = 2e-2  # of kernels for batches of different sizes
LONG = "a long text " * 30
_PREFIX = struct.Struct("<8sIIQ")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(files: Files, **options: Any) -> Llama:
    return Llama(files.model, n_ctx=1024, n_threads=1, **options)


@pytest.fixture
def alone(kind: str, files: dict[str, Files]) -> Iterator[Llama]:
    """Answers one request at a time."""
    with opened(files[kind]) as llm:
        yield llm


def engine(files: Files, n_parallel: int = 1, **options: Any) -> InferenceEngine:
    return InferenceEngine(files.model, n_parallel, 1024, n_threads=1, **options)


@pytest.fixture
def without_projector(kind: str, files: dict[str, Files], tmp_path: Path) -> Files:
    """The same model, with no projector beside it."""
    model = tmp_path / "alone" / "model.gguf"
    model.parent.mkdir()
    model.write_bytes(files[kind].model.read_bytes())
    return Files(model, files[kind].mmproj)


def tell(llm: Llama, messages: list[dict[str, Any]]) -> tuple[int, list[float]]:
    """Return the number of cached tokens, and the log-probabilities of an answer."""
    done = llm.create_chat_completion(messages, max_tokens=6, temperature=0, logprobs=True)
    details = done["usage"]["prompt_tokens_details"]
    logprobs = done["choices"][0]["logprobs"]["content"]
    return details["cached_tokens"], [token["logprob"] for token in logprobs]


def after_picture(llm: Llama | InferenceEngine, messages: list[dict[str, Any]]) -> int:
    """Return the number of cells up to the end of the first picture."""
    return int(llm.renderer.render(messages).tokens.spans()[0].end)


def with_header(state: bytes, **edits: Any) -> bytes:
    """Return a state with another header and the right checksum."""
    magic, version, _, n = _PREFIX.unpack_from(state)
    header = {**json.loads(state[_PREFIX.size : _PREFIX.size + n]), **edits}
    text = json.dumps(header).encode()
    rest = text + state[_PREFIX.size + n :]
    return _PREFIX.pack(magic, version, zlib.crc32(rest), len(text)) + rest


def header_of(state: bytes) -> dict[str, Any]:
    n = _PREFIX.unpack_from(state)[3]
    found: dict[str, Any] = json.loads(state[_PREFIX.size : _PREFIX.size + n])
    return found


# States of a Llama


def test_the_same_picture_continues_from_a_state(alone: Llama, tmp_path: Path) -> None:
    turns = [*ask("see", A, LONG), {"role": "assistant", "content": "a"}, *ask("and?")]
    tell(alone, turns[:1])
    state = alone.get_state()
    alone.save_state(tmp_path / "state")
    _, expected = tell(alone, turns)
    for saved in (state, tmp_path / "state"):
        alone.reset()
        encoded = alone.engine.media.cache
        encoded.clear()
        before = encoded.n_encoded
        assert alone.load_state(saved) >= after_picture(alone, turns)
        n_cached, logprobs = tell(alone, turns)
        assert n_cached > after_picture(alone, turns)
        assert np.allclose(logprobs, expected, atol=ROUNDING)
        assert encoded.n_encoded == before


def test_another_picture_does_not(alone: Llama) -> None:
    tell(alone, ask("see", A, LONG))
    state = alone.get_state()
    alone.reset()
    _, expected = tell(alone, ask("see", B, LONG))
    alone.set_state(state)
    n_cached, logprobs = tell(alone, ask("see", B, LONG))
    (span, *_) = alone.renderer.render(ask("see", B, LONG)).tokens.spans()
    assert n_cached <= span.start
    assert np.allclose(logprobs, expected, atol=ROUNDING)


def test_the_picture_in_a_state_cannot_be_computed_again(alone: Llama) -> None:
    tell(alone, ask("see", A, "what?"))
    state = alone.get_state()
    alone.set_state(state)
    prompt = alone.engine._slot.tokens  # type: ignore[union-attr]
    (span,) = prompt.spans()
    alone.reset()
    with pytest.raises(ValidationError, match="cannot be computed again"):
        list(alone.engine.steps(prompt.part(0), 2))
    assert tell(alone, ask("see", A, "what?"))[1]
    assert span.media.n_cells > 0


def test_a_state_without_a_projector(alone: Llama, without_projector: Files, kind: str) -> None:
    messages = ask("see", A, "what?")
    tell(alone, messages)
    state = alone.get_state()
    alone.set_state(state)
    tail = alone.tokenize(" and then?", add_special=False)
    options: Any = {"temperature": 0, "reset_kv_cache": False}
    expected = list(alone.engine.steps(tail, 4, **options))
    with opened(without_projector) as llm:
        assert llm.modalities == ("text",)
        n = llm.set_state(state)
        assert n == len(alone.renderer.render(messages).tokens) + 5
        assert [*map(repr, llm.engine.steps(tail, 4, **options))] == [*map(repr, expected)]
        with pytest.raises(ValidationError, match="gets text only"):
            tell(llm, messages)
        assert tell(llm, [{"role": "user", "content": "hi"}])[1]


def test_damaged_headers(alone: Llama) -> None:
    tell(alone, ask("see", A, "what?"))
    state = alone.get_state()
    tokens = header_of(state)["tokens"]
    at = next(i for i, token in enumerate(tokens) if token < 0)
    wrong = [
        [*tokens[: at + 1], *tokens[at + 2 :]],
        [*tokens, -1],
        [*tokens[:at], *[-1] * 4, *tokens[at + 4 :]],
        [*tokens[:at], -(2**40), *tokens[at + 1 :]],
        [*tokens[: at + 3], -(2**60), *tokens[at + 4 :]],
    ]
    for numbers in wrong:
        with pytest.raises(ValidationError):
            alone.set_state(with_header(state, tokens=numbers))
        assert tell(alone, ask("see", A, "what?"))[1]
    alone.set_state(with_header(state))
    assert tell(alone, ask("see", A, "what?"))[0] > 0


def test_states_of_text_are_as_before(alone: Llama) -> None:
    tell(alone, [{"role": "user", "content": LONG}])
    state = alone.get_state()
    header = header_of(state)
    assert header["tokens"] == alone.engine._slot.tokens  # type: ignore[union-attr]
    assert min(header["tokens"]) >= 0
    alone.reset()
    alone.set_state(state)
    assert tell(alone, [{"role": "user", "content": LONG}])[0] > 0


# Slots


def answer(engine: InferenceEngine, messages: list[dict[str, Any]]) -> tuple[int, list[float]]:
    tokens = engine.tokenize_chat(messages)
    handle = engine.submit(tokens, 6, temperature=0, logprobs=0, listens=True)
    logprobs = [step.logprob.logprob for step in handle.steps() if step.logprob is not None]
    return handle.stats.n_reused, logprobs


@pytest.mark.parametrize("options", [{}, {"n_kv_tokens": 2048}], ids=["own", "shared"])
def test_slots(kind: str, files: dict[str, Files], tmp_path: Path, options: dict[str, Any]) -> None:
    turns = [*ask("see", A, LONG), {"role": "assistant", "content": "a"}, *ask("and?")]
    other = [*ask("see", B, LONG), *turns[1:]]
    path = tmp_path / "slot"
    with engine(files[kind], 2, cache_ram=0, **options) as first:
        answer(first, turns[:1])
        n = first.save_prompt(0, path)
        _, expected = answer(first, turns)
    with engine(files[kind], 2, cache_ram=0, **options) as second:
        assert second.restore_prompt(1, path) == n
        span = second.renderer.render(turns).tokens.spans()[0]
        n_reused, logprobs = answer(second, turns)
        assert n_reused > span.end
        assert np.allclose(logprobs, expected, atol=ROUNDING)
        second.cache_clear()
        second.restore_prompt(0, path)
        assert answer(second, other)[0] <= span.start
        assert second.erase_prompt(0) > 0


def test_a_slot_without_a_projector(
    kind: str, files: dict[str, Files], without_projector: Files, tmp_path: Path
) -> None:
    with engine(files[kind], 2) as first:
        answer(first, ask("see", A, LONG))
        first.save_prompt(0, tmp_path / "slot")
    with engine(without_projector, 2) as second:
        for _ in range(2):
            with pytest.raises(ValidationError, match="without their projector"):
                second.restore_prompt(0, tmp_path / "slot")
            assert answer(second, [{"role": "user", "content": "hi"}])[1]


# Stored prompts


@pytest.mark.parametrize("options", [{}, {"n_kv_tokens": 1024}], ids=["own", "shared"])
def test_the_store_in_ram(kind: str, files: dict[str, Files], options: dict[str, Any]) -> None:
    turns = [*ask("see", A, LONG), {"role": "assistant", "content": "a"}, *ask("and?")]
    other = [*ask("see", B, LONG), *turns[1:]]
    filler = [{"role": "user", "content": "something else " * 40}]
    with engine(files[kind], 1, cache_ram=64, **options) as shared:
        answer(shared, turns[:1])
        _, expected = answer(shared, turns)
        for asked, is_reused in ((turns, True), (other, False)):
            answer(shared, filler)  # takes the only sequence
            before = shared.stats.cache.n_restored_tokens
            n_reused, logprobs = answer(shared, asked)
            n_restored = shared.stats.cache.n_restored_tokens - before
            assert (n_restored > 0) == (n_reused > 64) == is_reused
            if is_reused:
                assert np.allclose(logprobs, expected, atol=ROUNDING)


def test_the_store_on_disk(kind: str, files: dict[str, Files], tmp_path: Path) -> None:
    turns = [*ask("see", A, LONG), {"role": "assistant", "content": "a"}, *ask("and?")]
    with engine(files[kind], 1, cache_dir=tmp_path) as first:
        answer(first, turns[:1])
        _, expected = answer(first, turns)
    (path,) = [*tmp_path.glob("*/*.prompt")]
    whole = path.read_bytes()
    with engine(files[kind], 1, cache_ram=0, cache_dir=tmp_path) as second:
        encoded = second.media.cache
        n_reused, logprobs = answer(second, turns)
        assert n_reused > after_picture(second, turns)
        assert encoded.n_encoded == 0
        assert np.allclose(logprobs, expected, atol=ROUNDING)
    for damaged in (whole[:-1], whole[:100] + b"x" + whole[101:]):
        for file in tmp_path.glob("*/*.prompt"):
            file.unlink()
        path.write_bytes(damaged)
        with engine(files[kind], 1, cache_ram=0, cache_dir=tmp_path) as third:
            n_reused, logprobs = answer(third, turns)
            assert n_reused == 0
            assert np.allclose(logprobs, expected, atol=ROUNDING)


def test_the_server_restores_slots_with_pictures(
    kind: str, files: dict[str, Files], without_projector: Files, tmp_path: Path
) -> None:
    def act(pool: LlamaPool, url: str, action: str) -> Reply:
        return post(f"{url}/slots/0?action={action}", {"filename": "slot"})

    turns = [*ask("see", A, LONG), {"role": "assistant", "content": "a"}, *ask("and?")]
    options: Any = {"n_parallel": 2, "n_ctx": 1024, "n_threads": 1}
    with LlamaPool(files[kind].model, **options) as pool, pool.serve(slot_save_path=tmp_path) as up:
        tell(pool.llm, turns[:1])
        saved = act(pool, up.url, "save")
        assert saved.status == 200, saved.body
        pool.llm.reset()
        tell(pool.llm, [{"role": "user", "content": "hi"}])
        restored = act(pool, up.url, "restore")
        assert restored.json["n_restored"] == saved.json["n_saved"]
        assert tell(pool.llm, turns)[0] > after_picture(pool.llm, turns)
    model = without_projector.model
    with LlamaPool(model, **options) as pool, pool.serve(slot_save_path=tmp_path) as up:
        refused = act(pool, up.url, "restore")
        assert (refused.status, "projector" in refused.error["message"]) == (400, True)
        assert tell(pool.llm, [{"role": "user", "content": "hi"}])[1]
        assert act(pool, up.url, "erase").status == 200
