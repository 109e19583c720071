"""One caller at a time, the others wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ValidationError

__all__ = ["CallLock"]


class CallLock:
    """A lock that a suspended generator may hold, and that refuses to wait for its own thread.

    Attributes:
        holder: The thread that has the turn, or left the stream waiting that has it.
    """

    def __init__(self) -> None:
        self.holder: int | None = None
        self._lock = threading.Lock()

    @contextmanager
    def take(self, timeout_s: float | None = None, *, wait: bool = True) -> Iterator[bool]:
        """Wait for the turn and have it in this block; False = it did not come in time.

        Raises:
            ValidationError: This very thread has it, so that waiting would never end.
        """
        # map takes the lock and the list notes it within C, where no Ctrl-C comes between.
        taken: list[bool] = []
        try:
            taken += map(self._lock.acquire, (False,))
            if True not in taken and wait:
                if self.holder == threading.get_ident():
                    raise ValidationError(
                        "this engine is busy in this thread: a stream of it waits here (exhaust or "
                        "close it first), or this is a callback of its own generation (use another "
                        "engine there); waiting for it would never end"
                    )
                timeout = -1 if timeout_s is None else timeout_s
                taken += map(self._lock.acquire, (True,), (timeout,))
            if True in taken:
                self.move_here()
            yield True in taken
        finally:
            if True in taken:
                self.holder = None
                self._lock.release()

    def move_here(self) -> None:
        """Note that this thread goes on with what has the turn."""
        self.holder = threading.get_ident()
