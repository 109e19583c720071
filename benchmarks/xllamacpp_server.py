"""The peer of serving.py: xllamacpp's server in this process, loads on stdin, times on stdout.

python benchmarks/xllamacpp_server.py MODEL N_PARALLEL N_CTX N_THREADS
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import xllamacpp


def make_server(model: str, n_parallel: int, n_ctx: int, n_threads: int) -> Any:
    """Start a server whose context is that of the other sides."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    params.n_parallel, params.n_ctx = n_parallel, n_parallel * n_ctx
    params.n_batch = params.n_ubatch = 512
    params.kv_unified = params.fit_params = False
    params.cache_ram_mib = 0
    params.verbosity = 0
    return xllamacpp.Server(params)


def serve(server: Any, prompts: Sequence[Sequence[int]], n_new: int) -> Any:
    """Stream all answers, each in a thread of its own."""
    stamps: list[list[float]] = [[] for _ in prompts]

    def read(prompt: Sequence[int], times: list[float]) -> None:
        def receive(piece: Any) -> bool:
            if not (isinstance(piece, dict) and piece.get("choices")):
                raise SystemExit(f"xllamacpp sent {piece!r}")
            if piece["choices"][0]["finish_reason"] is None:
                times.append(time.perf_counter() - start)
            elif piece["usage"]["completion_tokens"] != n_new:
                raise SystemExit(f"xllamacpp ended with {piece!r}")
            return False

        server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": n_new,
                "stream": True,
                "temperature": 0,
                "samplers": ["top_k"],  # of one: what its other samplers cost is left out
                "top_k": 1,
                "cache_prompt": False,
            },
            receive,
        )

    threads = [
        threading.Thread(target=read, args=pair) for pair in zip(prompts, stamps, strict=True)
    ]
    start, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return stamps, time.process_time() - cpu


def main() -> None:
    """Serve until stdin ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what C prints goes elsewhere
    model, *numbers = sys.argv[1:]
    server = make_server(model, *map(int, numbers))
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(server, *json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
