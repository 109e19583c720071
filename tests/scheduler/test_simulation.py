"""tools/simulate: step costs, workload, and a small run of the real scheduler."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

# tools/ is not part of the package. Appended, so that the installed package precedes it.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from tools.simulate.__main__ import show, summary
from tools.simulate.costs import N_UBATCH, StepCost, interpolate, least, load
from tools.simulate.simulation import Policy, _n_before, capacity, simulate
from tools.simulate.workload import ANSWER, MOST_ANSWER, MOST_PROMPT, PROMPT, Job, workload

N = 200
POLICY = Policy("small", n_running=4)


@pytest.fixture(scope="module")
def cost() -> StepCost:
    return load("demo")


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    return workload(N)


@pytest.mark.parametrize(
    ("x", "y"), [(0, 0.0), (1, 1.0), (2, 2.0), (6, 4.0), (10, 6.0), (20, 11.0)]
)
def test_interpolate(x: int, y: float) -> None:
    assert interpolate([(1, 1.0), (2, 2.0), (10, 6.0)], x) == pytest.approx(y)


def test_the_price_of_a_step() -> None:
    prefill, decode = [(1, 1.0), (512, 512.0)], [(1, 1.5), (3, 4.5)]
    cost = StepCost(prefill, decode, 0.01, 0.001, [], "")
    assert cost.seconds([10], 0, 0, 0, True) == pytest.approx(10)
    assert cost.seconds([9, 1], 2, 0, 0, True) == pytest.approx(10 + 1)
    assert cost.seconds([10], 0, 100, 1000, True) == pytest.approx(10 + 1 + 1)
    assert cost.seconds([1024 + 7], 0, 0, 0, True) == pytest.approx(1024 + 7)


def test_sequences_with_own_cells_are_computed_in_equal_parts() -> None:
    cost = StepCost([(1, 10.0), (2, 11.0), (512, 521.0)], [(1, 1.0), (2, 2.0)], 0.0, 0.0, [], "")
    assert cost.seconds([1, 7, 1, 4], 0, 0, 0, True) == pytest.approx(9 + 13)
    parts = [4 * 1, 2 * 3, 1 * 3]
    assert cost.seconds([1, 7, 1, 4], 0, 0, 0, False) == pytest.approx(sum(9 + n for n in parts))


def test_the_least_of_two_measurements() -> None:
    a = StepCost([(1, 1.0), (2, 4.0)], [(1, 2.0), (2, 2.5)], 0.1, 0.0, [(1, 1, 9.0, 0.0)], "a")
    b = StepCost([(1, 2.0), (2, 3.0)], [(1, 1.0), (2, 3.0)], 0.2, 0.0, [(1, 1, 8.0, 0.0)], "b")
    cost = least(a, b)
    assert (cost.prefill, cost.decode) == ([(1, 1.0), (2, 3.0)], [(1, 1.0), (2, 2.5)])
    assert (cost.own_s, cost.how) == (0.1, "a")
    assert cost.check == [(1, 1, 8.0, cost.seconds([1, 1], 2, 0, 0, False))]


@pytest.mark.parametrize("n", [1, 511, 512, 513, 1500])
def test_cells_before(n: int) -> None:
    """Tokens attend to all before their chunk, and to earlier micro-batches of the chunk."""
    assert _n_before(100, n) == sum(100 + i // N_UBATCH * N_UBATCH for i in range(n))


@pytest.mark.parametrize("name", ["demo", "0.6B"])
def test_recorded_costs(name: str) -> None:
    """More tokens cost more, and the recorded predictions of mixed steps are reproduced."""
    cost = load(name)
    seconds = [cost.seconds([n], 1, 0, 0, False) for n in (64, 256, 1024)]
    assert seconds == sorted(seconds)
    assert cost.seconds([1], 1, 4096, 0, False) > cost.seconds([1], 1, 0, 0, False)
    assert 0 < cost.other_s < cost.own_s
    for n_prefill, n_decode, measured, predicted in cost.check:
        again = cost.seconds([n_prefill, *[1] * n_decode], n_decode + 1, 0, 0, False)
        assert again == pytest.approx(predicted)
        assert 0.5 < predicted / measured < 2


def test_the_workload_matches_the_trace() -> None:
    jobs = workload(2000)
    assert jobs == workload(2000)
    assert jobs != workload(2000, seed=2)
    assert np.mean(np.diff([job.at_s for job in jobs])) == pytest.approx(1.0, rel=0.08)
    prompts, answers = [len(job.tokens) for job in jobs], [job.n_answer for job in jobs]
    assert np.median(prompts) == pytest.approx(math.exp(PROMPT[0]), rel=0.1)
    assert np.median(answers) == pytest.approx(math.exp(ANSWER[0]), rel=0.1)
    assert max(prompts) <= MOST_PROMPT
    assert max(answers) <= MOST_ANSWER
    shared = sum(job.tokens[:100] == list(range(100)) for job in jobs) / len(jobs)
    assert shared == pytest.approx(0.6 * 0.48, abs=0.04)  # 1 / (1 + 1/2 + 1/3 + 1/4)


def test_a_small_run(cost: StepCost, jobs: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    per_s = 0.8 * capacity(jobs, POLICY, cost)
    ended: list[int] = []
    report = simulate(jobs, POLICY, cost, per_s, ended.append)
    assert sum(ended) == N
    n_tokens = sum(job.n_answer for job in jobs)
    assert report.n_tokens == report.lengths.sum() == n_tokens
    assert len(report.first) == len(report.total) == N
    assert len(report.gaps) == n_tokens - N
    assert report.first.min() > 0
    assert report.seconds >= jobs[-1].at_s / per_s
    assert 0 < report.jain <= 1
    assert 0 < report.n_hits < report.n_lookups
    assert report.throughput == pytest.approx(n_tokens / report.seconds)
    show([summary(report, 0.8)])
    assert "small" in capsys.readouterr().out.splitlines()[1]


def test_runs_are_deterministic(cost: StepCost, jobs: list[Job]) -> None:
    policy = replace(POLICY, n_kv_tokens=6000)
    first, second = (summary(simulate(jobs[:60], policy, cost, 4.0), 1.0) for _ in range(2))
    assert first == second
    assert first["preemptions"] > 0


def test_small_chunks_lower_the_latency_between_tokens(cost: StepCost, jobs: list[Job]) -> None:
    small, large = (
        simulate(jobs[:100], replace(POLICY, n_prefill_chunk=n), cost, 4.0) for n in (32, None)
    )
    assert np.percentile(small.gaps, 99) < np.percentile(large.gaps, 99) / 2


def test_ageing_bounds_the_wait(cost: StepCost, jobs: list[Job]) -> None:
    per_s = 2 * capacity(jobs, POLICY, cost)
    aged, strict = (
        simulate(jobs, replace(POLICY, ageing_s=s), cost, per_s) for s in (1.0, math.inf)
    )
    assert aged.worst_wait(-1) < strict.worst_wait(-1)
    assert aged.worst_wait(1) > strict.worst_wait(1)


def test_less_is_cached_without_prefixes(cost: StepCost, jobs: list[Job]) -> None:
    kept, none = (
        simulate(jobs[:100], replace(POLICY, prefixes=p), cost, 2.0) for p in (True, False)
    )
    assert kept.n_hits > none.n_hits
