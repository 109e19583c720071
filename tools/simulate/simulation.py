"""The real scheduler and KV cache on a simulated clock."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from llama_cffi.scheduler import KVCache, Request, Scheduler, SchedulerOutput, TokenResult

from .costs import N_UBATCH, StepCost
from .workload import Job

__all__ = ["Policy", "Report", "capacity", "simulate"]

_NO_TOKEN, _NEXT = TokenResult(), TokenResult([0])
_LAST = TokenResult([0], finish_reason="length")


@dataclass(frozen=True)
class Policy:
    """A configuration to compare.

    Attributes:
        name: Its name in tables.
        n_prefill_chunk: See `Scheduler`; None = n_batch.
        n_batch: See `Scheduler`.
        n_running: Maximum number of running requests.
        n_ctx: Maximum number of tokens of one request.
        n_kv_tokens: Capacity of a shared cache; None = n_ctx cells per request, not shared.
        ageing_s: See `Scheduler`.
        prefixes: Whether the prefixes of finished requests are kept.
    """

    name: str = ""
    n_prefill_chunk: int | None = 128
    n_batch: int = 512
    n_running: int = 8
    n_ctx: int = 4096
    n_kv_tokens: int | None = None
    ageing_s: float = 30.0
    prefixes: bool = True


@dataclass
class Report:
    """The results of a simulation; times in seconds.

    Attributes:
        policy: The policy.
        load: Arrival rate as a share of the maximum throughput.
        first: Time to the first token, per request.
        gaps: Times between successive tokens of a request.
        total: Time from arrival to the end, per request.
        lengths: Tokens of the answer, per request.
        priorities: Priority, per request.
        seconds: From the first arrival to the last end.
        n_tokens: Tokens of all answers.
        n_steps: Number of steps.
        n_preemptions: Number of preemptions.
        n_hits: Prompt tokens found in the cache.
        n_lookups: Prompt tokens.
    """

    policy: Policy
    load: float = 0.0
    first: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    gaps: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    total: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    lengths: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    priorities: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    seconds: float = 0.0
    n_tokens: int = 0
    n_steps: int = 0
    n_preemptions: int = 0
    n_hits: int = 0
    n_lookups: int = 0

    @property
    def throughput(self) -> float:
        """Generated tokens per second."""
        return self.n_tokens / self.seconds

    @property
    def jain(self) -> float:
        """Jain's fairness index of tokens per second: 1 = all equal, 1/n = one request has all.

        Jain, Chiu and Hawe, https://arxiv.org/abs/cs/9809099.
        """
        speeds = self.lengths / self.total
        return float(speeds.sum() ** 2 / (len(speeds) * (speeds**2).sum()))

    def worst_wait(self, priority: int) -> float:
        """Return the longest time to the first token of a priority."""
        return float(self.first[self.priorities == priority].max(initial=0.0))


def simulate(
    jobs: Sequence[Job],
    policy: Policy,
    cost: StepCost,
    per_s: float,
    progress: Callable[[int], object] = lambda n: None,
) -> Report:
    """Simulate a policy.

    Args:
        jobs: From `workload`.
        policy: The policy.
        cost: The duration of steps.
        per_s: Arrivals per second; `inf` = all at the beginning.
        progress: Called with the number of requests that have just ended.
    """
    now = 0.0
    unified = policy.n_kv_tokens is not None
    n_kv_tokens = policy.n_kv_tokens or policy.n_running * policy.n_ctx
    # As in the engine: with shared cells, more sequences than requests, to keep prefixes.
    n_seqs = 2 * policy.n_running if unified else policy.n_running
    cache = KVCache(n_seqs, n_kv_tokens, 32, unified=unified)
    scheduler = Scheduler(
        cache,
        max_running=policy.n_running,
        n_batch=policy.n_batch,
        n_prefill_chunk=policy.n_prefill_chunk,
        mix_prefill=unified,
        n_ctx=policy.n_ctx,
        ageing_s=policy.ageing_s,
        clock=lambda: now,
    )
    report = Report(policy)
    last: dict[Request, float] = {}
    gaps, first, total = array("d"), array("d"), array("d")
    lengths, priorities = array("q"), array("q")
    coming = iter(jobs)
    job = next(coming, None)
    while job is not None or scheduler.has_work:
        while job is not None and job.at_s / per_s <= now:
            request = Request(job.tokens, job.n_answer, priority=job.priority)
            request.created_s = job.at_s / per_s
            scheduler.add(request)
            job = next(coming, None)
        output = scheduler.schedule()
        if not output.chunks:
            assert job is not None, "no request can run, and none will arrive"
            now = job.at_s / per_s
            continue
        now += _seconds(output, cost, cache)
        results = {}
        for request, _, _, _, _, samples in output.chunks:
            if not samples:
                results[request] = _NO_TOKEN
                continue
            results[request] = _NEXT if request.n_generated + 1 < request.max_tokens else _LAST
            if request in last:
                gaps.append(now - last[request])
            else:
                first.append(now - request.created_s)
                priorities.append(request.priority)
                request.stats.time_to_first_token_s = now - request.created_s
            last[request] = now
        ended = scheduler.update(output, results)
        for request in ended:
            del last[request]
            total.append(now - request.created_s)
            lengths.append(request.n_generated)
        if ended:
            progress(len(ended))
            if not policy.prefixes:
                cache.clear()
        report.n_steps += 1
    stats = cache.stats
    return replace(
        report,
        first=np.array(first),
        gaps=np.array(gaps),
        total=np.array(total),
        lengths=np.array(lengths),
        priorities=np.array(priorities),
        seconds=now,
        n_tokens=int(sum(lengths)),
        n_preemptions=scheduler.n_preemptions,
        n_hits=stats.n_hit_tokens,
        n_lookups=stats.n_lookup_tokens,
    )


def _seconds(output: SchedulerOutput, cost: StepCost, cache: KVCache) -> float:
    """Return the duration of a step; in a shared cache, tokens also pass the cells of others."""
    lengths = [len(chunk.tokens) for chunk in output.chunks]
    n_outputs = sum(chunk.samples for chunk in output.chunks)
    n_own = sum(_n_before(chunk.start, len(chunk.tokens)) for chunk in output.chunks)
    n_other = 0
    if cache.unified:
        n_used = (cache.n_blocks - cache.n_free_blocks) * cache.block_size
        n_other = max(n_used * output.n_tokens - n_own, 0)
    return cost.seconds(lengths, n_outputs, n_own, n_other, cache.unified)


def _n_before(start: int, n: int) -> int:
    """Return the cells that *n* tokens attend to, without those of their own micro-batches."""
    whole, rest = divmod(n, N_UBATCH)
    return start * n + N_UBATCH**2 * (whole * (whole - 1) // 2) + rest * whole * N_UBATCH


def capacity(jobs: Sequence[Job], policy: Policy, cost: StepCost) -> float:
    """Return the throughput in jobs per second, with all jobs there at the beginning."""
    report = simulate(jobs, policy, cost, float("inf"))
    return len(jobs) / report.seconds
