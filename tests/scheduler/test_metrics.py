"""Metrics: counts, rates and latencies, with a clock set by the test."""

from __future__ import annotations

import pytest

from llama_cffi import KVCache, Request, RequestState
from llama_cffi.scheduler import metrics as module
from llama_cffi.scheduler.metrics import EngineStats, Metrics

CACHE = KVCache(2, 64).stats


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def stats(metrics: Metrics) -> EngineStats:
    return metrics.stats(n_waiting=1, n_running=2, n_preemptions=3, cache=CACHE)


def test_rates_are_of_the_last_ten_seconds(clock: Clock) -> None:
    metrics = Metrics()
    assert stats(metrics).tokens_per_s == 0
    for _ in range(20):
        clock.now += 0.5
        metrics.step(n_tokens=9, n_generated=4, seconds=0.5, n_requests=3)
    found = stats(metrics)
    assert found.tokens_per_s == pytest.approx(8)
    assert (found.n_steps, found.n_decoded, found.n_generated) == (20, 180, 80)
    assert found.n_step_requests == 60
    assert (found.n_waiting, found.n_running, found.n_preemptions) == (1, 2, 3)
    clock.now += 5
    assert stats(metrics).tokens_per_s == pytest.approx(4, abs=0.5)
    clock.now += 100
    assert stats(metrics).tokens_per_s == 0


def finished(state: RequestState, total_s: float, now: float) -> Request:
    request = Request([1], 10)
    request.created_s = now - total_s
    request._state = state
    request.stats.n_generated, request.stats.decode_s = 5, total_s / 2
    request.stats.queue_s, request.stats.time_to_first_token_s = total_s / 4, total_s / 2
    return request


def test_latencies(clock: Clock) -> None:
    metrics = Metrics()
    for i in range(1, 101):
        metrics.end(finished(RequestState.FINISHED, i, clock.now))
    metrics.end(finished(RequestState.FAILED, 1e6, clock.now))
    metrics.end(finished(RequestState.CANCELLED, 1e6, clock.now))
    found = stats(metrics)
    assert (found.n_finished, found.n_failed, found.n_cancelled) == (100, 1, 1)
    assert found.total_s.p50 == pytest.approx(50, abs=1)
    assert found.total_s.p95 == pytest.approx(95, abs=1)
    assert found.total_s.p99 == pytest.approx(99, abs=1)
    assert found.queue_s.p50 == pytest.approx(found.total_s.p50 / 4)
    assert found.inter_token_s.p95 == pytest.approx(found.total_s.p95 / 8)
    for _ in range(1000):
        metrics.end(finished(RequestState.FINISHED, 2.0, clock.now))
    assert stats(metrics).total_s == (2.0, 2.0, 2.0)  # the last 1,000 count


def test_totals_of_ended_requests(clock: Clock) -> None:
    metrics = Metrics()
    complete = finished(RequestState.FINISHED, 8.0, clock.now)
    complete.stats.n_reused, complete.stats.finish_reason = 1, "length"
    metrics.end(complete)
    metrics.end(finished(RequestState.CANCELLED, 8.0, clock.now))
    waiting = finished(RequestState.CANCELLED, 8.0, clock.now)
    waiting.stats.n_generated = 0
    metrics.end(waiting)
    found = stats(metrics).requests
    # A cancelled answer has its tokens, one that never began has none.
    assert (found.n_length, found.n_prompt, found.n_reused) == (1, 2, 1)
    assert (found.n_generated, found.n_after_first, found.n_tokens_max) == (10, 8, 6)
    assert found.decode_s == 8.0
    # Histograms are of complete answers.
    for histogram, value in [
        (found.queue_s, 2.0),
        (found.time_to_first_token_s, 4.0),
        (found.inter_token_s, 1.0),
        (found.total_s, 8.0),
        (found.prompt_tokens, 1.0),
        (found.generated_tokens, 5.0),
    ]:
        assert (sum(histogram.counts), histogram.total) == (1, value)
        (index,) = (i for i, n in enumerate(histogram.counts) if n)
        assert histogram.bounds[index] >= value
        assert index == 0 or histogram.bounds[index - 1] < value


def test_values_above_every_bound_are_in_the_last_bucket(clock: Clock) -> None:
    metrics = Metrics()
    metrics.end(finished(RequestState.FINISHED, 1e5, clock.now))
    total = stats(metrics).requests.total_s
    assert total.counts[-1] == 1
    assert len(total.counts) == len(total.bounds) + 1


def test_counts_go_on_after_an_engine_before_and_states_do_not(clock: Clock) -> None:
    metrics = Metrics()
    metrics.step(n_tokens=9, n_generated=4, seconds=0.5, n_requests=3)
    cache = CACHE._replace(
        n_lookup_tokens=5, n_hit_tokens=4, n_evictions=2, n_restored_tokens=3, n_stored=6
    )
    one = stats(metrics)._replace(cache=cache)
    both = one.after(one)
    assert (both.n_steps, both.n_decoded, both.n_step_requests) == (2, 18, 6)
    assert (both.n_waiting, both.n_running) == (1, 2)
    assert both.cache == cache._replace(
        n_lookup_tokens=10, n_hit_tokens=8, n_evictions=4, n_restored_tokens=6
    )
