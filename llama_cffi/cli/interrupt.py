"""Keep Ctrl-C from getting lost in C callbacks.

Python raises KeyboardInterrupt wherever it happens to be. If that is a callback from C, such as a
log message while a model loads, the exception cannot pass through C and is dropped; `check` raises
it again afterwards.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["check", "forget", "watch"]

_seen = False


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """Remember whether Ctrl-C is pressed inside this block."""
    global _seen
    _seen = False
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield  # a notebook, or a program that calls main(), handles Ctrl-C itself
        return
    signal.signal(signal.SIGINT, _handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def check() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed since `watch` began."""
    if _seen:
        raise KeyboardInterrupt


def forget() -> None:
    """Forget that Ctrl-C was pressed: it was dealt with."""
    global _seen
    _seen = False


def _handle(_signal: int, _frame: FrameType | None) -> None:
    global _seen
    _seen = True
    raise KeyboardInterrupt
