"""Stopping native code from outside: Ctrl-C, deadlines, `cancel()`.

While C computes, Python's own signal handlers wait. So one daemon thread watches: it is woken by
the signal through `signal.set_wakeup_fd`, or by the time of a deadline, and sets the abort flag
that C reads. The handler itself then runs in the main thread as usual.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from .errors import DecodeAbortedError

if TYPE_CHECKING:
    from .binding import AbortFlag

__all__ = ["CANCEL", "CLOSE", "DEADLINE", "INTERRUPT", "Stop"]

INTERRUPT, CANCEL, DEADLINE, CLOSE = "interrupt", "cancel", "deadline", "close"
_WAKE = b"\0"


class Stop:
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

    def request(self, reason: str) -> None:
        """Ask the generation to stop; a Ctrl-C never hides another reason."""
        with self._lock:
            if self.reason in (None, INTERRUPT):
                self.reason = reason
            if self._running:
                self._flag.set()

    @contextmanager
    def running(self) -> Iterator[Stop]:
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
        before = watcher.listen(self)
        try:
            yield
        finally:
            watcher.unlisten(before)

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
            DEADLINE: f"the deadline of {self.timeout_s} s passed",
            CANCEL: "the generation was cancelled",
            CLOSE: "the engine was closed",
        }.get(self.reason or "", "decoding was stopped")
        return DecodeAbortedError(what, reason=self.reason, text=text)


class _Watcher:
    """The thread that waits for signals and deadlines."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._lock = threading.Lock()
        self._deadlines: set[Stop] = set()
        self._listening: Stop | None = None
        self._forward = -1
        threading.Thread(target=self._run, name="llama_cffi-interrupts", daemon=True).start()

    def watch(self, stop: Stop) -> None:
        with self._lock:
            self._deadlines.add(stop)
        with suppress(BlockingIOError):  # full: it is awake anyway
            self._write.send(_WAKE)

    def forget(self, stop: Stop) -> None:
        with self._lock:
            self._deadlines.discard(stop)

    def listen(self, stop: Stop) -> tuple[int, Stop | None]:
        """Receive this process's signals; the main thread only. Return what was before."""
        before = self._forward, self._listening
        self._listening = stop
        previous = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        if previous != self._write.fileno():
            self._forward = previous
        return before

    def unlisten(self, before: tuple[int, Stop | None]) -> None:
        forward, self._forward = self._forward, before[0]
        self._listening = before[1]
        if self._listening is None:
            signal.set_wakeup_fd(forward, warn_on_full_buffer=forward == -1)

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
            stop = self._listening
            if signal.SIGINT in signals and stop is not None:
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
        if signals and self._forward != -1:
            with suppress(OSError):
                if sys.platform == "win32":  # there it is a socket's number
                    listener = socket.socket(fileno=self._forward)
                    listener.send(signals)
                    listener.detach()
                else:
                    os.write(self._forward, signals)


_lock = threading.Lock()
_started: list[_Watcher] = []


def _watcher() -> _Watcher:
    with _lock:
        if not _started:
            _started.append(_Watcher())
        return _started[0]
