"""Requests with pictures beside others: while they are encoded, cancelled, preempted, evicted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from multimodal.conftest import Files, picture
from multimodal.test_chat import ask
from numpy.typing import NDArray

from llama_cffi import (
    CancelledError,
    ClosedError,
    DeadlineExceededError,
    GenerationError,
    InferenceEngine,
    Llama,
)
from llama_cffi.errors import QueueFullError
from llama_cffi.scheduler import RequestHandle

A, B, C = (picture(seed, 30, 20) for seed in (1, 2, 3))
TEXT: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
KINDS = ("janus_pro", "gemma3", "qwen2vl_merger")
ROUNDING = 2e-2  # of kernels for batches of different sizes
WAIT_S = 60.0


@pytest.fixture(params=["janus_pro"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


each_kind = pytest.mark.parametrize("kind", KINDS, indirect=True)


_gates: list[Gate] = []


class Gate:
    """Holds each call of the encoder until it is opened."""

    def __init__(self, engine: InferenceEngine) -> None:
        projector = engine.media.projector
        self._encode = projector.encode
        self.started, self.opened = threading.Event(), threading.Event()
        self.chunks: list[Any] = []
        _gates.append(self)
        projector.encode = self  # type: ignore[method-assign, assignment]

    def __call__(self, chunk: Any) -> NDArray[np.float32]:
        self.chunks.append(chunk)
        self.started.set()
        assert self.opened.wait(WAIT_S)
        return self._encode(chunk)


@pytest.fixture
def make(kind: str, files: dict[str, Files]) -> Iterator[Callable[..., InferenceEngine]]:
    engines = []

    def make(n_parallel: int = 3, n_ctx: int = 512, **options: Any) -> InferenceEngine:
        options = {"n_threads": 1, "cache_ram": 0, **options}
        engines.append(InferenceEngine(files[kind].model, n_parallel, n_ctx, **options))
        return engines[-1]

    yield make
    while _gates:
        _gates.pop().opened.set()
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(make: Callable[..., InferenceEngine]) -> InferenceEngine:
    return make()


def submit(
    engine: InferenceEngine, messages: Sequence[dict[str, Any]], n: int = 6, **options: Any
) -> RequestHandle:
    tokens = engine.tokenize_chat(messages)
    return engine.submit(tokens, n, temperature=0, logprobs=0, listens=True, **options)


def logprobs(handle: RequestHandle) -> list[float]:
    return [s.logprob.logprob for s in handle.steps() if s.logprob is not None]


def answer(engine: InferenceEngine, messages: Sequence[dict[str, Any]], **more: Any) -> list[float]:
    return logprobs(submit(engine, messages, **more))


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def encoder_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "llama_cffi-encoder"]


@pytest.fixture(autouse=True)
def encoders_end() -> Iterator[None]:
    before = {*encoder_threads()}
    yield
    wait_for(lambda: not {*encoder_threads()} - before)


# While a picture is encoded


@each_kind
def test_text_goes_on_while_a_picture_is_encoded(engine: InferenceEngine) -> None:
    expected = answer(engine, ask(A, "x"))
    engine.cache_clear()
    engine.media.cache.clear()
    gate = Gate(engine)
    handle = submit(engine, ask(A, "x"))
    assert gate.started.wait(WAIT_S)
    assert handle.request.state.value == "encoding"
    assert engine.stats.n_waiting == 1
    for _ in range(3):
        assert len(answer(engine, TEXT)) == 6
    assert not handle.done
    gate.opened.set()
    assert np.allclose(logprobs(handle), expected, atol=ROUNDING)
    assert engine.stats.n_waiting == 0


def test_cancelled_while_it_is_encoded(engine: InferenceEngine) -> None:
    gate = Gate(engine)
    handles = [submit(engine, ask(p, "x")) for p in (A, B)]
    assert gate.started.wait(WAIT_S)
    for handle in handles:
        handle.cancel()
        with pytest.raises(CancelledError):
            handle.result(WAIT_S)
    assert len(answer(engine, TEXT)) == 6
    gate.opened.set()
    assert len(answer(engine, ask(C, "x"))) == 6
    assert len(gate.chunks) == 2  # the one that waited behind was not encoded


def test_a_deadline_passes_while_it_is_encoded(engine: InferenceEngine) -> None:
    gate = Gate(engine)
    handle = submit(engine, ask(A, "x"), timeout_s=0.1)
    with pytest.raises(DeadlineExceededError):
        handle.result(WAIT_S)
    assert not gate.opened.is_set()
    assert len(answer(engine, TEXT)) == 6
    gate.opened.set()
    assert len(answer(engine, ask(A, "x"))) == 6


def test_closed_while_it_is_encoded(make: Callable[..., InferenceEngine]) -> None:
    engine = make()
    gate = Gate(engine)
    handles = [submit(engine, ask(p, "x")) for p in (A, B)]
    assert gate.started.wait(WAIT_S)
    engine.close()
    for handle in handles:
        with pytest.raises(CancelledError):
            handle.result(WAIT_S)
    assert engine.model.closed
    gate.opened.set()
    wait_for(lambda: not encoder_threads())
    with pytest.raises(ClosedError):
        engine.submit("x")


@each_kind
def test_closed_while_c_encodes(make: Callable[..., InferenceEngine]) -> None:
    for _ in range(5):
        engine = make()
        handle = submit(engine, ask(A, B, "x"))
        wait_for(lambda: handle.request.state.value != "pending")  # noqa: B023
        engine.close()
        assert handle.done


def test_drained_while_it_is_encoded(engine: InferenceEngine) -> None:
    gate = Gate(engine)
    handles = [submit(engine, ask(p, "x")) for p in (A, B)]
    assert gate.started.wait(WAIT_S)
    with ThreadPoolExecutor(1) as pool:
        shut = pool.submit(engine.shutdown)
        wait_for(lambda: engine._queue.closed)
        assert not shut.done()
        gate.opened.set()
        assert [len(logprobs(handle)) for handle in handles] == [6, 6]
        shut.result(WAIT_S)


def test_encoded_while_paused(engine: InferenceEngine) -> None:
    engine.pause()
    handle = submit(engine, ask(A, "x"))
    wait_for(lambda: engine.media.cache.n_encoded)
    late = submit(engine, ask(B, "x"), timeout_s=0.05)
    with pytest.raises(DeadlineExceededError):
        late.result(WAIT_S)
    assert not handle.done
    engine.resume()
    assert len(logprobs(handle)) == 6


def test_steps_without_a_thread(make: Callable[..., InferenceEngine]) -> None:
    engine = make(start=False)
    handles = [submit(engine, ask(A, "x")), submit(engine, TEXT), submit(engine, ask(B, "x"))]
    while engine.step():
        pass
    assert all(handle.done for handle in handles)
    gate = Gate(engine)
    late = submit(engine, ask(C, "x"), timeout_s=0.05)
    while engine.step():
        pass
    with pytest.raises(DeadlineExceededError):
        late.result(0)
    gate.opened.set()
    again = submit(engine, ask(C, "x"))
    while engine.step():
        pass
    assert len(logprobs(again)) == 6


def test_those_that_are_encoded_count_as_waiting(make: Callable[..., InferenceEngine]) -> None:
    engine = make(1, max_waiting=1)
    gate = Gate(engine)
    first, second = (submit(engine, ask(p, "x")) for p in (A, B))
    assert gate.started.wait(WAIT_S)
    with pytest.raises(QueueFullError):
        submit(engine, TEXT)
    gate.opened.set()
    assert [len(logprobs(handle)) for handle in (first, second)] == [6, 6]


def test_pictures_are_encoded_by_priority(engine: InferenceEngine) -> None:
    gate = Gate(engine)
    low = submit(engine, ask(A, "x"))
    assert gate.started.wait(WAIT_S)
    handles = [submit(engine, ask(B, "x")), submit(engine, ask(C, "x"), priority=5), low]
    wait_for(lambda: engine.stats.n_waiting == 3 and not engine._queue.submitted)
    gate.opened.set()
    for handle in handles:
        assert len(logprobs(handle)) == 6
    found = [next(h for h in handles if _chunk(h) is chunk) for chunk in gate.chunks]
    assert found == [low, handles[1], handles[0]]


def _chunk(handle: RequestHandle) -> Any:
    media: Any = handle.request.prompt.spans()[0].media
    return media._chunk


def test_an_encoder_that_raises_fails_its_request(engine: InferenceEngine) -> None:
    gate = Gate(engine)
    gate.opened.set()
    encode, fails = gate._encode, [True]

    def fail_once(chunk: Any) -> NDArray[np.float32]:
        if fails and fails.pop():
            raise GenerationError("mtmd_encode_chunk failed with 1")
        return encode(chunk)

    gate._encode = fail_once  # type: ignore[method-assign, assignment]
    first, second = submit(engine, ask(A, "x")), submit(engine, ask(B, "x"))
    with pytest.raises(GenerationError, match="failed with 1"):
        first.result(WAIT_S)
    assert len(logprobs(second)) == 6
    assert len(answer(engine, TEXT)) == 6
    assert len(answer(engine, ask(A, "x"))) == 6


# Caches


@each_kind
def test_a_picture_of_the_same_size_is_another(make: Callable[..., InferenceEngine]) -> None:
    fresh = {}
    for name, pixels in (("a", A), ("b", B), ("c", C)):
        engine = make(1)
        fresh[name] = pixels, answer(engine, ask("see", pixels, "what?"))
        engine.close()
    engine = make(2)
    for name in "abcabacbbca":
        pixels, expected = fresh[name]
        assert np.allclose(answer(engine, ask("see", pixels, "what?")), expected, atol=ROUNDING)
    for a, b in ("ab", "bc", "ca"):
        assert not np.allclose(fresh[a][1], fresh[b][1], atol=1e-3)


@each_kind
def test_evicted_embeddings_are_computed_again(make: Callable[..., InferenceEngine]) -> None:
    messages = ask(A, "x", B, "y")
    engine = make(1)
    expected = answer(engine, messages)
    small = make(1)
    small.media.cache.max_bytes = 1
    for _ in range(2):
        assert np.allclose(answer(small, messages), expected, atol=ROUNDING)
        assert len(small.media.cache) == 1
        assert np.allclose(answer(small, messages, cache_prompt=False), expected, atol=ROUNDING)
    assert small.media.cache.n_encoded > 2


def test_two_requests_encode_the_same_picture_once(engine: InferenceEngine) -> None:
    gate = Gate(engine)
    handles = [submit(engine, ask(A, "x")) for _ in range(3)]
    assert gate.started.wait(WAIT_S)
    gate.opened.set()
    first, *others = [logprobs(handle) for handle in handles]
    for other in others:
        assert np.allclose(other, first, atol=ROUNDING)
    assert len(gate.chunks) == 1


def test_without_a_prompt_cache(engine: InferenceEngine) -> None:
    expected = answer(engine, ask(A, "x"))
    handle = submit(engine, ask(A, "x"), cache_prompt=False)
    assert np.allclose(logprobs(handle), expected, atol=ROUNDING)
    assert handle.stats.n_reused == 0
    assert engine.media.cache.n_encoded == 1


# Full contexts


@each_kind
def test_preempted_requests_with_pictures(make: Callable[..., InferenceEngine]) -> None:
    asked = [ask("see", p, "what?") for p in (A, B, C)]
    engine = make(1)
    expected = [answer(engine, messages, n=60, ignore_eos=True) for messages in asked]
    shared = make(3, n_ctx=256, n_kv_tokens=256, block_size=8)
    handles = [submit(shared, messages, 60, ignore_eos=True) for messages in asked]
    found = [logprobs(handle) for handle in handles]
    assert shared.stats.n_preemptions > 0
    for got, wanted in zip(found, expected, strict=True):
        assert len(got) == len(wanted) == 60
        assert np.allclose(got[:6], wanted[:6], atol=ROUNDING)  # later tokens may differ


@pytest.mark.parametrize("policy", ["truncate_left", "truncate_middle"])
@each_kind
def test_truncated_prompts_keep_pictures_whole(
    make: Callable[..., InferenceEngine], policy: str
) -> None:
    engine = make(2, n_ctx=128, context_policy=policy)
    for n in range(20, 90, 7):
        handle = submit(engine, ask("x" * n, A, "y" * n, B, "z" * n), 8)
        assert len(logprobs(handle)) > 0
        request = handle.request
        assert request.stats.n_truncated > 0 or len(request.prompt) <= 120
        n_cells = sum(span.media.n_cells for span in request.prompt.spans())
        assert sum(token < 0 for token in request.prompt) == n_cells


@pytest.mark.parametrize("n_parallel", [1, 2])
def test_the_oldest_turns_with_pictures_are_dropped(
    kind: str, files: dict[str, Files], n_parallel: int
) -> None:
    turns: list[dict[str, Any]] = []
    with Llama(
        files[kind].model,
        n_ctx=160,
        n_threads=1,
        n_parallel=n_parallel,
        context_policy="drop_oldest_turns",
    ) as llm:
        for i in range(8):
            turns += ask(picture(i), f"what is number {i}?")
            done = llm.create_chat_completion(turns, max_tokens=8, temperature=0)
            assert done["usage"]["prompt_tokens"] <= llm.n_ctx - 8
            turns.append({"role": "assistant", "content": "ok"})
        assert done["usage"]["prompt_tokens"] > 60
        assert llm.engine.media.cache.n_encoded == 8


def test_stopping_criteria_see_no_cells_of_pictures(engine: InferenceEngine) -> None:
    seen = []

    def stop(ids: NDArray[np.int32], _: NDArray[np.float32]) -> bool:
        seen.append(ids)
        return len(seen) == 3

    handle = submit(engine, ask(A, "x"), stopping_criteria=[stop])
    assert len(logprobs(handle)) == 2
    assert (seen[0] == -1).sum() == handle.request.prompt.spans()[0].media.n_cells
