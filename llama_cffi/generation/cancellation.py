"""Stopping native code from the outside: Ctrl-C, deadlines, `cancel()`.

Python's signal handlers cannot run while C computes. A daemon thread therefore waits for signals,
through `signal.set_wakeup_fd`, and for deadlines, and sets the abort flag that C polls. The handler
itself then runs in the main thread as usual.
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
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from ..context_managers import contextmanager
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
# Reentrant: a signal handler may cancel a generation that its own thread is starting.
_flag_lock = threading.RLock()
_scope: ContextVar[CancelScope | None] = ContextVar("llama_cffi-cancel-scope", default=None)


class CancelScope:
    """A block whose generations, running and future, can be cancelled from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[str], None]] = []
        self._cancelled = False
        self._outer: Token[CancelScope | None]

    def cancel(self) -> None:
        """End the block's running, waiting and future generations with a DecodeAbortedError."""
        with self._lock:
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(CANCEL)

    def add(self, callback: Callable[[str], None]) -> None:
        """Call *callback* with the reason on `cancel`, immediately if it was called before."""
        with self._lock:
            self._callbacks.append(callback)
            cancelled = self._cancelled
        if cancelled:
            callback(CANCEL)

    def __enter__(self) -> None:
        self._outer = _scope.set(self)

    def __exit__(self, *_: object) -> None:
        _scope.reset(self._outer)


def on_cancel(callback: Callable[[str], None]) -> None:
    """Call *callback* when the `CancelScope` open here, if any, is cancelled."""
    if (scope := _scope.get()) is not None:
        scope.add(callback)


class CancelToken:
    """The stop request and the deadline of one generation, usable from any thread.

    Args:
        flag: Aborts the running `decode`.
        timeout_s: Seconds from now until the deadline; None: no deadline.

    Attributes:
        reason: Why the generation must stop; None: it may continue.
        deadline: On the clock of `time.monotonic`; None: no deadline.
    """

    def __init__(self, flag: AbortFlag, timeout_s: float | None = None) -> None:
        self._flag = flag
        self.reason: str | None = None
        self.deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.timeout_s = timeout_s
        on_cancel(self.request)

    def request(self, reason: str) -> None:
        """Request a stop; a Ctrl-C never replaces another reason."""
        with _flag_lock:
            if self.reason in (None, INTERRUPT):
                self.reason = reason
            if self.is_running:
                self._flag.set()

    @contextmanager
    def running(self) -> Iterator[CancelToken]:
        """Let the flag abort decoding in this block, and watch the deadline."""
        try:
            self.hold()
            if self.deadline is not None:
                _watcher().watch(self)
            yield self
        finally:
            # First: Ctrl-C may interrupt this, and a late deadline must not stop the next call.
            with _flag_lock:
                if self.is_running:
                    self._flag.holder = None
                    self._flag.clear()
            if self.deadline is not None:
                _watcher().forget(self)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline, at least 0; None: no deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def hold(self) -> None:
        """Take the flag; in a block of `running`, after another token had it."""
        with _flag_lock:
            self._flag.holder = self
            self._flag.clear()
            if self.reason is not None:
                self._flag.set()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C abort the native code of this block; has an effect on the main thread only."""
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
        """Whether the generation has started and not ended, and has the flag."""
        return self._flag.holder is self

    def resume_after_interrupt(self) -> bool:
        """Clear a stop by a signal whose handler did not raise; return whether it was one."""
        with _flag_lock:
            if self.reason != INTERRUPT:
                return False
            self.reason = None
            self._flag.clear()
        return True

    def check(self) -> None:
        """Raise when a stop was requested; after a signal, its handler raises.

        Raises:
            DecodeAbortedError: With the reason.
        """
        if self.reason not in (None, INTERRUPT):
            raise self.error()

    def error(self, text: str = "") -> DecodeAbortedError:
        """Return the exception for the reason; *text* is the text generated so far."""
        message = {
            DEADLINE: f"the deadline of {self.timeout_s} s has passed",
            CANCEL: "the generation was cancelled",
            CLOSE: "the engine was closed",
        }.get(self.reason or "", "decoding was stopped")
        return aborted(message, self.reason, text)


def aborted(message: str, reason: str | None, text: str = "") -> DecodeAbortedError:
    """Return the exception for *reason*; *text* is the text generated so far."""
    kind = {
        DEADLINE: DeadlineExceededError,
        CANCEL: CancelledError,
        CLOSE: CancelledError,
    }.get(reason or "", DecodeAbortedError)
    return kind(message, reason=reason, text=text)


class _Watcher:
    """The thread that waits for signals and deadlines.

    Ctrl-C may interrupt the main thread between any two instructions here. So the wakeup descriptor
    and its record change in one call into C, and the next `listen` repairs what was interrupted.
    """

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._lock = threading.RLock()
        self._deadlines: set[CancelToken] = set()
        # Main thread only: the listening tokens, newest last, and the descriptors they replaced.
        self._listening: list[CancelToken] = []
        self._replaced: list[int] = []
        thread = threading.Thread(target=self._run, name="llama_cffi-interrupts", daemon=True)
        with suppress(RuntimeError):  # Python 3.12 starts none while it exits, and can do without
            thread.start()

    def watch(self, token: CancelToken) -> None:
        with self._lock:
            self._deadlines.add(token)
        with suppress(BlockingIOError):  # full: the thread is awake anyway
            self._write.send(_WAKE)

    def forget(self, token: CancelToken) -> None:
        with self._lock:
            self._deadlines.discard(token)

    def listen(self, token: CancelToken) -> None:
        """Receive the signals of this process for *token*; main thread only."""
        self._settle()
        self._listening.append(token)
        self._replaced.extend(map(_set_wakeup_fd, (self._write.fileno(),)))

    def unlisten(self, token: CancelToken) -> None:
        """Restore the descriptor that *token* replaced."""
        while token in self._listening:
            self._listening.pop()
        self._settle()

    def _settle(self) -> None:
        """Restore the descriptors of generations that ended without `unlisten`."""
        while self._listening and not self._listening[-1].is_running:
            self._listening.pop()
        while len(self._replaced) > len(self._listening):
            (current,) = map(_set_wakeup_fd, map(self._replaced.pop, (-1,)))
            if current != self._write.fileno():  # another library has set its own since
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
            for token in self._listening[-1:] if signal.SIGINT in signals else ():
                token.request(INTERRUPT)
            self._pass_on(signals)
            now = time.monotonic()
            with self._lock:
                due = [t for t in self._deadlines if t.deadline is not None and t.deadline <= now]
                self._deadlines.difference_update(due)
            for token in due:
                token.request(DEADLINE)

    def _until_next(self) -> float | None:
        with self._lock:
            times = [t.deadline for t in self._deadlines if t.deadline is not None]
        return max(0.001, min(times) - time.monotonic()) if times else None

    def _pass_on(self, signals: bytes) -> None:
        """Forward the signals to the replaced descriptor, such as an asyncio loop's."""
        forward = next((fd for fd in self._replaced[:] if fd != self._write.fileno()), -1)
        if signals and forward != -1:
            with suppress(OSError):
                if sys.platform == "win32":  # where it is the handle of a socket
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
