"""The lock that queues the calls of an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import ValidationError

__all__ = ["CallLock", "Turn"]

_LEAST_S, _MOST_S = 0.1, 5.0  # for which a paused stream keeps the lock


class Turn:
    """One call's turn with a `CallLock`.

    Attributes:
        displaces: Whether it took the lock from a paused stream.
        held: Not empty while it holds the lock and is not paused.
    """

    __slots__ = ("_cost_s", "_lock", "_paused_s", "displaces", "held")

    def __init__(self, lock: CallLock) -> None:
        self._lock = lock
        self._paused_s = self._cost_s = 0.0
        self.displaces = False
        # Filled and emptied in one call into C each, which Ctrl-C cannot divide.
        self.held: list[object] = []

    def pause(self, cost_s: float = 0.0) -> None:
        """Let newer calls take the lock, until the turn continues. Hot: every streamed token.

        Args:
            cost_s: What the turn would have to do again, seconds; calls wait that long first.
        """
        lock, self._cost_s = self._lock, cost_s
        self._paused_s = time.monotonic()
        lock.owner = None
        lock.paused += map(self.held.pop, (-1,))

    def reclaim(self) -> bool:
        """End the pause, without waiting; return whether the turn still holds the lock.

        Hot: every streamed token.
        """
        lock = self._lock
        try:
            self.held += map(lock.paused.remove, (self,))
        except ValueError:  # another call has the lock
            return False
        self.held = [self]
        lock.set_owner()
        return True

    def left_s(self) -> float:
        """Return for how long the pause may still last before other threads take the lock."""
        patience_s = max(_LEAST_S, min(self._cost_s, _MOST_S))
        return self._paused_s + patience_s - time.monotonic()

    def wait(self, timeout_s: float | None = None, *, blocks: bool = True) -> bool:
        """Wait for the lock; return whether the turn holds it.

        Raises:
            ValidationError: This thread holds the lock, so waiting would never end.
        """
        lock, self.displaces = self._lock, False
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        lock.note_thread()
        while True:
            self.held += filter(None, map(lock.lock.acquire, (False,)))
            if self.held:
                break
            left_s = lock.pause_left_s()
            if left_s is not None and (left_s <= 0 or not blocks):
                with suppress(IndexError):  # it has just continued
                    self.held += map(lock.paused.pop, (-1,))
                if self.held:
                    self.displaces = True
                    break
            if not blocks:
                return False
            if lock.owner == threading.get_ident():
                raise ValidationError(
                    "this engine is busy in this thread, and waiting for it would never end: in a "
                    "callback of its generation, use another engine"
                )
            seconds = left_s if left_s and left_s > 0 else _LEAST_S
            if deadline is not None:
                seconds = min(seconds, deadline - time.monotonic())
                if seconds <= 0:
                    return False
            self.held += filter(None, map(lock.lock.acquire, (True,), (seconds,)))
            if self.held:
                break
        self.held = [self]
        lock.set_owner()
        return True


class CallLock:
    """A lock for calls, some of which are streams that pause between two of their tokens.

    Waiting calls queue. A call that meets a paused stream takes the lock from it: immediately while
    only one thread has used the lock, because that thread cannot continue the stream and wait;
    else once the stream has not been continued for as long as it took to decode its prompt (0.1 to
    5 s), because another thread may be about to. The stream waits for the lock again when it is
    continued.

    Attributes:
        owner: Id of the thread in which a turn runs; None: none runs.
        lock: Held by the turn that runs or is paused.
        paused: The turn that holds the lock while it is paused, if any.
    """

    def __init__(self) -> None:
        self.owner: int | None = None
        self.lock = threading.Lock()
        self.paused: list[object] = []
        self._thread: int | None = None
        self._is_shared = False

    @contextmanager
    def acquire(
        self, timeout_s: float | None = None, *, wait: bool = True
    ) -> Iterator[Turn | None]:
        """Hold the lock in this block; yield the turn, or None if it was not acquired in time.

        Without *wait* the lock of a paused stream is taken in any case.

        Raises:
            ValidationError: This thread holds the lock already, so waiting would never end.
        """
        turn = Turn(self)
        try:
            yield turn if turn.wait(timeout_s, blocks=wait) else None
        finally:
            # No call into Python, at whose beginning Ctrl-C could prevent the release.
            if not turn.held:
                try:  # noqa: SIM105
                    turn.held += map(self.paused.remove, (turn,))
                except ValueError:  # another call has the lock
                    pass
            if turn.held:
                self.owner = None
                self.lock.release()
                turn.held = []

    def pause_left_s(self) -> float | None:
        """Return for how long the paused stream still keeps the lock; None: a turn runs."""
        for turn in self.paused[-1:]:
            if isinstance(turn, Turn):
                return turn.left_s() if self._is_shared else 0.0
        return None

    def set_owner(self) -> None:
        """Make this thread the owner; a stream may continue in another thread."""
        self.owner = thread = threading.get_ident()
        if thread != self._thread:
            self.note_thread()

    def note_thread(self) -> None:
        """Note that this thread uses the lock."""
        thread = threading.get_ident()
        if self._thread is None:
            self._thread = thread
        elif self._thread != thread:
            self._is_shared = True
