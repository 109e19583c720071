"""The lock that queues the calls of an engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ValidationError

__all__ = ["CallLock"]


class CallLock:
    """A lock that a suspended stream may hold, and that never waits for its own thread.

    Attributes:
        owner: Id of the thread that holds the lock or last advanced the stream that holds it.
    """

    def __init__(self) -> None:
        self.owner: int | None = None
        self._lock = threading.Lock()

    @contextmanager
    def acquire(self, timeout_s: float | None = None, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock in this block; yield whether it was acquired in time.

        Raises:
            ValidationError: This thread holds the lock already, so waiting would never end.
        """
        # `list +=` and `map` run in C, so Ctrl-C cannot separate acquiring from recording it.
        acquired: list[bool] = []
        try:
            acquired += map(self._lock.acquire, (False,))
            if True not in acquired and wait:
                if self.owner == threading.get_ident():
                    raise ValidationError(
                        "this engine is busy in this thread, and waiting for it would never end: "
                        "exhaust or close its stream first; in a callback of its generation, use "
                        "another engine"
                    )
                timeout = -1 if timeout_s is None else timeout_s
                acquired += map(self._lock.acquire, (True,), (timeout,))
            if True in acquired:
                self.set_owner()
            yield True in acquired
        finally:
            if True in acquired:
                self.owner = None
                self._lock.release()

    def set_owner(self) -> None:
        """Make this thread the owner; a stream may continue in another thread."""
        self.owner = threading.get_ident()
