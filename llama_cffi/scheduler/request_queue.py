"""Inbox: what other threads leave for the engine's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..errors import QueueFullError
from .request_handle import Handle

__all__ = ["Inbox", "Mail"]


@dataclass
class Mail:
    """What was left.

    Attributes:
        submitted: New requests.
        cancelled: Requests to end, and why.
        cancels_all: Whether every request shall end.
        clears: Whether the prefixes of finished requests shall be forgotten.
    """

    submitted: list[Handle] = field(default_factory=list)
    cancelled: list[tuple[Handle, str]] = field(default_factory=list)
    cancels_all: bool = False
    clears: bool = False


class Inbox:
    """Requests that come and go from any thread, until it is closed.

    Attributes:
        closed: Whether no more requests are taken.
    """

    def __init__(self) -> None:
        # Reentrant: a signal handler may cancel what its own thread is submitting.
        self._changed = threading.Condition(threading.RLock())
        self._mail = Mail()
        self.closed = False

    @property
    def submitted(self) -> list[Handle]:
        """Requests that nobody has taken yet, a copy."""
        return [*self._mail.submitted]

    @property
    def n_submitted(self) -> int:
        """How many they are."""
        return len(self._mail.submitted)

    @property
    def has_any(self) -> bool:
        """Whether anything was left."""
        return self.has_mail or self._mail.clears

    @property
    def has_mail(self) -> bool:
        """Whether a request comes or goes."""
        return bool(self._mail.submitted or self._mail.cancelled or self._mail.cancels_all)

    def submit(self, handle: Handle, n_too_many: Callable[[], int], wait: bool) -> bool:
        """Leave a request.

        Args:
            handle: The request.
            n_too_many: Says how many have to go first.
            wait: Wait for them, until the request's deadline.

        Returns:
            False when it is closed.

        Raises:
            QueueFullError: Too many wait already.
        """
        deadline_s = handle.request.deadline_s
        with self._changed:
            while not self.closed and (n := n_too_many()) > 0:
                left = None if deadline_s is None else deadline_s - time.monotonic()
                if not wait or (left is not None and left <= 0):
                    advice = "the deadline has passed" if wait else "or submit with wait=True"
                    raise QueueFullError(
                        f"{n} requests have to go before another one can come; {advice}, try again "
                        "later, or make the engine with a larger max_waiting"
                    )
                self._changed.wait(left)
            if not self.closed:
                self._mail.submitted.append(handle)
                self._changed.notify_all()
            return not self.closed

    def cancel(self, handle: Handle, reason: str) -> None:
        """Ask for the end of a request."""
        with self._changed:
            if not handle.done:
                self._mail.cancelled.append((handle, reason))
                self._changed.notify_all()

    def clear(self) -> None:
        """Ask that the prefixes of finished requests be forgotten."""
        with self._changed:
            self._mail.clears = True

    def close(self, drain: bool = True) -> None:
        """Take no more requests; without *drain* ask for the end of all that there are."""
        with self._changed:
            self.closed = True
            self._mail.cancels_all |= not drain
            self._changed.notify_all()

    # For the engine's thread

    def wait(self) -> bool:
        """Wait until a request comes or goes; False = it is closed, and none will."""
        with self._changed:
            while not self.has_mail:
                if self.closed:
                    return False
                self._changed.wait()
        time.sleep(0)  # who has just submitted one mostly goes on with others, or waits at once
        return True

    @contextmanager
    def taking(self) -> Iterator[Mail]:
        """Give what is there, and empty it; nothing comes in this block."""
        with self._changed:
            mail, self._mail = self._mail, Mail()
            yield mail

    def notify(self) -> None:
        """Tell those that wait that there may be room."""
        with self._changed:
            self._changed.notify_all()
