"""MediaEncoder: encodes the pictures and sounds of waiting requests in a thread of its own.

Meanwhile the engine goes on with the text of others. Only one picture is encoded at a time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from .request import Request

__all__ = ["MediaEncoder"]

Done = Callable[[Request, "BaseException | None"], object]


class MediaEncoder:
    """Encodes in the order of submission.

    Args:
        done: Called in the encoder's thread when a request is encoded, or with its error.
    """

    def __init__(self, done: Done) -> None:
        self._done = done
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, request: Request) -> None:
        """Encode the pictures and sounds of a request."""
        self._requests.put(request)
        if self._thread is None:
            self._thread = threading.Thread(
                target=_run,
                args=(self._requests, self._done),
                name="llama_cffi-encoder",
                daemon=True,
            )
            self._thread.start()

    def close(self) -> None:
        """End the thread after what it encodes now; does not wait."""
        if self._thread is not None:
            self._requests.put(None)
            self._thread = None


def _run(requests: queue.SimpleQueue[Request | None], done: Done) -> None:
    while (request := requests.get()) is not None:
        error = None
        try:
            for span in request.prompt.spans():
                if request.finished:  # cancelled meanwhile
                    break
                span.media.encode()
        except BaseException as raised:
            error = raised
        done(request, error)
        del request, error  # they hold the model while the thread waits
