"""Compare scheduling policies on 10,000 requests of a realistic workload.

``python -m tools.simulate [--requests 10000] [--model 0.6B] [--images docs/images]`` runs the real
`Scheduler` and `KVCache` on a simulated clock. Step costs were measured (`costs.py`); `workload.py`
describes the requests. Prints a table, and draws plots on request.

Load is the arrival rate as a share of the maximum throughput of the first policy.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .costs import load
from .simulation import Policy, Report, capacity, simulate
from .workload import PRIORITIES, Job, workload

LOADS = (0.5, 0.7, 0.9)
HIGH = 0.9
N_CELLS = Policy.n_running * Policy.n_ctx
CHUNKS = [
    Policy("chunk 128"),
    Policy("chunk 32", n_prefill_chunk=32),
    Policy("chunk 64", n_prefill_chunk=64),
    Policy("chunk 512", n_prefill_chunk=512),
    Policy("chunk 2048", n_prefill_chunk=None, n_batch=2048),
]
OTHERS = [
    Policy("batch 128", n_batch=128),
    Policy("batch 2048", n_batch=2048),
    Policy("shared cells", n_kv_tokens=N_CELLS),
    Policy("half of them", n_kv_tokens=N_CELLS // 2),
    Policy("a quarter", n_kv_tokens=N_CELLS // 4),
    Policy("ageing 300 s", ageing_s=300.0),
    Policy("no ageing", ageing_s=float("inf")),
    Policy("no prefixes", prefixes=False),
    Policy("one priority"),
]
N_FOR_CAPACITY = 1000

Row = dict[str, Any]


def summary(report: Report, at: float) -> Row:
    """Return a row of the table; times in seconds."""
    first = np.percentile(report.first, [50, 95, 99])
    gaps = np.percentile(report.gaps, [50, 95, 99]) if len(report.gaps) else np.zeros(3)
    urgent = report.first[report.priorities == max(PRIORITIES)]
    return {
        "policy": report.policy.name,
        "load": at,
        "first": first.tolist(),
        "gaps": gaps.tolist(),
        "urgent": float(np.percentile(urgent, 95)) if len(urgent) else 0.0,
        "throughput": report.throughput,
        "jain": report.jain,
        "worst": [report.worst_wait(priority) for priority in PRIORITIES],
        "preemptions": report.n_preemptions,
        "hits": report.n_hits / report.n_lookups,
        "steps": report.n_steps,
    }


@cache
def _jobs(n: int) -> list[Job]:
    return workload(n)


def run(model: str, n: int, policy: Policy, at: float, per_s: float) -> Row:
    """Simulate one policy at one load."""
    jobs = _jobs(n)
    if policy.name == "one priority":
        jobs = [replace(job, priority=0) for job in jobs]
    return summary(simulate(jobs, policy, load(model), at * per_s), at)


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    print(
        "policy        load    first token p50/p95/p99 s   between tokens p50/p95/p99 ms"
        "  tok/s   Jain  worst wait by priority s  p95 of highest s  preempted  cached"
    )
    for row in rows:
        first = "/".join(f"{s:.1f}" for s in row["first"])
        gaps = "/".join(f"{1000 * s:.0f}" for s in row["gaps"])
        worst = "/".join(f"{s:.0f}" for s in row["worst"])
        print(
            f"{row['policy']:13s} {row['load']:4.2f} {first:>27s} {gaps:>31s} "
            f"{row['throughput']:7.2f} {row['jain']:6.3f} {worst:>25s} {row['urgent']:17.1f} "
            f"{row['preemptions']:10d} {row['hits']:7.1%}"
        )


def main() -> None:
    """Simulate, print and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--model", default="0.6B", help="the model in costs.json")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--images", type=Path, help="draw plots into this folder")
    parser.add_argument("--rows", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()

    per_s = capacity(_jobs(min(args.requests, N_FOR_CAPACITY)), CHUNKS[0], load(args.model))
    print(f"{args.model}: {load(args.model).how}\nload 1 is {per_s:.4f} requests per second")
    runs = [(policy, at) for policy in CHUNKS for at in LOADS]
    runs += [(policy, HIGH) for policy in OTHERS]
    with ProcessPoolExecutor(args.jobs) as pool:
        futures = {
            pool.submit(run, args.model, args.requests, policy, at, per_s): (policy.name, at)
            for policy, at in runs
        }
        done = {}
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            done[futures[future]] = future.result()
            rows = [done[policy.name, at] for policy, at in runs if (policy.name, at) in done]
            if args.rows:
                args.rows.write_text(json.dumps(rows))
    show(rows)
    if args.images:
        from .plots import draw

        draw(rows, args.images)


if __name__ == "__main__":
    main()
