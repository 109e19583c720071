"""Metrics of an InferenceEngine: counts, rates, latencies, and one record per step."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from operator import add
from typing import Any, NamedTuple

from .kv_cache import CacheStats
from .request import Request, RequestState

__all__ = [
    "EngineStats",
    "Histogram",
    "Latency",
    "Metrics",
    "RequestStep",
    "RequestTotals",
    "StepStats",
]

_RECENT = 1000  # requests in the latency percentiles
_WINDOW_S = 10.0
_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))


class RequestStep(NamedTuple):
    """What one step of an engine did for one request.

    Attributes:
        number: Number of the request, unique in this process.
        id: Its name.
        created_s: When it was submitted, `time.monotonic()`.
        state: PREFILLING or DECODING, before the step.
        n_tokens: Its decoded tokens.
    """

    number: int
    id: str
    created_s: float
    state: RequestState
    n_tokens: int


class StepStats(NamedTuple):
    """One step of an engine.

    Attributes:
        time_s: When it ended, `time.monotonic()`.
        seconds: Its duration.
        n_running: Running requests.
        n_waiting: Waiting requests.
        n_tokens: Decoded tokens.
        n_generated: Generated tokens.
        n_blocks: Blocks of the KV cache in use.
        requests: The requests with tokens in it; empty unless `InferenceEngine.records_requests`.
    """

    time_s: float
    seconds: float
    n_running: int
    n_waiting: int
    n_tokens: int
    n_generated: int
    n_blocks: int
    requests: tuple[RequestStep, ...] = ()


class Latency(NamedTuple):
    """Percentiles in seconds over the last 1,000 finished requests."""

    p50: float
    p95: float
    p99: float


class Histogram(NamedTuple):
    """Values of the requests so far, by size.

    Attributes:
        bounds: Upper bounds of the buckets, inclusive; the last bucket has none.
        counts: Number of values in each bucket alone, one more than bounds.
        total: Sum of the values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    def after(self, earlier: Histogram) -> Histogram:
        """Return the values of both; the bounds are the same."""
        counts = tuple(map(add, self.counts, earlier.counts))
        return Histogram(self.bounds, counts, self.total + earlier.total)


class RequestTotals(NamedTuple):
    """Totals of the requests that have ended; histograms are of complete answers.

    Requests that ended before their prompt was evaluated have no tokens and times here.

    Attributes:
        n_length: Complete answers that `max_tokens` or the context cut off.
        n_prompt: Prompt tokens.
        n_reused: Prompt tokens that were in the KV cache.
        n_generated: Generated tokens.
        n_after_first: Generated tokens without the first one of each answer.
        n_tokens_max: Most tokens of one request, prompt and answer.
        prefill_s: Seconds from the queue to the first token, added up.
        decode_s: Seconds from the first token to the end of longer answers, added up.
        queue_s: Seconds in the queue.
        time_to_first_token_s: Seconds from submission to the first token.
        inter_token_s: Mean seconds between the tokens of a request of at least two.
        total_s: Seconds from submission to the end.
        prompt_tokens: Prompt tokens of a request.
        generated_tokens: Generated tokens of a request.
    """

    n_length: int
    n_prompt: int
    n_reused: int
    n_generated: int
    n_after_first: int
    n_tokens_max: int
    prefill_s: float
    decode_s: float
    queue_s: Histogram
    time_to_first_token_s: Histogram
    inter_token_s: Histogram
    total_s: Histogram
    prompt_tokens: Histogram
    generated_tokens: Histogram

    def after(self, earlier: RequestTotals) -> RequestTotals:
        """Return the totals of both."""
        both: Any = zip(self, earlier, strict=True)
        added: list[Any] = [a.after(b) if isinstance(a, Histogram) else a + b for a, b in both]
        longest = max(self.n_tokens_max, earlier.n_tokens_max)
        return RequestTotals(*added)._replace(n_tokens_max=longest)


class EngineStats(NamedTuple):
    """Counts, rates and latencies so far.

    Attributes:
        n_waiting: Waiting requests.
        n_running: Running requests.
        n_finished: Requests whose answers are complete.
        n_failed: Requests that failed.
        n_cancelled: Requests that were cancelled or missed their deadline.
        n_preemptions: Number of preemptions.
        n_steps: Number of steps.
        n_decoded: Decoded tokens, prompts and answers.
        n_generated: Generated tokens.
        tokens_per_s: Generated tokens per second, over the last ten seconds.
        queue_s: Time in the queue.
        time_to_first_token_s: From submission to the first token.
        inter_token_s: Mean time between tokens of a request.
        total_s: From submission to the end.
        cache: Occupancy and counts of the KV cache.
        n_step_requests: Requests in each step, added up.
        requests: Totals of the requests that have ended.
    """

    n_waiting: int
    n_running: int
    n_finished: int
    n_failed: int
    n_cancelled: int
    n_preemptions: int
    n_steps: int
    n_decoded: int
    n_generated: int
    tokens_per_s: float
    queue_s: Latency
    time_to_first_token_s: Latency
    inter_token_s: Latency
    total_s: Latency
    cache: CacheStats
    n_step_requests: int
    requests: RequestTotals

    def after(self, earlier: EngineStats) -> EngineStats:
        """Return these numbers with the counts of an engine before this one added."""
        cache, old = self.cache, earlier.cache
        added = {name: getattr(self, name) + getattr(earlier, name) for name in _COUNTS}
        in_cache = {name: getattr(cache, name) + getattr(old, name) for name in _CACHE_COUNTS}
        return self._replace(
            **added,
            cache=cache._replace(**in_cache),
            requests=self.requests.after(earlier.requests),
        )


_CACHE_COUNTS = ("n_lookup_tokens", "n_hit_tokens", "n_evictions", "n_restored_tokens")
_COUNTS = (
    "n_finished", "n_failed", "n_cancelled", "n_preemptions", "n_steps", "n_decoded",
    "n_generated", "n_step_requests",
)  # fmt: skip


class Metrics:
    """Collects the numbers of `EngineStats`."""

    def __init__(self) -> None:
        self._ended = dict.fromkeys(RequestState, 0)
        self._n_steps = self._n_decoded = self._n_generated = self._n_step_requests = 0
        self._totals = _Totals()
        self._rate: deque[tuple[float, int]] = deque()
        self._samples: tuple[deque[float], ...] = tuple(deque(maxlen=_RECENT) for _ in range(4))

    def step(self, n_tokens: int, n_generated: int, seconds: float, n_requests: int) -> None:
        """Count a step."""
        began = time.monotonic() - seconds
        self._n_steps += 1
        self._n_decoded += n_tokens
        self._n_generated += n_generated
        self._n_step_requests += n_requests
        self._rate.append((began, n_generated))
        while self._rate[0][0] < began - _WINDOW_S:
            self._rate.popleft()

    def end(self, request: Request) -> None:
        """Count a request that has ended."""
        self._ended[request.state] += 1
        stats, total = request.stats, time.monotonic() - request.created_s
        self._totals.end(request, total)
        if request.state is not RequestState.FINISHED or not stats.n_generated:
            return
        gap = stats.decode_s / max(1, stats.n_generated - 1)
        times = (stats.queue_s, stats.time_to_first_token_s, gap, total)
        for sample, seconds in zip(self._samples, times, strict=True):
            sample.append(seconds)

    def stats(
        self, n_waiting: int, n_running: int, n_preemptions: int, cache: CacheStats
    ) -> EngineStats:
        """Return the numbers so far."""
        now = time.monotonic()
        rate = [(began, n) for began, n in list(self._rate) if began >= now - _WINDOW_S]
        seconds = now - rate[0][0] if rate else 0.0
        queue, first, gap, total = (_latency(list(sample)) for sample in self._samples)
        return EngineStats(
            n_waiting,
            n_running,
            self._ended[RequestState.FINISHED],
            self._ended[RequestState.FAILED],
            self._ended[RequestState.CANCELLED],
            n_preemptions,
            self._n_steps,
            self._n_decoded,
            self._n_generated,
            sum(n for _, n in rate) / seconds if seconds else 0.0,
            queue,
            first,
            gap,
            total,
            cache,
            self._n_step_requests,
            self._totals.snapshot(),
        )


class _Buckets:
    """A histogram that grows."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts, self._total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        value = max(value, 0.0)
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> Histogram:
        return Histogram(self._bounds, tuple(self._counts), self._total)


class _Totals:
    """Collects the numbers of `RequestTotals`."""

    def __init__(self) -> None:
        self._n_length = self._n_prompt = self._n_reused = 0
        self._n_generated = self._n_after_first = self._n_tokens_max = 0
        self._prefill_s = self._decode_s = 0.0
        self._queue, self._first, self._gap, self._total = (_Buckets(_SECONDS) for _ in range(4))
        self._prompt, self._generated = _Buckets(_TOKENS), _Buckets(_TOKENS)

    def end(self, request: Request, total_s: float) -> None:
        """Count a request that has ended, *total_s* after its submission."""
        stats, is_complete = request.stats, request.state is RequestState.FINISHED
        n = stats.n_generated
        if not n and not is_complete:
            return
        self._n_prompt += stats.n_prompt
        self._n_reused += stats.n_reused
        self._n_generated += n
        self._n_tokens_max = max(self._n_tokens_max, stats.n_prompt + n)
        # Without a token, the end of the prompt was the end of the request.
        self._prefill_s += max(0.0, stats.prefill_s if n else total_s - stats.queue_s)
        if n > 1:
            self._n_after_first += n - 1
            self._decode_s += max(0.0, stats.decode_s)
        if not is_complete:
            return
        self._n_length += stats.finish_reason in ("length", "context")
        self._queue.add(stats.queue_s)
        self._total.add(total_s)
        self._prompt.add(stats.n_prompt)
        self._generated.add(n)
        if n:
            self._first.add(stats.time_to_first_token_s)
        if n > 1:
            self._gap.add(stats.decode_s / (n - 1))

    def snapshot(self) -> RequestTotals:
        """Return the numbers so far."""
        return RequestTotals(
            self._n_length,
            self._n_prompt,
            self._n_reused,
            self._n_generated,
            self._n_after_first,
            self._n_tokens_max,
            self._prefill_s,
            self._decode_s,
            self._queue.snapshot(),
            self._first.snapshot(),
            self._gap.snapshot(),
            self._total.snapshot(),
            self._prompt.snapshot(),
            self._generated.snapshot(),
        )


def _latency(seconds: Sequence[float]) -> Latency:
    if not seconds:
        return Latency(0.0, 0.0, 0.0)
    ordered, last = sorted(seconds), len(seconds) - 1
    return Latency(*(ordered[round(last * share)] for share in (0.5, 0.95, 0.99)))
