"""The features of CortexStream, and its list of planned tests."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
from lines import MODEL, QUESTION, line, refused, says

from llama_cffi import (
    DecodeAbortedError,
    Engine,
    InferenceEngine,
    KVCache,
    Model,
    QueueFullError,
    Request,
    RequestState,
    SamplingParams,
    Scheduler,
    ValidationError,
)
from llama_cffi.binding import Candidates
from llama_cffi.generation.sampler_chains import build_chain
from llama_cffi.scheduler import TokenResult

PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
ENDLESS: dict[str, Any] = {"temperature": 0, "logit_bias": dict.fromkeys(range(5), -100.0)}


def serve(n_parallel: int = 4, n_ctx: int = 256, **options: Any) -> InferenceEngine:
    """Return an engine for the demo model."""
    return InferenceEngine(MODEL, n_parallel, n_ctx, **{"n_threads": 1, **options})


def probabilities(model: Model, logits: list[float], **params: Any) -> np.ndarray[Any, Any]:
    """Return the sampled frequencies of tokens with *logits*; other tokens are forbidden."""
    scores = np.full(model.vocab.n_tokens, -math.inf, np.float32)
    scores[: len(logits)] = logits
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1, **params}
    chain = build_chain(model, SamplingParams(**settings))
    candidates = Candidates(model)
    found: Counter[int] = Counter()
    for _ in range(2000):
        candidates.fill(scores)
        found[chain.choose(candidates)] += 1
    return np.array([found[token] / 2000 for token in range(len(logits))])


@line("cortexstream", "Request: id, fixed prompt, growing answer, own sampling, callback, times")
def _() -> None:
    pieces: list[str] = []
    with serve() as engine:
        sampling = SamplingParams(temperature=0, top_k=3, top_p=0.9)
        handle = engine.submit(PROMPT, 8, sampling=sampling, callback=pieces.append)
        request = handle.request
        assert handle.result() == "".join(pieces) == "42"
        assert (request.id, request.sampling, request.max_tokens) == (
            f"request-{request.number}", sampling, 8
        )  # fmt: skip
        assert request.prompt_tokens == tuple(engine.tokenize(PROMPT, parse_special=True))
        assert engine.detokenize(request.generated_tokens) == "42"
        assert request.n_generated == len(request.generated_tokens)
        assert request.finished
        assert 0 <= time.monotonic() - request.created_s < 60


@line(
    "cortexstream",
    "states Pending, Prefilling, Decoding, Finished, Failed, Cancelled and their moves",
)
def _() -> None:
    legal = {
        ("pending", "encoding"), ("encoding", "pending"),  # pictures, which theirs does not have
        ("pending", "prefilling"), ("prefilling", "decoding"), ("decoding", "finished"),
        ("prefilling", "pending"), ("decoding", "pending"),  # preempted
    }  # fmt: skip
    legal |= {
        (a, b)
        for a in ("pending", "encoding", "prefilling", "decoding")
        for b in ("failed", "cancelled")
    }
    for a, b in itertools.product(RequestState, repeat=2):
        request = Request([1], 1)
        request._state = a
        if (a.value, b.value) in legal:
            request.move(b)
            assert request.state is b
        else:
            assert a.value in refused(ValidationError, lambda r=request, b=b: r.move(b))  # type: ignore[misc]


@line(
    "cortexstream", "Scheduler: submit, accept, batches, hasWork, FIFO; 1 to 256 running requests"
)
def _() -> None:
    for most in (1, 4, 32, 256):
        scheduler = Scheduler(KVCache(most, most * 64), max_running=most, n_batch=512)
        requests = [Request([i, 1, 2], 2) for i in range(most + 3)]
        for request in requests:
            scheduler.add(request)
        order: list[Request] = []
        while scheduler.has_work:
            plan = scheduler.schedule()
            assert 0 < len(plan.chunks) <= most
            results = {}
            for chunk in plan.chunks:
                ends = "length" if chunk.request.n_generated else ""
                tokens = (7,) if chunk.samples else ()
                results[chunk.request] = TokenResult(tokens, finish_reason=ends if tokens else "")
            order += scheduler.update(plan, results)
        assert sorted(r.number for r in order) == [r.number for r in requests]
        assert order[-1] in requests[-most:]
    for wrong in (0, 257):
        refused(ValidationError, lambda n=wrong: serve(n))  # type: ignore[misc]


@line("cortexstream", "submit from many threads; an error if the queue is full")
def _() -> None:
    with serve(max_waiting=500) as engine:
        texts: list[str] = []

        def work() -> None:
            texts.extend(engine.submit(PROMPT, 8, temperature=0).result() for _ in range(4))

        threads = [threading.Thread(target=work) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == ["42"] * 64
    with serve(1, max_waiting=1, start=False) as engine:
        engine.submit("a", 1)
        engine.submit("a", 1)
        assert "max_waiting" in refused(QueueFullError, lambda: engine.submit("a", 1))


@line("cortexstream", "KVCache: blocks per request, free, list, clear, statistics, LRU, warm-up")
def _() -> None:
    cache = KVCache(4, 256, 16)
    first, second = cache.acquire(range(40)), cache.acquire(range(100, 120))
    assert first is not None
    assert second is not None
    assert [len(cache.blocks_of(lease.seq_id)) for lease in (first, second)] == [3, 2]
    assert cache.stats.n_free == 16 - 5
    cache.append(first.seq_id, range(40))
    cache.append(second.seq_id, range(100, 120))
    cache.release(first.seq_id)
    assert cache.n_matched(range(40)) > 30
    again = cache.acquire([*range(40), 1, 2])
    assert again is not None
    assert again.n_cached == 40
    cache.release(again.seq_id, keep=False)
    cache.release(second.seq_id, keep=False)
    cache.clear()
    assert (cache.stats.n_free, cache.stats.n_cached) == (16, 0)
    with serve() as engine:
        engine.warm_up()
        assert engine.stats.n_finished == 1


@line("cortexstream", "full cache: requests are preempted, none is lost; all blocks are freed")
def _() -> None:
    with serve(8, n_kv_tokens=256, block_size=8) as engine:
        handles = [engine.submit([30 + i, 40, 50], 50, **ENDLESS) for i in range(8)]
        assert all(handle.result() for handle in handles)
        assert engine.stats.n_preemptions > 0
        engine.cache_clear()
        engine.submit([65], 1).result()
        cache = engine.stats.cache
        assert cache.n_free + cache.n_cached == cache.n_blocks
        assert cache.n_cached <= 1


@line("cortexstream", "ModelBackend: prefill and decode in one batch give the same tokens as alone")
def _() -> None:
    prompts = [
        f"<|im_start|>user\nWhat is {i} + {2 * i}?<|im_end|>\n<|im_start|>assistant\n"
        for i in range(12)
    ]
    with Engine(MODEL, 256, n_threads=1) as alone:
        tokens = [alone.tokenize(prompt, parse_special=True) for prompt in prompts]
        expected = [alone.generate_tokens(prompt, 8, temperature=0) for prompt in tokens]
    with serve(n_batch=64, n_prefill_chunk=8) as engine:
        handles = [engine.submit(prompt, 8, temperature=0) for prompt in tokens]
        for handle in handles:
            handle.result()
        assert [handle.request.generated_tokens for handle in handles] == expected


@line(
    "cortexstream", "distributions: greedy, top-k, top-p, both, temperature, penalty, large logits"
)
def _() -> None:
    with Model(MODEL) as model:
        logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
        for params, expected in (
            ({}, [0.5, 0.3, 0.15, 0.05]),
            ({"temperature": 0}, [1, 0, 0, 0]),
            ({"top_k": 2}, [0.625, 0.375, 0, 0]),
            ({"top_p": 0.9}, [0.526, 0.316, 0.158, 0]),
            ({"top_k": 3, "top_p": 0.7}, [0.625, 0.375, 0, 0]),
            ({"temperature": 0.5}, [0.685, 0.247, 0.062, 0.007]),
            ({"temperature": 2.0}, [0.379, 0.293, 0.207, 0.12]),
        ):
            found = probabilities(model, logits, **params)
            assert np.abs(found - expected).max() < 0.05, (params, found)
        huge = probabilities(model, [1e30, 1e30, -1e30])
        assert np.abs(huge - [0.5, 0.5, 0]).max() < 0.05
        for wrong in (math.nan, math.inf):
            refused(Exception, lambda x=wrong: probabilities(model, [x, 0.0]))  # type: ignore[misc]
        for wrong_params in ({"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"top_p": 1.5}):
            refused(ValidationError, lambda p=wrong_params: SamplingParams(**p))  # type: ignore[misc]


@line("cortexstream", "determinism: the same seed gives the same text, with any other requests")
def _() -> None:
    with serve() as engine:
        options = {"temperature": 1.5, "seed": 5}
        texts = {engine.generate(PROMPT, 20, **options) for _ in range(3)}
        others = [engine.submit("Once upon", 20, temperature=2.0) for _ in range(6)]
        handles = [engine.submit(PROMPT, 20, **options) for _ in range(4)]
        texts |= {handle.result() for handle in handles}
        assert len(texts) == 1
        assert len({other.result() for other in others}) > 1


@line("cortexstream", "InferenceEngine: run, step, shutdown, statistics, active requests")
def _() -> None:
    engine = serve(start=False)
    handle = engine.submit(PROMPT, 8, temperature=0)
    assert engine.active_requests == [handle.request]
    assert engine.step()
    thread = threading.Thread(target=engine.run)
    thread.start()
    assert handle.result() == "42"
    engine.shutdown()
    thread.join()
    stats = engine.stats
    assert (stats.n_finished, stats.n_running, stats.n_waiting) == (1, 0, 0)
    assert stats.n_decoded >= len(handle.request.prompt_tokens)
    assert 0 < stats.time_to_first_token_s.p50 <= stats.total_s.p99
    refused(ValidationError, lambda: engine.submit(PROMPT))


@line("cortexstream", "errors: a stuck, late or failing request does not affect the others")
def _() -> None:
    cancelled = threading.Event()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("mine")

    def past_its_deadline(_: Any) -> None:
        time.sleep(0.1)

    def until_cancelled(_: Any) -> None:
        assert cancelled.wait(10)

    with serve() as engine:
        good = [engine.submit(PROMPT, 8, temperature=0) for _ in range(4)]
        bad = [
            engine.submit(PROMPT, 100, callback=fail),
            engine.submit(PROMPT, 100, logits_processor=[fail]),
            engine.submit(PROMPT, 200, timeout_s=0.05, callback=past_its_deadline, **ENDLESS),
            engine.submit(PROMPT, 200, callback=until_cancelled, **ENDLESS),
        ]
        bad[3].cancel()
        cancelled.set()
        for handle, error in zip(
            bad, [ZeroDivisionError] * 2 + [DecodeAbortedError] * 2, strict=True
        ):
            refused(error, handle.result)
        assert [handle.result() for handle in good] == ["42"] * 4
        stats = engine.stats
        assert (stats.n_finished, stats.n_failed, stats.n_cancelled) == (4, 2, 2)


@line("cortexstream", "leaks: no handle, block or chain is left after 500 requests")
def _() -> None:
    with serve(8, 64) as engine:
        for _ in range(5):
            for handle in [engine.submit([65, 66 + i % 9], 2) for i in range(100)]:
                handle.result()
        assert engine.active_requests == []
        assert engine._core.handles == {}
        cache = engine.stats.cache
        assert cache.n_free + cache.n_cached == cache.n_blocks


@line("cortexstream", "fairness: in order of arrival, by priority, no starvation by long requests")
def _() -> None:
    order: list[str] = []
    with serve(2, start=False) as engine:
        for name, n, priority in (("long", 120, 0), ("a", 2, 0), ("b", 2, 0), ("first", 2, 3)):
            handle = engine.submit([65, 66], n, priority=priority, **ENDLESS)
            handle.future.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
        while engine.step():
            pass
    assert order == ["first", "a", "b", "long"]


@line(
    "cortexstream", "streaming: text token by token, in whole characters, that joins to the answer"
)
def _() -> None:
    text = "añ€🙂" * 3
    with serve() as engine:
        handles = [engine.submit("go", 100, grammar=says(text)) for _ in range(4)]
        for handle in handles:
            assert "".join(handle) == text
        pieces = list(engine.submit("go", 100, grammar=says(text), listens=True))
        assert len(pieces) > 3
        for handle in [engine.submit(PROMPT, 200, **ENDLESS)]:
            for _ in handle:
                break
            refused(DecodeAbortedError, handle.result)
