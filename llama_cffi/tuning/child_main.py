"""Measure a model in a child process: a CPU variant is chosen once per process, and C may crash.

A line of JSON on stdin is a request; each is answered by one on stdout.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from ..errors import LlamaError

__all__ = ["main"]


def main() -> None:
    """Load the model that argv describes, and answer the requests on stdin."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what C prints must not get into an answer

    def send(**answer: Any) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    job = json.loads(sys.argv[1])
    try:
        from ..binding import Context, Model
        from .timing import Request, time_request

        model = Model(job["path"], n_gpu_layers=job["n_gpu_layers"])
        with Context(model, n_ctx=64) as context:
            send(
                cpu_variant=model.library.cpu_variant,
                offloads=model.offloads,
                n_threads=context.n_threads,
                n_threads_batch=context.n_threads_batch,
                flash_attn=context.flash_attn,
            )
    except LlamaError as e:
        send(error=type(e).__name__, message=str(e))
        return
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            send(sample=time_request(model, asked["options"], Request(*asked["request"])))
        except LlamaError as e:
            send(error=type(e).__name__, message=str(e))
