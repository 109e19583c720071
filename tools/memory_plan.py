"""Compare memory plans with what llama.cpp allocates, and print a table.

    python tools/memory_plan.py                            # the default build
    LLAMA_CFFI_BUILD=npm:3.12.0 python tools/memory_plan.py
    python tools/memory_plan.py --kinds gqa swa --n-ctx 4096

Models of each kind of memory are written without weights (a hole in the file). Each is loaded with
each context size, number of sequences and type of the cache; the sizes of its buffers are read
from the log. For each the table has the real sizes in MiB, and by how many percent the measured and
the estimated plan differ from them. The exit code is 1 if one differs by more than 2 or 10.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.sparse_gguf import KINDS, write_sparse  # noqa: E402

from llama_cffi import Context, LlamaError, Model, get_library  # noqa: E402
from llama_cffi.binding.memory_lines import parse_lines  # noqa: E402
from llama_cffi.memory_plan.planner import Planner  # noqa: E402

MIB = 2**20
NAMES = ("weights", "kv", "recurrent", "compute", "output")
WEIGHTS = re.compile(r"(\S+)(?: model)? buffer size = +([\d.]+) MiB")
EXACT, ESTIMATED = 2.0, 10.0


def real_sizes(path: Path, n_ctx: int, n_parallel: int, options: dict[str, Any]) -> list[float]:
    """Return the bytes of `NAMES`, as allocated."""
    logs = get_library().logs
    with logs.capture(logging.DEBUG) as loading, Model(path, check="rules") as model:
        sizes = {"n_ctx": n_ctx * n_parallel, "n_seq_max": n_parallel, "n_threads": 1}
        with logs.capture(logging.DEBUG) as lines, Context(model, **sizes, **options):
            pass
        loads = [m for line in loading if "load_tensors" in line and (m := WEIGHTS.search(line))]
        buffers = parse_lines(lines).buffers
        states = model.is_recurrent  # old builds log their states as a KV cache
    by_kind = {k: sum(n for (kind, _), n in buffers.items() if kind == k) for k, _ in buffers}
    kv, rs = by_kind.get("KV", 0), by_kind.get("RS", 0)
    if states:
        kv, rs = 0, kv + rs
    weights = sum(float(m[2]) for m in loads) * MIB
    return [weights, kv, rs, by_kind.get("compute", 0), by_kind.get("output", 0)]


def plans(planner: Planner, n_ctx: int, n_parallel: int) -> tuple[list[float], bool]:
    """Return the bytes of `NAMES` in a plan, and whether it was measured."""
    sizes = planner.sizes(n_ctx, n_parallel, 0)
    return [float(sum(getattr(sizes, name).values())) for name in NAMES], sizes.exact


def rows(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, list[float], list[float]]]:
    """Yield what was compared, the real sizes, and the differences in percent."""
    for kind, type_, flash in itertools.product(args.kinds, args.types, args.flash_attn):
        path = folder / f"{kind}.gguf"
        if not path.exists():
            write_sparse(path, kind)
        options: dict[str, Any] = {} if type_ == "f16" else {"type_k": type_, "type_v": type_}
        if flash != "auto":
            options["flash_attn"] = flash == "on"
        if type_ != "f16" and flash == "off":
            continue
        with Planner(path, options) as exact, Planner(path, options, measures=False) as formulae:
            for n_ctx, n_parallel in itertools.product(args.n_ctx, args.n_parallel):
                name = f"{kind:9} {type_:5} {flash:4} {n_ctx:6} x{n_parallel}"
                try:
                    real = real_sizes(path, n_ctx, n_parallel, options)
                    measured, is_exact = plans(exact, n_ctx, n_parallel)
                    estimated, _ = plans(formulae, n_ctx, n_parallel)
                except LlamaError as e:
                    print(f"{name}  not supported: {str(e)[:90]}", flush=True)
                    break
                total = sum(real)
                differences = [100 * (sum(plan) / total - 1) for plan in (measured, estimated)]
                if not is_exact:
                    differences[0] = float("nan")
                yield name, real, differences


def percent(difference: float) -> str:
    """Return a difference for the table; `-` if there is no such plan."""
    return f"{difference:+9.2f}%" if difference == difference else f"{'-':>10}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a plan is further off than promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kinds", nargs="+", default=[*KINDS], choices=[*KINDS])
    parser.add_argument("--n-ctx", nargs="+", type=int, default=[512, 4096, 16384])
    parser.add_argument("--n-parallel", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--types", nargs="+", default=["f16", "q8_0"])
    parser.add_argument("--flash-attn", nargs="+", default=["auto"], choices=["auto", "on", "off"])
    args = parser.parse_args(argv)
    print(f"build {get_library().build.tag}; MiB, and the difference of the plans in percent")
    print(
        "kind      type  flash  n_ctx   "
        + "".join(f"{name:>10}" for name in (*NAMES, "total", "measured", "estimated"))
    )
    worst = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        for name, real, differences in rows(args, Path(folder)):
            worst = [
                max(w, abs(d)) if d == d else w for w, d in zip(worst, differences, strict=True)
            ]
            numbers = "".join(f"{n / MIB:10.2f}" for n in (*real, sum(real)))
            print(f"{name:31}{numbers}" + "".join(map(percent, differences)), flush=True)
    print(f"largest difference: measured {worst[0]:.2f} %, estimated {worst[1]:.2f} %")
    return int(worst[0] > EXACT or worst[1] > ESTIMATED)


if __name__ == "__main__":
    sys.exit(main())
