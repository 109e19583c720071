"""Stopping native code from outside: Ctrl-C, deadlines, `cancel()`.

While C computes, Python's own signal handlers wait. So one daemon thread watches: it is woken by
the signal through `signal.set_wakeup_fd`, or by the time of a deadline, and sets the abort flag
that C reads. The handler itself then runs in the main thread as usual.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from ..errors import CancelledError, DeadlineExceededError, DecodeAbortedError

if TYPE_CHECKING:
    from ..binding import AbortFlag

__all__ = [
    "CANCEL",
    "CLOSE",
    "DEADLINE",
    "INTERRUPT",
    "CancelScope",
    "CancelToken",
    "aborted",
    "on_cancel",
]

INTERRUPT, CANCEL, DEADLINE, CLOSE = "interrupt", "cancel", "deadline", "close"
_WAKE = b"\0"
_scope: ContextVar[CancelScope | None] = ContextVar("llama_cffi-cancel-scope", default=None)


class CancelScope:
    """A block of code whose generations can be ended from any thread, also those to come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Callable[[str], None]] = []
        self._cancelled = False
        self._outer: Token[CancelScope | None]

    def cancel(self) -> None:
        """End what runs or waits in the block with a DecodeAbortedError, and what begins there."""
        with self._lock:
            self._cancelled = True
            requests, self._requests = self._requests, []
        for request in requests:
            request(CANCEL)

    def add(self, request: Callable[[str], None]) -> None:
        """Let `cancel` call *request* with the reason."""
        with self._lock:
            self._requests.append(request)
            cancelled = self._cancelled
        if cancelled:
            request(CANCEL)

    def __enter__(self) -> None:
        self._outer = _scope.set(self)

    def __exit__(self, *_: object) -> None:
        _scope.reset(self._outer)


def on_cancel(request: Callable[[str], None]) -> None:
    """Let the `CancelScope` that is open here, if any, call *request* when it is cancelled."""
    if (scope := _scope.get()) is not None:
        scope.add(request)


class CancelToken:
    """Why and when one generation must stop. Any thread may ask for it.

    Args:
        flag: Makes the running `decode` stop.
        timeout_s: Seconds from now until the deadline; None = no deadline.
    """

    def __init__(self, flag: AbortFlag, timeout_s: float | None = None) -> None:
        self._flag = flag
        # Reentrant: a signal handler may cancel what its own thread is setting up.
        self._lock = threading.RLock()
        self._running = False
        self.reason: str | None = None
        self.deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.timeout_s = timeout_s
        on_cancel(self.request)

    def request(self, reason: str) -> None:
        """Ask the generation to stop; a Ctrl-C never hides another reason."""
        with self._lock:
            if self.reason in (None, INTERRUPT):
                self.reason = reason
            if self._running:
                self._flag.set()

    @contextmanager
    def running(self) -> Iterator[CancelToken]:
        """Let the flag stop what runs in this block, and watch the deadline."""
        try:
            with self._lock:
                self._flag.clear()
                self._running = True
                if self.reason is not None:
                    self._flag.set()
            if self.deadline is not None:
                _watcher().watch(self)
            yield self
        finally:
            # First: a Ctrl-C may cut this short, and a late deadline must not stop the next call.
            with self._lock:
                self._running = False
                self._flag.clear()
            if self.deadline is not None:
                _watcher().forget(self)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C stop the native code of this block; for long calls on the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        watcher = _watcher()
        try:
            watcher.listen(self)
            yield
        finally:
            watcher.unlisten(self)

    @property
    def is_running(self) -> bool:
        """Whether its generation has begun and not ended."""
        return self._running

    def resume_after_interrupt(self) -> bool:
        """Return True when only a signal stopped the call and its handler did not raise."""
        with self._lock:
            if self.reason != INTERRUPT:
                return False
            self.reason = None
            self._flag.clear()
        return True

    def check(self) -> None:
        """Raise when a stop was asked for; a signal's own handler raises for itself.

        Raises:
            DecodeAbortedError: With the reason.
        """
        if self.reason not in (None, INTERRUPT):
            raise self.error()

    def error(self, text: str = "") -> DecodeAbortedError:
        """Return the exception that says why; *text* is what was generated until then."""
        what = {
            DEADLINE: f"the deadline of {self.timeout_s} s has passed",
            CANCEL: "the generation was cancelled",
            CLOSE: "the engine was closed",
        }.get(self.reason or "", "decoding was stopped")
        return aborted(what, self.reason, text)


def aborted(message: str, reason: str | None, text: str = "") -> DecodeAbortedError:
    """Return the exception for *reason*; *text* is the text generated until then."""
    kind = {
        DEADLINE: DeadlineExceededError,
        CANCEL: CancelledError,
        CLOSE: CancelledError,
    }.get(reason or "", DecodeAbortedError)
    return kind(message, reason=reason, text=text)


class _Watcher:
    """The thread that waits for signals and deadlines.

    Ctrl-C may come between any two instructions of what the main thread does here. So a change
    outside (the descriptor) and its record are made by one call into C, and what was cut short is
    put right by the next `listen`.
    """

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._lock = threading.RLock()
        self._deadlines: set[CancelToken] = set()
        # The main thread's: who listens, the newest last, and the descriptors that were before.
        self._stops: list[CancelToken] = []
        self._before: list[int] = []
        threading.Thread(target=self._run, name="llama_cffi-interrupts", daemon=True).start()

    def watch(self, stop: CancelToken) -> None:
        with self._lock:
            self._deadlines.add(stop)
        with suppress(BlockingIOError):  # full: it is awake anyway
            self._write.send(_WAKE)

    def forget(self, stop: CancelToken) -> None:
        with self._lock:
            self._deadlines.discard(stop)

    def listen(self, stop: CancelToken) -> None:
        """Receive this process's signals; the main thread only."""
        self._settle()
        self._stops.append(stop)
        self._before.extend(map(_set_wakeup_fd, (self._write.fileno(),)))

    def unlisten(self, stop: CancelToken) -> None:
        """Give the signals back to who had them before *stop*."""
        while stop in self._stops:
            self._stops.pop()
        self._settle()

    def _settle(self) -> None:
        """Give back what generations that ended have not."""
        while self._stops and not self._stops[-1].is_running:
            self._stops.pop()
        while len(self._before) > len(self._stops):
            (current,) = map(_set_wakeup_fd, map(self._before.pop, (-1,)))
            if current != self._write.fileno():  # somebody else has taken it since
                _set_wakeup_fd(current)

    def _run(self) -> None:
        while True:
            self._read.settimeout(self._until_next())
            try:
                numbers = self._read.recv(256)
            except TimeoutError:
                numbers = b""
            except OSError:  # closed at exit
                return
            signals = numbers.replace(_WAKE, b"")
            for stop in self._stops[-1:] if signal.SIGINT in signals else ():
                stop.request(INTERRUPT)
            self._pass_on(signals)
            now = time.monotonic()
            with self._lock:
                due = [s for s in self._deadlines if s.deadline is not None and s.deadline <= now]
                self._deadlines.difference_update(due)
            for stop in due:
                stop.request(DEADLINE)

    def _until_next(self) -> float | None:
        with self._lock:
            times = [s.deadline for s in self._deadlines if s.deadline is not None]
        return max(0.001, min(times) - time.monotonic()) if times else None

    def _pass_on(self, signals: bytes) -> None:
        """Give the signals to whoever listened before, such as an asyncio loop."""
        forward = next((fd for fd in self._before[:] if fd != self._write.fileno()), -1)
        if signals and forward != -1:
            with suppress(OSError):
                if sys.platform == "win32":  # there it is a socket's number
                    listener = socket.socket(fileno=forward)
                    listener.send(signals)
                    listener.detach()
                else:
                    os.write(forward, signals)


_set_wakeup_fd = functools.partial(signal.set_wakeup_fd, warn_on_full_buffer=False)
_lock = threading.RLock()
_started: list[_Watcher] = []


def _watcher() -> _Watcher:
    with _lock:
        if not _started:
            _started.append(_Watcher())
        return _started[0]
