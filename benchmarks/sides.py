"""The sides of serving.py: a C loop, `InferenceEngine` used in three ways, and other packages."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from native import NativeBatch

from llama_cffi import InferenceEngine

FOLDER = Path(__file__).parent


class Load(NamedTuple):
    """Prompts submitted together, and the number of tokens to generate for each."""

    prompts: Sequence[Sequence[int]]
    n_new: int


class Served(NamedTuple):
    """The times of a load.

    Attributes:
        stamps: For each request, the seconds from the start to each part of its answer.
        cpu_s: Processor time of the serving process, all threads.
    """

    stamps: list[list[float]]
    cpu_s: float

    @property
    def total_s(self) -> float:
        """Seconds from the start to the last token."""
        return max(times[-1] for times in self.stamps)

    @property
    def first_s(self) -> list[float]:
        """Seconds to the first token of each request."""
        return [times[0] for times in self.stamps]

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between consecutive tokens of all requests."""
        return [b - a for times in self.stamps for a, b in pairwise(times)]


Serve = Callable[[Load], Served]


def native(engine: InferenceEngine) -> Serve:
    """Return a C loop on the context of an idle engine."""
    loop = NativeBatch(engine.model.library)

    def serve(load: Load) -> Served:
        cpu = time.process_time()
        stamps = loop.run(engine.context, load.prompts, load.n_new)
        engine.cache_clear()
        return Served(stamps, time.process_time() - cpu)

    return serve


def ours_result(engine: InferenceEngine, n_chunk: int | None = None) -> Serve:
    """Submit all requests, then wait for the complete answers."""
    default = engine.scheduler.n_prefill_chunk

    def serve(load: Load) -> Served:
        engine.cache_clear()
        engine.scheduler.n_prefill_chunk = n_chunk or default
        start, cpu = time.monotonic(), time.process_time()
        handles = [engine.submit(p, load.n_new, temperature=0) for p in load.prompts]
        stamps = []
        for handle in handles:
            handle.result()
            first = handle.request.created_s + handle.stats.time_to_first_token_s - start
            stamps.append([first, time.monotonic() - start])
        engine.scheduler.n_prefill_chunk = default
        return Served(stamps, time.process_time() - cpu)

    return serve


def ours_threads(engine: InferenceEngine) -> Serve:
    """Stream each answer in a thread of its own."""

    def serve(load: Load) -> Served:
        engine.cache_clear()
        stamps: list[list[float]] = [[] for _ in load.prompts]

        def read(prompt: Sequence[int], times: list[float]) -> None:
            for _ in engine.submit(prompt, load.n_new, temperature=0):
                times.append(time.perf_counter() - start)

        threads = [
            threading.Thread(target=read, args=pair)
            for pair in zip(load.prompts, stamps, strict=True)
        ]
        start, cpu = time.perf_counter(), time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Served(stamps, time.process_time() - cpu)

    return serve


def ours_asyncio(engine: InferenceEngine) -> Serve:
    """Stream all answers in one event loop."""

    async def stream(prompt: Sequence[int], n_new: int, start: float) -> list[float]:
        times = []
        async for _ in engine.submit(prompt, n_new, temperature=0):
            times.append(time.perf_counter() - start)
        return times

    async def every(load: Load) -> Served:
        start, cpu = time.perf_counter(), time.process_time()
        stamps = await asyncio.gather(*(stream(p, load.n_new, start) for p in load.prompts))
        return Served(stamps, time.process_time() - cpu)

    def serve(load: Load) -> Served:
        engine.cache_clear()
        return asyncio.run(every(load))

    return serve


class Peer:
    """Another package in a process of its own; see peers.py.

    It gets the same KV cells, batch size and threads. Loads and times go through pipes.
    """

    def __init__(self, name: str, model: Path, n_parallel: int, n_ctx: int, n_threads: int) -> None:
        self.name, arguments = name, (name, model, n_parallel, n_ctx, n_threads)
        self._child = subprocess.Popen(
            [sys.executable, str(FOLDER / "peers.py"), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()  # loaded

    def serve(self, load: Load) -> Served:
        """Send a load and wait for its times."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(load) + "\n")
        self._child.stdin.flush()
        return Served(*json.loads(self._read()))

    def close(self) -> None:
        """End the process."""
        self._child.communicate()

    def _read(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}'s process ended with {self._child.wait()}")
        return line
