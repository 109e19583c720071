"""Whether memory stays flat over 10,000 tokens, over 200 engines, and per decoded token.

    python benchmarks/memory.py [--tokens 10000] [--cycles 200]

RSS is the resident memory of the process. "C in use" is the memory allocated by malloc and not
freed (glibc's mallinfo2), which shows leaks of native code to the byte.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
from pathlib import Path

from models import DEFAULT_FOLDER, model_path, prompt
from tqdm import tqdm

from llama_cffi import Batch, Context, Engine, Model

PER_ANSWER, ROWS = 500, 10


class Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc, sizes in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = Mallinfo2


def in_use_bytes() -> int:
    """Return the bytes allocated by malloc and not freed, including by mmap."""
    info = _libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def rss_bytes() -> int:
    """Return the resident memory of this process, bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Table:
    """A table of both numbers and their change since the first row."""

    def __init__(self, what: str) -> None:
        print(f"\n{what:>8} {'RSS MB':>9} {'change kB':>10} {'C in use MB':>12} {'change kB':>10}")
        self._first: tuple[int, int] | None = None

    def row(self, n: int) -> None:
        """Print one row."""
        gc.collect()
        now = rss_bytes(), in_use_bytes()
        self._first = first = self._first or now
        (rss, rss_change), (used, used_change) = (
            (b / 1e6, (b - a) / 1e3) for a, b in zip(first, now, strict=True)
        )
        print(f"{n:8} {rss:9.2f} {rss_change:10.1f} {used:12.2f} {used_change:10.1f}")


def measure_tokens(path: Path, n_tokens: int) -> None:
    """Print memory while one engine generates."""
    options = {"raw": True, "stop": ["\n\n###"], "json_stop": (), "temperature": 0}
    with Engine(path, n_threads=1) as engine:

        def answer() -> None:
            for _ in engine.stream(prompt(16), max_tokens=PER_ANSWER, **options):
                pass

        answer()
        table = Table("tokens")
        table.row(0)
        for done in tqdm(range(PER_ANSWER, n_tokens + 1, PER_ANSWER), leave=False):
            answer()
            if done % (n_tokens // ROWS) == 0:
                table.row(done)


def measure_cycles(path: Path, n_cycles: int) -> None:
    """Print memory while engines are opened, used and closed."""

    def cycle() -> None:
        with Engine(path, n_threads=1) as engine:
            engine.generate(prompt(16), raw=True, max_tokens=8, temperature=0.8, seed=1)

    cycle()
    table = Table("engines")
    table.row(0)
    for done in tqdm(range(1, n_cycles + 1), leave=False):
        cycle()
        if done % max(1, n_cycles // ROWS) == 0:
            table.row(done)


def measure_decode(path: Path, n_tokens: int = 1000) -> None:
    """Print what decoding and reading logits leave allocated in C.

    C allocates about 100 bytes for each position in memory, so measure after clearing it too.
    """
    with Model(path) as model, Context(model, n_ctx=n_tokens, n_threads=1) as context:
        batch = Batch(1)

        def decode() -> int:
            for pos in range(n_tokens):
                batch.fill((97,), pos)
                context.decode(batch)
                context.logits()
            held = in_use_bytes()
            context.memory.clear()
            return held

        decode()
        before = in_use_bytes()
        held, left = decode() - before, in_use_bytes() - before
    print(f"C memory after {n_tokens} decodes: {held} bytes, {left} when the context is cleared")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--models", type=Path, default=DEFAULT_FOLDER, help="folder of the models")
    args = parser.parse_args()
    path = model_path("tiny", args.models)
    measure_decode(path)
    measure_tokens(path, args.tokens)
    measure_cycles(path, args.cycles)


if __name__ == "__main__":
    main()
