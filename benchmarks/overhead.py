"""The overhead of Python: `Engine` compared with a C loop on the same context, in one process.

    python benchmarks/overhead.py [--only NAME ...] [--rounds 9] [--threads N] [--profile]

Runs alternate; each run of the engine is compared with the mean of the two native runs around it.
Prints the median and range of these ratios, the ratio of the fastest runs, and the median ratio of
processor time, which other processes affect least (use --threads 1, because waiting threads spin).
The engine takes text and streams text, with stop strings; both must generate the same answer. The
models have random weights and are generated on the first run.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models import DEFAULT_FOLDER, SHAPES, model_path, prompt
from native import NativeLoop, Run
from steps import print_steps
from tqdm import tqdm

from llama_cffi import Engine, SamplerChain

GREEDY: dict[str, Any] = {"temperature": 0}
CHAIN: dict[str, Any] = {
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "temperature": 0.8,
    "repeat_penalty": 1.0,
    "seed": 42,
}
COMMON: dict[str, Any] = {
    "raw": True,
    "stop": ["\n\n###"],
    "json_stop": (),
    "cache_prompt": False,
}
# Tokens per run, and runs per round: short runs need more.
PLANS = {"tiny": (128, 16), "small": (48, 4), "0.6B": (24, 1)}
TARGETS = {"tiny": 1.05, "small": 0.90, "0.6B": 1.02}
N_PROMPT, N_LONG_PROMPT = 16, 512
LENGTHS = (64, 256, 1024)
HOST_TARGET_US = 5


def native(loop: NativeLoop, engine: Engine, options: dict[str, Any], n_prompt: int, n: int) -> Run:
    """Run the C loop."""
    chain = SamplerChain(engine.model)
    if options is GREEDY:
        chain.add_greedy()
    else:
        chain.add_top_k(options["top_k"]).add_top_p(options["top_p"]).add_min_p(options["min_p"])
        chain.add_temp(options["temperature"]).add_dist(options["seed"])
    with chain:
        return loop.run(engine, chain, engine.tokenize(prompt(n_prompt)), n)


def stream(engine: Engine, options: dict[str, Any], n_prompt: int, n: int) -> Run:
    """Run `Engine.stream`."""
    text, pieces = prompt(n_prompt), []
    start = time.perf_counter()
    answer = engine.stream(text, max_tokens=n, **COMMON, **options)
    pieces.append(next(answer))
    first, cpu = time.perf_counter(), time.process_time()
    for piece in answer:
        pieces.append(piece)
    end, cpu_end = time.perf_counter(), time.process_time()
    return Run(first - start, end - first, cpu_end - cpu, "".join(pieces).encode())


def callback(engine: Engine, options: dict[str, Any], n_prompt: int, n: int) -> Run:
    """Run `Engine.generate(callback=...)`."""
    text, pieces, times = prompt(n_prompt), [], []

    def receive(piece: bytes) -> None:
        if not pieces:
            times.extend((time.perf_counter(), time.process_time()))
        pieces.append(piece)

    start = time.perf_counter()
    engine.generate(text, max_tokens=n, callback=receive, **COMMON, **options)
    first, cpu, end, cpu_end = *times, time.perf_counter(), time.process_time()
    return Run(first - start, end - first, cpu_end - cpu, b"".join(pieces))


def bracketed(
    loop: NativeLoop,
    engine: Engine,
    run: Callable[..., Run],
    options: dict[str, Any],
    n_prompt: int,
    n: int,
    rounds: int,
    name: str,
) -> tuple[list[Run], list[Run]]:
    """Return the runs of the native loop and those of the engine, one less."""
    before = [native(loop, engine, options, n_prompt, n)]
    ours: list[Run] = []
    for _ in tqdm(range(rounds), desc=name, leave=False):
        ours.append(run(engine, options, n_prompt, n))
        before.append(native(loop, engine, options, n_prompt, n))
        if ours[-1].text != before[-1].text:
            raise SystemExit(f"{name}: the answers differ:\n{before[-1].text!r}\n{ours[-1].text!r}")
    # Without the first runs, which touch memory for the first time.
    return before[1:], ours[1:]


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """Return the ratio of each of *ours* to the mean of the two of *theirs* around it."""
    return [2 * o / (a + b) for a, o, b in zip(theirs, ours, theirs[1:], strict=False)]


def print_row(
    what: str, unit: str, n: int, target: float | None, theirs: list[Run], ours: list[Run]
) -> None:
    """Print one row: times per token after the first, or of the first token if *n* is 1."""
    scale = {"us": 1e6, "ms": 1e3}[unit] / max(n - 1, 1)
    a, b = ([(r.rest_s if n > 1 else r.first_s) * scale for r in runs] for runs in (theirs, ours))
    wall = ratios(a, b)
    cpu = "      -"
    if n > 1:
        cpu = (
            f"{statistics.median(ratios([r.cpu_s for r in theirs], [r.cpu_s for r in ours])):7.3f}"
        )
    print(
        f"{what:30} {statistics.median(a):9.1f} {statistics.median(b):9.1f} {unit} "
        f"{statistics.median(wall):7.3f} ({min(wall):5.2f} to {max(wall):5.2f}) "
        f"{min(b) / min(a):7.3f} {cpu} {'' if target is None else f'{target:7.2f}'}"
    )


def measure_ratios(name: str, engine: Engine, loop: NativeLoop, rounds: int) -> None:
    """Print the rows of one model."""
    n, factor = PLANS[name]
    for what, run, options in (
        ("greedy, stream", stream, GREEDY),
        ("chain, stream", stream, CHAIN),
        ("greedy, callback", callback, GREEDY),
    ):
        theirs, ours = bracketed(
            loop, engine, run, options, N_PROMPT, n, rounds * factor, f"{name} {what}"
        )
        print_row(f"{name} {what}", "us", n, TARGETS[name] if run is stream else None, theirs, ours)
    what = f"{name} first token of {N_LONG_PROMPT}"
    theirs, ours = bracketed(
        loop, engine, stream, GREEDY, N_LONG_PROMPT, 1, rounds * min(factor, 2), what
    )
    print_row(what, "ms", 1, 1.0, theirs, ours)


def measure_host(path: Path, loop: NativeLoop, rounds: int) -> None:
    """Print the host time per token for several lengths.

    Processor time on one thread: other processes affect it only through the caches.
    """
    print("\nHost time per token, tiny, 1 thread: processor time of the engine less the native's")
    with Engine(path, n_threads=1) as engine:
        for what, run, options in (
            ("greedy, stream", stream, GREEDY),
            ("chain, stream", stream, CHAIN),
            ("greedy, callback", callback, GREEDY),
        ):
            for n in LENGTHS:
                theirs, ours = bracketed(
                    loop, engine, run, options, N_PROMPT, n, rounds * 2, f"{what} {n}"
                )
                a, b = ([r.cpu_s / (n - 1) * 1e6 for r in runs] for runs in (theirs, ours))
                median = statistics.median(
                    o - (x + y) / 2 for x, o, y in zip(a, b, a[1:], strict=False)
                )
                print(
                    f"{what:24} {n:5} tokens {median:7.1f} us median {min(b) - min(a):7.1f} us "
                    f"between the fastest  target {HOST_TARGET_US}"
                )


def profile(path: Path, options: dict[str, Any], n: int = 1024, runs: int = 5) -> None:
    """Print a profile of Python functions; the profiler itself adds to each call.

    Time in C counts for the calling function.
    """
    with Engine(path, n_threads=1) as engine:
        stream(engine, options, N_PROMPT, n)
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(runs):
            stream(engine, options, N_PROMPT, n)
        profiler.disable()
    print(f"\n{'function':56} {'calls':>6} {'us':>8}  for each token")
    for row in sorted(profiler.getstats(), key=lambda row: -row.inlinetime)[:25]:
        code = row.code
        if not isinstance(code, str):
            code = f"{Path(code.co_filename).name}:{code.co_firstlineno} {code.co_name}"
        us = row.inlinetime / n / runs * 1e6
        print(f"{code[-56:]:56} {row.callcount / n / runs:6.2f} {us:8.2f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0, help="0 = what the engine takes")
    parser.add_argument("--models", type=Path, default=DEFAULT_FOLDER, help="folder of the models")
    parser.add_argument("--profile", action="store_true", help="only show where the time goes")
    args = parser.parse_args()
    if args.profile:
        path = model_path(args.only[0], args.models)
        with Engine(path, n_threads=1) as engine:
            print_steps(engine, args.rounds)
        for options in (GREEDY, CHAIN):
            profile(path, options)
        return
    loop = None
    for name in args.only:
        with Engine(model_path(name, args.models), n_threads=args.threads) as engine:
            if loop is None:
                loop = NativeLoop(engine.model.library)
                load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
                print(
                    f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} processors, load {load}, "
                    f"Python {platform.python_version()}, {engine.model.library}, "
                    f"{engine.context.n_threads} threads; native: {loop.kind}\n"
                    f"{'':30} {'native':>9} {'engine':>9}    {'median':>7} {'range':>16} "
                    f"{'fastest':>7} {'cpu':>7} {'target':>7}"
                )
            measure_ratios(name, engine, loop, args.rounds)
    assert loop is not None
    if "tiny" in args.only:
        measure_host(model_path("tiny", args.models), loop, args.rounds)


if __name__ == "__main__":
    main()
