"""The process that quantizes, since C cannot be interrupted and may abort.

It reads a job as JSON from argv and writes one JSON object per line to stdout: the log lines of
C, and at the end its return value.
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


class _ParentHandler(logging.Handler):
    """Sends log records to the parent process; exits when the parent is gone."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(logging.DEBUG)
        self.out = out

    def emit(self, record: logging.LogRecord) -> None:
        self.send(line=record.getMessage(), level=record.levelno)

    def send(self, **message: Any) -> None:
        try:
            self.out.write(json.dumps(message) + "\n")
            self.out.flush()
        except OSError:
            os._exit(1)


def main() -> None:
    """Run the job and report to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and kills this process
    parent = _ParentHandler(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what C prints must not get into the messages
    job = json.loads(sys.argv[1])
    library = get_library(job["library"])
    log = logging.getLogger("llama_cffi.native")
    log.addHandler(parent)
    log.setLevel(logging.DEBUG)
    source, target = (os.fsencode(job[name]) for name in ("source", "target"))
    parent.send(result=compat.quantize_model(library, source, target, job["values"]))
