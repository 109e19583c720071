"""The lock that queues the calls of a context."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from ..context_managers import contextmanager
from ..errors import ValidationError
from .request_scope import current_scope

__all__ = ["CallLock", "Turn"]

_LEAST_S, _MOST_S = 0.1, 5.0  # for which a paused stream keeps the lock
_AHEAD = 4  # times as long a stream that was not read in time computes ahead


class _Waiter(threading.Event):
    """A waiting call; set when it is the first.

    Attributes:
        client: For whom it runs.
        round: The round in which it is served; each client has one call in a round.
    """

    def __init__(self, client: str | None, round: int) -> None:
        super().__init__()
        self.client, self.round = client, round


class Turn:
    """One call's turn with a `CallLock`.

    Attributes:
        held: Not empty while it holds the lock and is not paused.
    """

    __slots__ = ("_cost_s", "_is_late", "_lock", "_paused_s", "_started_s", "held")

    def __init__(self, lock: CallLock) -> None:
        self._lock = lock
        self._started_s = self._paused_s = self._cost_s = 0.0
        self._is_late = False
        # Filled and emptied in one call into C each, which Ctrl-C cannot divide.
        self.held: list[object] = []

    def pause(self, cost_s: float = 0.0) -> None:
        """Let newer calls take the lock, until the turn continues. Hot: every streamed token.

        A stream that was late once does not make other threads wait for it again.

        Args:
            cost_s: What the turn would have to do again, seconds; calls wait that long first.
        """
        lock, self._cost_s = self._lock, cost_s
        if self._is_late and lock.waiting:
            self.release()
            return
        self._paused_s = time.monotonic()
        lock.owner = None
        lock.paused += map(self.held.pop, (-1,))

    def release(self) -> None:
        """Release the lock, which the turn must hold."""
        lock = self._lock
        self.held = []  # then Ctrl-C cannot come before the release
        lock.owner = None
        lock.lock.release()

    def reclaim(self) -> bool:
        """End the pause, without waiting; return whether the turn still holds the lock.

        Hot: every streamed token.
        """
        lock = self._lock
        try:
            self.held += map(lock.paused.remove, (self,))
        except ValueError:  # another call has the lock
            self._is_late = True
            return False
        self.held = [self]
        lock.set_owner()
        return True

    @property
    def computes_ahead(self) -> bool:
        """Whether a stream should go on before it pauses. Hot: every streamed token.

        One that was late does so for some time while other calls wait, because it would be late
        again: its reader may need one of the threads that wait.
        """
        if not (self._is_late and self._lock.waiting):
            return False
        return time.monotonic() - self._started_s < _AHEAD * self._patience_s

    @property
    def _patience_s(self) -> float:
        return max(_LEAST_S, min(self._cost_s, _MOST_S))

    def left_s(self) -> float:
        """Return for how long the pause may still last before other threads take the lock."""
        return self._paused_s + self._patience_s - time.monotonic()

    def wait(self, timeout_s: float | None = None, *, blocks: bool = True) -> bool:
        """Wait for the lock; return whether the turn holds it.

        Raises:
            ValidationError: This thread holds the lock, so waiting would never end.
        """
        lock = self._lock
        lock.note_thread()
        if not (lock.waiting and blocks):
            self.held += filter(None, map(lock.lock.acquire, (False,)))
        waiter = lock.waiter()
        if not self.held:
            try:
                lock.enqueue(waiter)
                self._wait(waiter, timeout_s, blocks)
            finally:
                try:  # noqa: SIM105 (no call into Python, as in `acquire`)
                    lock.waiting.remove(waiter)
                except ValueError:
                    pass
                for event in lock.waiting[:1]:
                    event.set()
        if not self.held:
            return False
        self.held = [self]
        lock.set_owner()
        lock.last = waiter
        self._started_s = time.monotonic()
        return True

    def _wait(self, waiter: _Waiter, timeout_s: float | None, blocks: bool) -> None:
        lock = self._lock
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        waited = not blocks
        while not self.held:
            first = lock.waiting[0] is waiter
            left_s = lock.pause_left_s() if first or waited else None
            if left_s is not None and (left_s <= 0 or not blocks):
                with suppress(IndexError):  # it has just continued
                    self.held += map(lock.paused.pop, (-1,))
                if self.held:
                    return
            if not blocks:
                return
            if lock.owner == threading.get_ident():
                raise ValidationError(
                    "this engine is busy in this thread, and waiting for it would never end: in a "
                    "callback of its generation, use another engine"
                )
            seconds = left_s if left_s and left_s > 0 else _LEAST_S
            if deadline is not None:
                seconds = min(seconds, deadline - time.monotonic())
                if seconds <= 0:
                    return
            if not first:  # a second Ctrl-C may have left an entry that nobody removes before it
                waited = not waiter.wait(seconds)
                seconds = 0
            self.held += filter(None, map(lock.lock.acquire, (True,), (seconds,)))
            if first and self.held and lock.waiting[0] is not waiter:
                self.release()  # to a call of another client, which came meanwhile


class CallLock:
    """A lock for calls, some of which are streams that pause between two of their tokens.

    Waiting calls are served in the order in which they came; those of several clients, as the
    `RequestScope` names them, take turns. One that meets a paused stream takes
    the lock from it: immediately while only one thread has used the lock, because that thread
    cannot continue the stream and wait; else once the stream has not been continued for as long as
    it took to decode its prompt (0.1 to 5 s), because another thread may be about to. The stream
    waits for the lock again when it is continued. Its reader may be kept by the very threads that
    wait, as in a pool that has no other: so from then on, while others wait, it computes ahead for
    four times as long and then leaves the lock to them.

    Attributes:
        owner: Id of the thread in which a turn runs; None: none runs.
        lock: Held by the turn that runs or is paused.
        paused: The turn that holds the lock while it is paused, if any.
        waiting: The calls that wait, in the order of service.
        last: The call that has the lock, or had it last.
    """

    def __init__(self) -> None:
        self.owner: int | None = None
        self.lock = threading.Lock()
        self.paused: list[object] = []
        self.waiting: list[_Waiter] = []
        self.last = _Waiter(None, 0)
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

    def waiter(self) -> _Waiter:
        """Return a new call: in the current round, or the one after the last call of its client."""
        scope, last = current_scope(), self.last
        client = None if scope is None else scope.client
        own = [call.round for call in (last, *self.waiting) if call.client == client]
        return _Waiter(client, max(last.round, max(own, default=-1) + 1))

    def enqueue(self, waiter: _Waiter) -> None:
        """Let a call wait, behind those of the same round."""
        n_before = sum(call.round <= waiter.round for call in [*self.waiting])
        self.waiting.insert(n_before, waiter)

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
