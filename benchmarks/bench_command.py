"""`llama-cffi bench` compared with the C loop of overhead.py: both must tell the same speed.

    python benchmarks/bench_command.py [--only NAME ...] [--rounds 9] [--threads N]

Runs alternate; each run of the command's measurement is compared with the mean of the two native
runs around it. Both generate the same number of tokens after a prompt of the same length. The loop
samples greedily, which the command does not: on models with a large vocabulary it takes longer for
that.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from models import DEFAULT_FOLDER, SHAPES, model_path
from native import NativeLoop
from overhead import GREEDY, N_PROMPT, native, ratios
from tqdm import tqdm

from llama_cffi import Engine
from llama_cffi.cli.bench_run import measure

N_GEN = {"tiny": 128, "small": 48, "0.6B": 24}
RUNS = {"tiny": 4, "small": 2, "0.6B": 1}  # in a round: short ones need more


def command_us(path: Path, n_gen: int, threads: int) -> float:
    """Return the microseconds of a token that the command measures."""
    job: dict[str, Any] = {
        "model": str(path), "model_options": {"n_gpu_layers": -1}, "n_prompt": 0, "n_gen": n_gen,
        "n_depth": N_PROMPT, "n_batch": 2048, "n_ubatch": 512, "n_threads": threads,
        "flash_attn": None, "type_k": None, "type_v": None, "repetitions": 1, "warmup": True,
    }  # fmt: skip
    (result,) = measure([job], lambda message: None)
    return 1e6 / float(result["avg_ts"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=["tiny"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, default=DEFAULT_FOLDER, help="folder of the models")
    args = parser.parse_args()
    print(f"{'':8} {'native':>10} {'bench':>10}    {'median':>7} {'range':>16} {'fastest':>7}")
    for name in args.only:
        path, n = model_path(name, args.models), N_GEN[name]
        with Engine(path, n_ctx=N_PROMPT + n, n_threads=args.threads) as engine:
            loop = NativeLoop(engine.model.library)

            def native_us(loop: NativeLoop = loop, engine: Engine = engine, n: int = n) -> float:
                return native(loop, engine, GREEDY, N_PROMPT, n).rest_s / (n - 1) * 1e6

            theirs, ours = [native_us()], []
            for _ in tqdm(range(args.rounds * RUNS[name] + 1), desc=name, leave=False):
                ours.append(command_us(path, n, args.threads))
                theirs.append(native_us())
        theirs, ours = theirs[1:], ours[1:]  # the first ones touch memory for the first time
        found = ratios(theirs, ours)
        print(
            f"{name:8} {statistics.median(theirs):7.1f} us {statistics.median(ours):7.1f} us "
            f"{statistics.median(found):10.3f} ({min(found):5.2f} to {max(found):5.2f}) "
            f"{min(ours) / min(theirs):7.3f}"
        )


if __name__ == "__main__":
    main()
