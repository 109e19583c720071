"""The process that quantizes: C cannot be interrupted and may abort, so it runs apart.

It is given a job as JSON in argv, and writes one JSON object on each line of stdout: what C logs,
and at the end what it returned.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import Any, TextIO

from .. import compat
from ..loading.library import get_library

__all__ = ["main"]


class _Lines(logging.Handler):
    """Writes what C logs to the parent; without a parent there is nothing left to do."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(logging.DEBUG)
        self.out = out

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(line=record.getMessage(), level=record.levelno)

    def tell(self, **what: Any) -> None:
        try:
            self.out.write(json.dumps(what) + "\n")
            self.out.flush()
        except OSError:
            os._exit(1)


def main() -> None:
    """Do the job, and tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it, and ends this process
    lines = _Lines(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # whatever C prints is no answer
    job = json.loads(sys.argv[1])
    library = get_library(job["library"])
    log = logging.getLogger("llama_cffi.native")
    log.addHandler(lines)
    log.setLevel(logging.DEBUG)
    source, target = (os.fsencode(job[name]) for name in ("source", "target"))
    lines.tell(result=compat.quantize_model(library, source, target, job["values"]))
