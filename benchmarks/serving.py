"""Parallel requests: `InferenceEngine` compared with a C loop and other packages.

    python benchmarks/serving.py [--only NAME ...] [--parts throughput prefix mixed]
        [--parallel 1 8 32] [--rounds 3] [--threads 2] [--plot docs/images/serving.png]

All sides get the same prompts (64 random tokens each, without common prefixes) and generate the
same number of tokens greedily, with the same threads, KV cells and batch size. Runs alternate in
random order with a pause between them; each is compared with the mean of the two native runs around
it.
Prints medians and the range of the ratios; `cpu` is the ratio of tokens per second of processor
time, which other processes affect least (with --threads 1). The native side decodes all prompts
before it continues any answer.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from models import DEFAULT_FOLDER, SHAPES, model_path
from sides import Load, Peer, Serve, Served, native, ours_asyncio, ours_result, ours_threads
from tqdm import tqdm

from llama_cffi import InferenceEngine

N_PROMPT, N_SYSTEM, N_USERS, N_QUESTION = 64, 1000, 50, 20
SETTLE_S = 0.3  # the threads of the previous side spin for about this long
N_NEW = {"tiny": 64, "0.6B": 32}
PEERS = {"xllamacpp": "xllamacpp", "llama-cpp": "llama_cpp"}
NATIVE_TARGETS = {"tiny": 0.90, "0.6B": 0.95}
PEER_TARGETS = {8: 1.4, 32: 1.3}
TTFT_TARGET = 1.10
CHUNKS = (32, 128, 512)


class Row(NamedTuple):
    """Medians of one side's runs.

    Attributes:
        model: Name of the model.
        n: Number of parallel requests.
        side: Name of the side.
        rate: Tokens per second of all requests together.
        first_s: Time to the first token, mean and 95th percentile.
        gap_s: Time between tokens, median and 95th percentile; None where only the end is seen.
        to_native: Rate relative to the native side, per run.
        to_peer: Rate relative to xllamacpp's server, per run.
        first_ratio: Mean time to the first token relative to the native side, per run.
        cpu_ratio: Tokens per processor time relative to the native side, per run.
    """

    model: str
    n: int
    side: str
    rate: float
    first_s: tuple[float, float]
    gap_s: tuple[float, float] | None
    to_native: list[float]
    to_peer: list[float]
    first_ratio: list[float]
    cpu_ratio: list[float]


def load(rng: np.random.Generator, n: int, n_prompt: int, n_new: int) -> Load:
    """Return *n* prompts of random tokens that are letters or pairs of letters."""
    return Load([rng.integers(256, 900, n_prompt).tolist() for _ in range(n)], n_new)


def share(values: Sequence[float], part: float) -> float:
    """Return the quantile *part* of *values*."""
    return sorted(values)[round((len(values) - 1) * part)]


@contextmanager
def sides(path: Path, n: int, n_ctx: int, n_threads: int) -> Iterator[dict[str, Serve]]:
    """Provide every side for *n* parallel requests, the native one first."""
    with InferenceEngine(path, n, n_ctx, n_threads=n_threads) as engine:
        every: dict[str, Serve] = {
            "native": native(engine),
            "result": ours_result(engine),
            "threads": ours_threads(engine),
            "asyncio": ours_asyncio(engine),
            # As on the native side, prompts are decoded in full batches while streams wait.
            "chunk 512": ours_result(engine, 512),
        }
        with ExitStack() as stack:
            for name, module in PEERS.items():
                if find_spec(module) is not None:
                    peer = Peer(module, path, n, n_ctx, n_threads)
                    stack.callback(peer.close)
                    every[name] = peer.serve
            yield every


def measure(model: str, path: Path, n: int, rounds: int, n_threads: int) -> list[Row]:
    """Run *n* parallel requests on all sides alternately."""
    n_new, rng = N_NEW[model], np.random.default_rng(0)
    runs: dict[str, list[Served]] = {}
    with sides(path, n, 256, n_threads) as every:
        for serve in every.values():  # warm up
            serve(load(rng, n, N_PROMPT, 2))
        native, *others = every
        for _ in tqdm(range(rounds), desc=f"{model} {n}", leave=False):
            work = load(rng, n, N_PROMPT, n_new)
            # In random order: after the C loop, for example, Python's code is out of the caches.
            for side in (native, *rng.permutation(others)):
                time.sleep(SETTLE_S)
                runs.setdefault(side, []).append(every[side](work))
        time.sleep(SETTLE_S)
        runs[native].append(every[native](work))
    return [row(model, n, side, n * n_new, runs) for side in every]


def row(model: str, n: int, side: str, n_tokens: int, runs: dict[str, list[Served]]) -> Row:
    """Summarize the runs of one side."""
    ours, theirs, peer = runs[side], runs["native"], runs.get("xllamacpp", [])
    around = list(zip(ours, theirs, theirs[1:], strict=False))

    def ratios(of: str) -> list[float]:
        def value(run: Served) -> float:
            return statistics.mean(run.first_s) if of == "first" else float(getattr(run, of))

        return [2 * value(o) / (value(a) + value(b)) for o, a, b in around]

    gaps = [run.gaps_s for run in ours]
    return Row(
        model,
        n,
        side,
        statistics.median(n_tokens / run.total_s for run in ours),
        (
            statistics.median(statistics.mean(run.first_s) for run in ours),
            statistics.median(share(run.first_s, 0.95) for run in ours),
        ),
        None
        if side in ("result", "chunk 512")
        else (
            statistics.median(share(g, 0.5) for g in gaps),
            statistics.median(share(g, 0.95) for g in gaps),
        ),
        [1 / ratio for ratio in ratios("total_s")],
        [p.total_s / o.total_s for o, p in zip(ours, peer, strict=False)],
        ratios("first"),
        [1 / ratio for ratio in ratios("cpu_s")],
    )


def spread(values: Sequence[float]) -> str:
    """Return median and range."""
    if not values:
        return f"{'-':>18}"
    return f"{statistics.median(values):5.2f} ({min(values):4.2f}-{max(values):4.2f})"


def print_row(row: Row) -> None:
    """Print one row of the table."""
    gaps = "             -"
    if row.gap_s is not None:
        gaps = f"{row.gap_s[0] * 1e3:6.1f} {row.gap_s[1] * 1e3:7.1f}"
    peer = PEER_TARGETS.get(row.n) if row.model == "0.6B" else None
    print(
        f"{row.model:5} {row.n:3} {row.side:10} {row.rate:8.1f} {row.first_s[0] * 1e3:8.1f} "
        f"{row.first_s[1] * 1e3:8.1f} {gaps}  {spread(row.to_native)} {NATIVE_TARGETS[row.model]}"
        f"  {spread(row.first_ratio)} {TTFT_TARGET}  {spread(row.cpu_ratio)}  "
        f"{spread(row.to_peer)} {peer or ''}"
    )


def measure_prefix(model: str, path: Path, n_threads: int, n_parallel: int = 8) -> None:
    """Print what prefix caching saves with a common prefix."""
    rng = np.random.default_rng(1)
    system = rng.integers(256, 900, N_SYSTEM).tolist()
    shared = [system + rng.integers(256, 900, N_QUESTION).tolist() for _ in range(N_USERS)]
    # The same number of tokens without common prefixes. Takes minutes with the large model.
    apart = load(rng, N_USERS, N_SYSTEM + N_QUESTION, 1).prompts
    for name, prompts in [("shared", shared), ("apart", apart)][: 1 if model == "0.6B" else 2]:
        for cells in (None, 8192):
            with InferenceEngine(
                path, n_parallel, 1280, n_threads=n_threads, n_kv_tokens=cells
            ) as engine:
                serve = ours_result(engine)
                served = serve(Load(prompts, 16))
                stats = engine.stats
            n_prompt, n_decoded = sum(map(len, prompts)), stats.n_decoded - N_USERS * 15
            print(
                f"{model:5} {name:6} {'unified' if cells else 'streams':7} {n_prompt} tokens of "
                f"prompts, {n_decoded} evaluated, {1 - n_decoded / n_prompt:.1%} saved; "
                f"{served.total_s:.2f} s, mean time to first token "
                f"{statistics.mean(served.first_s) * 1e3:.0f} ms"
            )


def measure_mixed(model: str, path: Path, n_threads: int, rounds: int) -> dict[int, list[float]]:
    """Print the gaps between tokens of 7 streams while long prompts arrive one after another.

    Returns:
        The gaps between tokens in seconds, for each n_prefill_chunk.
    """
    rng = np.random.default_rng(2)
    n_new = {"tiny": 256, "0.6B": 16}[model]
    gaps: dict[int, list[float]] = {n: [] for n in CHUNKS}
    firsts: dict[int, list[float]] = {n: [] for n in CHUNKS}
    with InferenceEngine(path, 8, 1280, n_threads=n_threads) as engine:
        for _ in range(rounds):
            for n_chunk in CHUNKS:
                engine.scheduler.n_prefill_chunk = n_chunk
                done = threading.Event()

                def arrive(firsts: list[float], done: threading.Event) -> None:
                    while not done.is_set():
                        prompt = rng.integers(256, 900, N_SYSTEM).tolist()
                        handle = engine.submit(prompt, 1, temperature=0)
                        handle.result()
                        firsts.append(handle.stats.time_to_first_token_s)

                long = threading.Thread(target=arrive, args=(firsts[n_chunk], done))
                serve = ours_threads(engine)
                long.start()
                gaps[n_chunk] += serve(load(rng, 7, N_PROMPT, n_new)).gaps_s
                done.set()
                long.join()
    for n_chunk, seconds in gaps.items():
        print(
            f"{model:5} n_chunk {n_chunk:3}: between tokens p50 {share(seconds, 0.5) * 1e3:7.1f} "
            f"ms, p95 {share(seconds, 0.95) * 1e3:7.1f}, longest {max(seconds) * 1e3:7.1f}; first "
            f"token of {N_SYSTEM} after {statistics.median(firsts[n_chunk]) * 1e3:7.1f} ms "
            f"({len(firsts[n_chunk])} prompts)"
        )
    return gaps


def plot(file: Path, rows: Sequence[Row], mixed: dict[str, dict[int, list[float]]]) -> None:
    """Plot throughput, time to the first token, and gaps between tokens under mixed load."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(row.model for row in rows))
    shown = {
        "native": "C loop",
        "threads": "InferenceEngine, streams",
        "xllamacpp": "xllamacpp's server",
        "llama-cpp": "llama-cpp-python, one by one",
    }
    figure, axes = pyplot.subplots(len(models), 3, figsize=(12, 3.2 * len(models)), squeeze=False)
    for line, model in zip(axes, models, strict=True):
        here = [row for row in rows if row.model == model]
        counts = list(dict.fromkeys(row.n for row in here))
        for i, (side, label) in enumerate(shown.items()):
            mine = [row for row in here if row.side == side]
            x = [counts.index(row.n) + 0.2 * (i - 1.5) for row in mine]
            line[0].bar(x, [row.rate for row in mine], 0.19, label=label)
            line[1].bar(x, [row.first_s[0] * 1e3 for row in mine], 0.19, label=label)
        for axis, title in zip(line, ("tokens/s", "mean ms to first token"), strict=False):
            axis.set_title(f"{model}: {title}")
            axis.set_xticks(range(len(counts)), [str(n) for n in counts])
            axis.set_xlabel("parallel requests")
            axis.grid(axis="y", alpha=0.3)
        line[1].set_yscale("log")
        line[2].set_visible(model in mixed)
        for n_chunk, gaps in mixed.get(model, {}).items():
            ordered = np.sort(gaps) * 1e3
            line[2].plot(ordered, np.linspace(0, 100, len(ordered)), label=f"n_chunk={n_chunk}")
        line[2].set_title(f"{model}: 7 streams while long prompts arrive")
        line[2].set_xlabel("ms between tokens")
        line[2].set_ylabel("% of gaps up to this")
        line[2].set_xscale("log")
        line[2].grid(alpha=0.3)
        if model in mixed:
            line[2].legend()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=4)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    print(f"drawn: {file}")


def main() -> None:
    """Measure the chosen parts on the chosen models."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, default=DEFAULT_FOLDER, help="folder of the models")
    parser.add_argument("--only", nargs="+", choices=[*N_NEW], default=[*N_NEW])
    parts = ["throughput", "prefix", "mixed"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--parallel", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="file of the plot (needs matplotlib)")
    args = parser.parse_args()
    paths = {name: model_path(name, args.models) for name in args.only}
    average = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} processors, load {average}, Python "
        f"{platform.python_version()}, {args.threads} threads; "
        + ", ".join(f"{name}: {SHAPES[name].n_parameters:,} parameters" for name in paths)
    )
    rows: list[Row] = []
    mixed: dict[str, dict[int, list[float]]] = {}
    for name, path in paths.items():
        # Short runs need more rounds.
        rounds = args.rounds * (6 if name == "tiny" else 1)
        if "throughput" in args.parts:
            print(
                f"{'model':5} {'n':>3} {'side':10} {'tokens/s':>8} {'first ms':>8} {'p95':>8} "
                f"{'gap ms':>6} {'p95':>7}  {'by native, target':>23}  {'first token':>23}  "
                f"{'cpu':>18}  by xllamacpp, target"
            )
            for n in args.parallel:
                rows += (new := measure(name, path, n, rounds, args.threads))
                for one in new:
                    print_row(one)
        if "prefix" in args.parts:
            measure_prefix(name, path, args.threads)
        if "mixed" in args.parts:
            mixed[name] = measure_mixed(name, path, args.threads, args.rounds)
    print("load at the end:", ", ".join(f"{x:.1f}" for x in os.getloadavg()))
    if args.plot:
        plot(args.plot, rows, mixed)


if __name__ == "__main__":
    main()
