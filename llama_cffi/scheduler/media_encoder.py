"""MediaEncoder: encodes the pictures and sounds of waiting requests in a thread of its own.

Meanwhile the engine goes on with the text of others. Only one picture is encoded at a time.
"""

from __future__ import annotations

import atexit
import math
import queue
import threading
import weakref
from collections.abc import Callable
from typing import TypeAlias

from .request import Request

__all__ = ["MediaEncoder"]

Done = Callable[[Request, "BaseException | None"], object]
# Rank and number order the requests; None ends the thread.
_Entries: TypeAlias = "queue.PriorityQueue[tuple[float, int, Request | None]]"

_EXIT_S = 10.0  # at exit, longer encoding is not waited for


class MediaEncoder:
    """Encodes by rank, lowest first.

    Args:
        done: Called in the encoder's thread when a request is encoded, or with its error.
    """

    def __init__(self, done: Done) -> None:
        self._done = done
        self._entries: _Entries = queue.PriorityQueue()
        self._thread: threading.Thread | None = None

    def submit(self, request: Request, rank: float) -> None:
        """Encode the pictures and sounds of a request."""
        self._entries.put((rank, request.number, request))
        if self._thread is None:
            self._thread = threading.Thread(
                target=_run,
                args=(self._entries, self._done),
                name="llama_cffi-encoder",
                daemon=True,
            )
            _alive.add(self._thread)
            self._thread.start()

    def close(self) -> None:
        """End the thread after what it encodes now; does not wait."""
        if self._thread is not None:
            self._entries.put((-math.inf, 0, None))
            self._thread = None


def _run(entries: _Entries, done: Done) -> None:
    while (request := entries.get()[2]) is not None:
        error = span = None
        try:
            for span in request.prompt.spans():
                if request.finished:  # cancelled meanwhile
                    break
                span.media.encode()
        except BaseException as raised:
            error = raised
        done(request, error)
        del request, error, span  # they hold the model while the thread waits


_alive: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _await_all() -> None:
    """Wait for what is being encoded, before the interpreter frees what C uses."""
    for thread in [*_alive]:
        thread.join(_EXIT_S)


atexit.register(_await_all)  # before the one of EngineThread, to run after it
