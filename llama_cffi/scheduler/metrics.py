"""Metrics of an InferenceEngine: counts, rates, latencies, and one record per step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from .kv_cache import CacheStats
from .request import Request, RequestState

__all__ = ["EngineStats", "Latency", "Metrics", "StepStats"]

_RECENT = 1000  # requests in the latency percentiles
_WINDOW_S = 10.0


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
    """

    time_s: float
    seconds: float
    n_running: int
    n_waiting: int
    n_tokens: int
    n_generated: int
    n_blocks: int


class Latency(NamedTuple):
    """Percentiles in seconds over the last 1,000 finished requests."""

    p50: float
    p95: float
    p99: float


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


class Metrics:
    """Collects the numbers of `EngineStats`."""

    def __init__(self) -> None:
        self._ended = dict.fromkeys(RequestState, 0)
        self._n_steps = self._n_decoded = self._n_generated = 0
        self._rate: deque[tuple[float, int]] = deque()
        self._samples: tuple[deque[float], ...] = tuple(deque(maxlen=_RECENT) for _ in range(4))

    def step(self, n_tokens: int, n_generated: int, seconds: float) -> None:
        """Count a step."""
        began = time.monotonic() - seconds
        self._n_steps += 1
        self._n_decoded += n_tokens
        self._n_generated += n_generated
        self._rate.append((began, n_generated))
        while self._rate[0][0] < began - _WINDOW_S:
            self._rate.popleft()

    def end(self, request: Request) -> None:
        """Count a request that has ended."""
        self._ended[request.state] += 1
        stats, total = request.stats, time.monotonic() - request.created_s
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
        )


def _latency(seconds: Sequence[float]) -> Latency:
    if not seconds:
        return Latency(0.0, 0.0, 0.0)
    ordered, last = sorted(seconds), len(seconds) - 1
    return Latency(*(ordered[round(last * share)] for share in (0.5, 0.95, 0.99)))
