"""What CortexStream's headers promise, through llama_cffi. Differences: docs/cyllama.md.

https://github.com/pythongiant/CortexStream. Its own test files are empty. Its list of planned tests
is gone through by tools/acceptance/cortexstream.py; this is the rest.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_cffi import (
    CancelledError,
    ContextOverflowError,
    InferenceEngine,
    KVCache,
    Model,
    ModelLoadError,
    QueueFullError,
    Request,
    RequestState,
    SamplingParams,
    Scheduler,
    ValidationError,
)
from llama_cffi.demo import model_path

PROMPT = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
ENDLESS: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(demo_f32: Path) -> Iterator[Model]:
    with Model(demo_f32) as model:
        yield model


@pytest.fixture
def engine(model: Model) -> Iterator[InferenceEngine]:
    with InferenceEngine(model, 4, 256, n_threads=1) as engine:
        yield engine


# request.h, response.h


def test_a_request_has_its_fixed_and_its_growing_part(engine: InferenceEngine) -> None:
    before = time.monotonic()
    sampling = SamplingParams(temperature=0)
    handle = engine.submit(PROMPT, 8, sampling=sampling, stop=["never"], id="user_001", priority=2)
    assert handle.result() == "42"
    request, stats = handle.request, handle.stats
    assert (request.id, request.max_tokens, request.priority) == ("user_001", 8, 2)
    assert request.sampling is sampling
    assert request.stop == ("never",)
    assert list(request.prompt_tokens) == engine.tokenize(PROMPT, parse_special=True)
    assert engine.detokenize(request.generated_tokens) == handle.text == "42"
    assert request.n_generated == len(request.generated_tokens) == stats.n_generated
    assert request.finished
    assert request.error is None
    assert before <= request.created_s <= time.monotonic()
    assert stats.time_to_first_token_s > 0
    assert stats.n_prompt == len(request.prompt_tokens)
    assert stats.decode_tokens_per_s > 0


def test_every_reason_of_an_end(engine: InferenceEngine) -> None:
    (token,) = engine.tokenize("2", add_special=False)[-1:]

    def ends(reason: str, text: str, **options: Any) -> None:
        handle = engine.submit(PROMPT, options.pop("max_tokens", 8), temperature=0, **options)
        assert handle.result() == text
        assert handle.stats.finish_reason == reason

    ends("eog", "42")
    ends("length", "4", max_tokens=1)
    ends("stop", "4", stop="2")
    ends("stop", "4", stop=[token])
    endless = engine.submit(PROMPT, 200, **ENDLESS)
    while not endless.request.generated_tokens:
        time.sleep(0.001)
    endless.cancel()
    with pytest.raises(CancelledError):
        endless.result()
    assert endless.stats.finish_reason == "cancel"
    assert endless.text  # what there was stays
    failing = engine.submit(PROMPT, 8, callback=lambda piece: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.result()
    assert failing.request.state is RequestState.FAILED
    assert isinstance(failing.request.error, ZeroDivisionError)


def test_tokens_arrive_with_their_text_and_probabilities(engine: InferenceEngine) -> None:
    handle = engine.submit(PROMPT, 8, temperature=0, logprobs=3)
    steps = [*handle.steps()]
    tokens = [step.token for step in steps if step.token is not None]
    assert tokens == handle.request.generated_tokens
    assert "".join(step.text for step in steps) == "42"
    for step in steps:
        if step.logprob is not None:  # SamplingMetadata: the chosen and the top tokens
            chosen, top = step.logprob.logprob, step.logprob.top
            assert len(top) == 3
            assert chosen == max(p for _, p in top)
            assert math.fsum(math.exp(p) for _, p in top) <= 1 + 1e-6
    assert sum(step.logprob is not None for step in steps) == len(tokens)


def test_a_request_of_nothing_or_too_much_is_refused(engine: InferenceEngine) -> None:
    for prompt, n, error in (
        ([], 4, ValidationError),
        ("", 4, ValidationError),
        ([65], 0, ValidationError),
        ([-1], 4, ValidationError),
        ([10**9], 4, ValidationError),
        ([65] * 256, 4, ContextOverflowError),
    ):
        with pytest.raises(error):
            engine.submit(prompt, n)  # type: ignore[arg-type]
    for wrong in ({"temperature": -1}, {"top_k": -5}, {"top_p": 0}, {"repeat_penalty": -1}):
        with pytest.raises(ValidationError):
            engine.submit(PROMPT, 4, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelLoadError):
        InferenceEngine("missing.gguf")


# scheduler.h


def test_order_is_priority_then_arrival_not_length() -> None:
    """Theirs prefills short prompts first, so long ones may wait; here nobody starves."""
    scheduler = Scheduler(KVCache(1, 256), max_running=1)
    requests = [Request([1] * n, 1, priority=p) for n, p in ((90, 0), (3, 0), (50, 1))]
    for request in requests:
        scheduler.add(request)
    assert scheduler.waiting == [requests[2], requests[0], requests[1]]
    assert scheduler.has_work
    assert scheduler.n_waiting == 3


@pytest.mark.parametrize("n_parallel", [1, 8, 32])
def test_batches_up_to_their_largest(model: Model, n_parallel: int) -> None:
    with InferenceEngine(model, n_parallel, 64, n_threads=1) as engine:
        handles = [engine.submit(PROMPT, 4, temperature=0) for _ in range(n_parallel + 2)]
        assert {handle.result() for handle in handles} == {"42"}
        most = max(step.n_running for step in engine.timeline)
        assert most <= n_parallel


def test_submitting_from_threads_while_it_runs(engine: InferenceEngine) -> None:
    texts: list[str] = []

    def work(i: int) -> None:
        texts.append(engine.submit(PROMPT, 8, temperature=0, id=f"{i}").result())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["42"] * 12
    assert engine.active_requests == []


# engine.h


def test_pause_and_resume(engine: InferenceEngine) -> None:
    engine.pause()
    handle = engine.submit(PROMPT, 8, temperature=0)
    with pytest.raises(TimeoutError):
        handle.result(timeout_s=0.05)
    assert handle.request.state is RequestState.PENDING
    engine.resume()
    assert handle.result() == "42"


def test_statistics(engine: InferenceEngine) -> None:
    for _ in range(3):
        engine.generate(PROMPT, 8, temperature=0)
    engine.submit(PROMPT, 8, temperature=0).cancel()
    with pytest.raises(ZeroDivisionError):
        engine.submit(PROMPT, 8, callback=lambda piece: 1 / 0).result()
    engine.generate(PROMPT, 8, temperature=0)  # after the cancelled one
    stats = engine.stats
    assert stats.n_finished + stats.n_cancelled == 5  # it may have been quicker
    assert stats.n_failed == 1
    assert stats.n_generated >= 4 * 2
    assert stats.total_s.p50 > 0
    assert (stats.n_running, stats.n_waiting) == (0, 0)


def test_a_full_queue_says_so(model: Model) -> None:
    with InferenceEngine(model, 1, 64, n_threads=1, max_waiting=1, start=False) as engine:
        handles = [engine.submit([65], 1) for _ in range(2)]
        with pytest.raises(QueueFullError, match="max_waiting"):
            engine.submit([65], 1)
        while engine.step():
            pass
        assert all(handle.done for handle in handles)


def test_shutdown_drains_or_cancels(model: Model) -> None:
    for drain in (True, False):
        engine = InferenceEngine(model, 2, 256, n_threads=1)
        handles = [engine.submit(PROMPT, 100, **ENDLESS) for _ in range(3)]
        engine.shutdown(drain=drain)
        engine.shutdown()
        states = {handle.request.state for handle in handles}
        assert states == {RequestState.FINISHED if drain else RequestState.CANCELLED}
        with pytest.raises(ValidationError, match="closed"):
            engine.submit(PROMPT)


# kv_cache.h


def test_blocks_are_counted_shared_and_freed() -> None:
    cache = KVCache(4, 256, 16, unified=True)
    first = cache.acquire(range(33))
    assert first is not None
    assert len(cache.blocks_of(first.seq_id)) == 3
    for token in range(33):
        cache.append(first.seq_id, [token])
    stats = cache.stats
    assert stats.n_blocks == 16
    assert stats.n_free == 13
    cache.release(first.seq_id)
    assert cache.n_matched(range(33)) >= 32  # kept for the next with the same prefix
    cache.clear()
    assert cache.stats.n_free == 16
    full = KVCache(2, 64, 16, unified=True)
    assert full.acquire(range(60)) is not None
    assert full.acquire(range(100, 110)) is None  # no free block


# sampler.h, tokenizer.h


def test_a_seed_fixes_the_draws_and_none_does_not(engine: InferenceEngine) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "top_k": 40, "top_p": 0.9}
    fixed = {engine.generate(PROMPT, 12, seed=7, **options) for _ in range(3)}
    assert len(fixed) == 1
    drawn = {engine.generate("Once upon a time", 12, seed=-1, **options) for _ in range(5)}
    assert len(drawn) > 1


def test_the_tokenizer_comes_with_the_model() -> None:
    with Model(model_path(), vocab_only=True) as model:
        vocab = model.vocab
        tokens = vocab.tokenize("Hello, 世界")
        assert vocab.detokenize(tokens) == "Hello, 世界"
        assert len(vocab) > 0
        assert vocab.eos is not None
        assert vocab.is_eog(vocab.eos)
        assert vocab.pad is None or 0 <= vocab.pad < len(vocab)
