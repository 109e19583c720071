"""Streams over HTTP: `llama-cffi serve` compared with llama-server's code and with no HTTP at all.

    python benchmarks/http_clients.py [--only tiny 0.6B] [--parallel 1 8 32] [--rounds 5]
        [--threads 2]

Each client streams one answer from `/completion`: 64 random tokens, greedy, a fixed number of new
tokens. The sides take turns in random order: our server and xllamacpp's, each a process of its own
with the same context, batch size and threads, and `InferenceEngine` in this process, streamed in
one event loop. The clients are this process for all of them.

Prints medians, and the ranges of the ratios of one round. `HTTP` is what a token costs more than
in process: wall time per token of all clients together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from models import DEFAULT_FOLDER, model_path
from serving import N_NEW, N_PROMPT, SETTLE_S, load, spread
from sides import FOLDER, Load, Serve, Served, ours_asyncio
from tqdm import tqdm

from llama_cffi import InferenceEngine

N_CTX = 256
# xllamacpp's other samplers would cost time that ours do not need.
BODY = {
    "stream": True, "temperature": 0, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False,
}  # fmt: skip


class HttpSide:
    """A server in a process of its own.

    Args:
        command: Starts it; prints its URL in the first line.
        output: Where it prints that.
    """

    def __init__(self, command: Sequence[str], output: str) -> None:
        quiet = subprocess.DEVNULL
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if output == "stdout" else quiet,
            stderr=subprocess.PIPE if output == "stderr" else quiet,
            text=True,
        )
        stream = getattr(self._child, output)
        for line in stream:
            if "http://" in line:
                where = urlsplit(line[line.index("http://") :].split()[0].rstrip("."))
                self._address = where.hostname, where.port
                break
        else:
            raise SystemExit(f"{command[0]} ended with {self._child.wait()}")

    def serve(self, load: Load) -> Served:
        """Stream all answers together."""
        return asyncio.run(self._all(load))

    def close(self) -> None:
        """End the process."""
        self._child.terminate()
        self._child.communicate()

    def cpu_s(self) -> float:
        """Processor time of the server, all threads, in seconds."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    async def _all(self, load: Load) -> Served:
        cpu, start = self.cpu_s(), time.perf_counter()
        stamps = await asyncio.gather(*(self._stream(p, load.n_new, start) for p in load.prompts))
        return Served(stamps, self.cpu_s() - cpu)

    async def _stream(self, prompt: Sequence[int], n_new: int, start: float) -> list[float]:
        reader, writer = await asyncio.open_connection(*self._address)
        body = json.dumps({**BODY, "prompt": prompt, "n_predict": n_new}).encode()
        head = (
            "POST /completion HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        times, last = [], b""
        # An event may come in two parts; its beginning and the end of the one before come together.
        while data := await reader.read(65536):
            if b'"content":' in data:
                times.append(time.perf_counter() - start)
            last = (last + data)[-20000:]
        writer.close()
        found = last.rpartition(b'"tokens_predicted":')[2].strip()
        n_predicted = int(found[: len(found) - len(found.lstrip(b"0123456789"))] or -1)
        if n_predicted != n_new:
            raise SystemExit(f"{n_predicted} tokens instead of {n_new}: {last[-500:]!r}")
        return times


@contextmanager
def sides(path: Path, n: int, n_threads: int) -> Iterator[dict[str, Serve]]:
    """Provide every side for *n* clients."""
    ours = [sys.executable, "-m", "llama_cffi", "serve", "-m", str(path), "--port", "0"]
    ours += ["-np", str(n), "-c", str(N_CTX), "-t", str(n_threads)]
    theirs = [sys.executable, str(FOLDER / "peers.py"), "xllamacpp-http", str(path)]
    servers = [
        HttpSide(ours, "stderr"),
        HttpSide([*theirs, *map(str, (n, N_CTX, n_threads))], "stdout"),
    ]
    try:
        with InferenceEngine(path, n, N_CTX, n_threads=n_threads) as engine:
            yield {
                "in process": ours_asyncio(engine),
                "serve": servers[0].serve,
                "xllamacpp": servers[1].serve,
            }
    finally:
        for server in servers:
            server.close()


def measure(model: str, path: Path, n: int, rounds: int, n_threads: int) -> None:
    """Let all sides take turns with *n* clients, and print a line for each."""
    n_new, rng = N_NEW[model], np.random.default_rng(0)
    runs: dict[str, list[Served]] = {}
    with sides(path, n, n_threads) as every:
        for serve in every.values():  # warm up
            serve(load(rng, n, N_PROMPT, 2))
        for _ in tqdm(range(rounds), desc=f"{model} {n}", leave=False):
            # Few clients answer too quickly for one measurement.
            works = [load(rng, n, N_PROMPT, n_new) for _ in range(max(1, 8 // n))]
            for side in rng.permutation(list(every)):
                time.sleep(SETTLE_S)
                runs.setdefault(side, []).extend(every[side](work) for work in works)
    n_tokens = n * n_new
    for side in every:
        mine = runs[side]
        firsts = [statistics.mean(run.first_s) for run in mine]
        first_of_theirs = [statistics.mean(run.first_s) for run in runs["xllamacpp"]]
        rates = [b.total_s / a.total_s for a, b in zip(mine, runs["xllamacpp"], strict=True)]
        more = [
            (a.total_s - b.total_s) / n_tokens * 1e6
            for a, b in zip(mine, runs["in process"], strict=True)
        ]
        rate = statistics.median(n_tokens / run.total_s for run in mine)
        print(
            f"{model:5} {n:3} {side:10} {rate:8.1f} {statistics.median(firsts) * 1e3:8.1f} ms"
            f"  {spread(rates)}  "
            f"{spread([a / b for a, b in zip(firsts, first_of_theirs, strict=True)])}  "
            f"{statistics.median(more):7.0f} us  "
            f"{statistics.median(r.cpu_s / n_tokens for r in mine) * 1e6:7.0f} us"
        )


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--only", nargs="*", choices=list(N_NEW), default=list(N_NEW))
    parser.add_argument("--parallel", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print(
        "model   n side       tokens/s first token  rate / xllamacpp   first / xllamacpp"
        "    HTTP/token  CPU/token"
    )
    for model in args.only:
        path = model_path(model, args.models)
        for n in args.parallel:
            measure(model, path, n, args.rounds, args.threads)


if __name__ == "__main__":
    main()
