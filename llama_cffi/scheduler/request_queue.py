"""RequestQueue: passes requests and commands from other threads to the engine's thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from ..context_managers import contextmanager
from ..errors import QueueFullError
from .request import Request
from .request_handle import RequestHandle

__all__ = ["PendingUpdates", "RequestQueue"]

T = TypeVar("T")


@dataclass
class PendingUpdates:
    """The changes to apply before the next step.

    Attributes:
        submitted: New requests.
        cancelled: Requests to end, and the reasons.
        encoded: Requests whose pictures and sounds are encoded, or the errors.
        cancel_all: Whether to end every request.
        clear_cache: Whether to evict the prefixes of finished requests.
    """

    submitted: list[RequestHandle] = field(default_factory=list)
    cancelled: list[tuple[RequestHandle, str]] = field(default_factory=list)
    encoded: list[tuple[Request, BaseException | None]] = field(default_factory=list)
    cancel_all: bool = False
    clear_cache: bool = False


class RequestQueue:
    """Accepts requests and commands from any thread until it is closed.

    Attributes:
        closed: Whether new requests are refused.
        paused: Whether requests wait; closing ends that.
    """

    def __init__(self) -> None:
        # Reentrant: a signal handler may cancel a request that its own thread is submitting.
        self._changed = threading.Condition(threading.RLock())
        self._pending = PendingUpdates()
        self._calls: deque[Callable[[BaseException | None], None]] = deque()
        self._deferred: list[Callable[[BaseException | None], None]] = []
        self.closed = self.paused = False

    @property
    def submitted(self) -> list[RequestHandle]:
        """The requests not taken yet, a copy."""
        return [*self._pending.submitted]

    @property
    def n_submitted(self) -> int:
        """Number of requests not taken yet."""
        return len(self._pending.submitted)

    @property
    def has_updates(self) -> bool:
        """Whether there is anything to apply before the next step."""
        return self.has_requests or self._pending.clear_cache

    @property
    def has_requests(self) -> bool:
        """Whether any request was submitted or cancelled, or a thread waits for a call."""
        pending = self._pending
        return bool(
            pending.submitted
            or pending.cancelled
            or pending.encoded
            or pending.cancel_all
            or self._calls
        )

    def submit(self, handle: RequestHandle, n_over_limit: Callable[[], int], wait: bool) -> bool:
        """Add a request.

        Args:
            handle: The request.
            n_over_limit: Returns how many requests must leave the queue first.
            wait: Wait for them, until the deadline of the request.

        Returns:
            False when the queue is closed.

        Raises:
            QueueFullError: Too many requests are waiting.
        """
        deadline_s = handle.request.deadline_s
        with self._changed:
            while not self.closed and (n := n_over_limit()) > 0:
                left = None if deadline_s is None else deadline_s - time.monotonic()
                if not wait or (left is not None and left <= 0):
                    advice = "the deadline has passed" if wait else "submit with wait=True"
                    raise QueueFullError(
                        f"the queue is full: {n} requests must leave it first; {advice}, try again "
                        "later, or create the engine with a larger max_waiting"
                    )
                self._changed.wait(left)
            if not self.closed:
                self._pending.submitted.append(handle)
                self._changed.notify_all()
            return not self.closed

    def cancel(self, handle: RequestHandle, reason: str) -> None:
        """Request the end of a request."""
        with self._changed:
            if not handle.done:
                self._pending.cancelled.append((handle, reason))
                self._changed.notify_all()

    def put_encoded(self, request: Request, error: BaseException | None) -> None:
        """Pass on a request that is encoded, or the error."""
        with self._changed:
            self._pending.encoded.append((request, error))
            self._changed.notify_all()

    def clear_cache(self) -> None:
        """Request the eviction of the prefixes of finished requests."""
        with self._changed:
            self._pending.clear_cache = True

    def call(
        self, function: Callable[[], T], is_ready: Callable[[], bool] | None = None
    ) -> Future[T] | None:
        """Request a call in the engine's thread, between two steps; None: the queue is closed.

        Args:
            function: What to call.
            is_ready: Called before; while it returns False, the call waits until a request ends.
        """
        future: Future[T] = Future()

        def run(refusal: BaseException | None) -> None:
            is_early = refusal is None and is_ready is not None and not is_ready()
            if is_early and not future.cancelled():
                self._deferred.append(run)
                return
            if not future.set_running_or_notify_cancel():
                return
            try:
                if refusal is not None:
                    raise refusal
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    raise

        with self._changed:
            if self.closed:
                return None
            self._calls.append(run)
            self._changed.notify_all()
        return future

    def pause(self, paused: bool) -> None:
        """Let requests wait, or run again; ignored once the queue is closed."""
        with self._changed:
            self.paused = paused and not self.closed
            self._changed.notify_all()

    def close(self, drain: bool = True) -> None:
        """Refuse new requests; without *drain* also request the end of all others."""
        with self._changed:
            self.closed, self.paused = True, False
            self._pending.cancel_all |= not drain
            self._changed.notify_all()

    # For the engine's thread

    def wait(self, has_work: bool, timeout_s: float | None, n_encoding: int = 0) -> bool:
        """Wait until there is something to do; False = the queue is closed and empty.

        Args:
            has_work: Whether requests wait or run already; they go on when the queue is not paused.
            timeout_s: The time to the next deadline.
            n_encoding: Number of requests that `put_encoded` will pass on.
        """
        with self._changed:
            while not self.has_requests and (self.paused or not has_work):
                if self.closed and not n_encoding:
                    return False
                if not self._changed.wait(timeout_s):
                    return True
        time.sleep(0)  # lets the submitting thread add more requests to the first step
        return True

    @contextmanager
    def take(self) -> Iterator[PendingUpdates]:
        """Yield the pending updates and remove them; other threads wait during the block."""
        with self._changed:
            pending, self._pending = self._pending, PendingUpdates()
            yield pending

    def run_calls(self, refusal: BaseException | None = None) -> None:
        """Run what `call` was given, or let it raise *refusal*."""
        self.retry_calls()
        while self._calls:
            self._calls.popleft()(refusal)

    def retry_calls(self) -> None:
        """Let the calls that were not ready be tried again before the next step."""
        with self._changed:
            self._calls.extendleft(reversed(self._deferred))
            self._deferred.clear()

    def notify(self) -> None:
        """Wake the threads that wait in `submit`."""
        with self._changed:
            self._changed.notify_all()
