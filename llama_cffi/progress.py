"""Progress of long calls: a bar on stderr, a function of the caller, or nothing."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from .errors import ValidationError

__all__ = [
    "Advance",
    "Progress",
    "calling_after",
    "downloading",
    "is_shown_live",
    "reporting",
    "telling_if_slow",
]

Progress = bool | Callable[[float], bool | None] | None
PATIENCE_S = 4.0
LINE_S = 5.0  # between the lines of a download where nobody sees a bar
_log = logging.getLogger(__name__)


class Advance(Protocol):
    """Takes the number of bytes that arrived since the last call."""

    def __call__(self, n_bytes: int, /) -> object:
        """Advance by *n_bytes*."""


def is_shown_live() -> bool:
    """Return whether a person sees stderr as it is written: a terminal or a notebook."""
    stream = sys.stderr
    return stream is not None and (
        stream.isatty() or type(stream).__module__.startswith(("ipykernel", "google.colab"))
    )


@contextmanager
def downloading(name: str, total: int | None, initial: int = 0) -> Iterator[Advance]:
    """Show a download on stderr: a bar in terminals and notebooks, lines elsewhere.

    Args:
        name: The file.
        total: Its size in bytes, if known.
        initial: Bytes that are there already.
    """
    if sys.stderr is None:
        yield lambda n_bytes: None
    elif is_shown_live():
        from tqdm import tqdm

        with tqdm(
            desc=name, total=total, initial=initial, unit="B", unit_scale=True, file=sys.stderr,
            leave=False,
        ) as bar:  # fmt: skip
            yield bar.update
    else:
        yield _Lines(name, total, initial)


class _Lines:
    """A line at the beginning of a download, and one every few seconds."""

    def __init__(self, name: str, total: int | None, initial: int) -> None:
        self._name, self._total, self._got = name, total, initial
        self._next_s = time.monotonic() + LINE_S
        size = "" if total is None else f", {total / 1e6:,.1f} MB"
        self._write(f"fetching {name}{size}")

    def __call__(self, n_bytes: int, /) -> None:
        self._got += n_bytes
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LINE_S
            share = f" ({self._got / self._total:.0%})" if self._total else ""
            self._write(f"fetching {self._name}: {self._got / 1e6:,.1f} MB{share}")

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a closed stderr does not end a download
            print(text, file=sys.stderr, flush=True)


@contextmanager
def telling_if_slow(what: str) -> Iterator[None]:
    """Name *what* is waited for, in the log or on stderr, if this block takes several seconds."""

    def tell() -> None:
        message = f"still waiting for {what}"
        if _is_logged() or not is_shown_live():
            _log.warning("%s", message)
        else:
            print(message, file=sys.stderr, flush=True)

    with calling_after(PATIENCE_S, tell):
        yield


@contextmanager
def calling_after(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Call *call* in another thread if this block takes longer than *seconds*."""
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _is_logged() -> bool:
    """Return whether a handler other than the package's NullHandler gets warnings."""
    loggers = (logging.getLogger(), logging.getLogger(__name__.partition(".")[0]))
    return any(type(h) is not logging.NullHandler for log in loggers for h in log.handlers)


@contextmanager
def reporting(progress: Progress, label: str) -> Iterator[Callable[[float], bool]]:
    """Yield a function that takes 0.0 to 1.0 and returns False if the caller wants to stop.

    Args:
        progress: True shows a bar on stderr; a function is called, and returns False to stop.
        label: Label of the bar.

    Raises:
        ValidationError: *progress* is neither a bool nor a function nor None.
    """
    if progress is None or progress is False:
        yield lambda done: True
    elif progress is True:
        from tqdm import tqdm

        layout = "{l_bar}{bar}| {elapsed}<{remaining}"
        with tqdm(total=1.0, desc=label, bar_format=layout) as bar:

            def advance(done: float) -> bool:
                bar.update(done - bar.n)
                return True

            yield advance
    elif callable(progress):
        yield lambda done: progress(done) is not False
    else:
        raise ValidationError(f"progress={progress!r} must be a bool or a function")
