"""The peers of serving.py, each in a process of its own: loads on stdin, times on stdout.

    python benchmarks/peers.py NAME MODEL N_PARALLEL N_CTX N_THREADS

`xllamacpp` is its server, called without HTTP; `xllamacpp-http` prints the address of that server
and waits. `llama_cpp` is llama-cpp-python, which answers one
request after the other; its tokens are counted as its loop yields them, before detokenization.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

Serve = Callable[[Sequence[Sequence[int]], int], Any]


def xllamacpp(*arguments: Any) -> Serve:
    """Return a function that answers all prompts together on its server."""
    server = _server(*arguments)
    return lambda prompts, n_new: _stream_all(server, prompts, n_new)


def llama_cpp(model: str, _n_parallel: int, n_ctx: int, n_threads: int) -> Serve:
    """Return a function that answers prompts one after the other with llama-cpp-python."""
    from llama_cpp import Llama

    llm = Llama(model, n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads, verbose=False)

    def serve(prompts: Sequence[Sequence[int]], n_new: int) -> Any:
        stamps: list[list[float]] = []
        start, cpu = time.perf_counter(), time.process_time()
        for prompt in prompts:
            times: list[float] = []
            for _ in llm.generate(prompt, temp=0.0):
                times.append(time.perf_counter() - start)
                if len(times) == n_new:
                    break
            stamps.append(times)
        return stamps, time.process_time() - cpu

    return serve


def _server(model: str, n_parallel: int, n_ctx: int, n_threads: int) -> Any:
    """Start a server with the same context parameters as the other sides."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    params.n_parallel, params.n_ctx = n_parallel, n_parallel * n_ctx
    params.n_batch = params.n_ubatch = 512
    params.kv_unified = params.fit_params = False
    params.cache_ram_mib = 0
    params.verbosity = 0
    params.port = 0
    return xllamacpp.Server(params)


def _stream_all(server: Any, prompts: Sequence[Sequence[int]], n_new: int) -> Any:
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
                "samplers": ["top_k"],  # without the cost of its other samplers
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
    os.dup2(2, 1)  # keep C's output out of the results
    name, model, *numbers = sys.argv[1:]
    if name == "xllamacpp-http":
        server = _server(model, *map(int, numbers))
        print(server.listening_address, file=out, flush=True)
        sys.stdin.read()
        return
    serve = {"xllamacpp": xllamacpp, "llama_cpp": llama_cpp}[name](model, *map(int, numbers))
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(*json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
