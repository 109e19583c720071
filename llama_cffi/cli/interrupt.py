"""Ctrl-C that cannot get lost.

Python raises KeyboardInterrupt wherever it happens to be. In a callback that C called (a log line
while a model loads, say) C cannot carry it and it ends there; `check` raises it again afterwards.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["check", "watch"]

_seen = False


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """Remember in this block that Ctrl-C was pressed."""
    global _seen
    _seen = False
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield  # somebody else's business: a notebook, a program that calls main()
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


def _handle(_signal: int, _frame: FrameType | None) -> None:
    global _seen
    _seen = True
    raise KeyboardInterrupt
