"""The log of llama.cpp and ggml goes to the logger `llama_cffi.native`.

Nothing reaches stdout or stderr by default. Lines may come from any thread.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from ...context_managers import contextmanager
from ...errors import ValidationError

__all__ = ["LogBridge", "disable_logging", "reset_logging", "set_log_level"]

_log = logging.getLogger("llama_cffi.native")
# Without any handler, `logging` prints warnings to stderr.
logging.getLogger("llama_cffi").addHandler(logging.NullHandler())

_LEVELS = {
    "GGML_LOG_LEVEL_DEBUG": logging.DEBUG,
    "GGML_LOG_LEVEL_INFO": logging.INFO,
    "GGML_LOG_LEVEL_WARN": logging.WARNING,
    "GGML_LOG_LEVEL_ERROR": logging.ERROR,
}


def set_log_level(level: int | str) -> None:
    """Set the lowest level of C's messages that are logged, e.g. `"WARNING"`; `"NONE"`: none.

    Raises:
        ValidationError: `logging` has no such level.
    """
    if isinstance(level, str) and level.upper() == "NONE":
        disable_logging()
        return
    try:
        _log.setLevel(level.upper() if isinstance(level, str) else level)
    except (TypeError, ValueError):
        raise ValidationError(
            f"level={level!r} is not one of DEBUG, INFO, WARNING, ERROR, NONE, or a number"
        ) from None
    _log.disabled = False


def disable_logging() -> None:
    """Log no message of C."""
    _log.disabled = True


def reset_logging() -> None:
    """Undo `set_log_level` and `disable_logging`."""
    _log.setLevel(logging.NOTSET)
    _log.disabled = False


class LogBridge:
    """Receives log output from C, joins continued lines and passes them to `logging`.

    The numbers of the levels changed between builds, so lines are kept until `set_levels` tells
    what they mean.

    Attributes:
        callback: The C callback.
        interrupt: A Ctrl-C that came during a log line, for `raise_interrupt`.
        count: Number of warnings and errors so far.
    """

    def __init__(self, ffi: Any) -> None:
        self._ffi = ffi
        self._levels: Mapping[int, int] | None = None
        self._early: list[tuple[int, str]] = []
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._captures: list[tuple[int, list[str]]] = []
        self.interrupt: KeyboardInterrupt | None = None
        self.count = 0
        self._recent: deque[str] = deque(maxlen=4)
        # Owned here; C keeps the pointer until the interpreter exits.
        self.callback = ffi.callback(
            "void(int, const char *, void *)", self._receive, onerror=self._failed
        )

    def set_levels(self, constants: Mapping[str, int]) -> None:
        """Set the values of `enum ggml_log_level`, and log the lines that were kept for them."""
        levels = {constants[k]: v for k, v in _LEVELS.items() if k in constants}
        with self._lock:
            self._levels = levels
            early, self._early = self._early, []
        for level, line in early:
            self._emit(levels.get(level, logging.INFO), line)

    @contextmanager
    def capture(self, level: int = logging.WARNING) -> Iterator[list[str]]:
        """Collect the lines of at least *level* that C logs in this block."""
        lines: list[str] = []
        self._captures.append((level, lines))
        try:
            yield lines
        finally:
            # By identity, since two captures may have equal lines.
            self._captures = [c for c in self._captures if c[1] is not lines]

    def since(self, count: int) -> list[str]:
        """Return the warnings and errors after the first *count*, at most the last four."""
        new = min(self.count - count, len(self._recent))
        return list(self._recent)[-new:] if new > 0 else []

    def _failed(self, _type: object, error: BaseException, _traceback: object) -> None:
        """Keep a Ctrl-C, which must not get lost; no exception may pass through C."""
        if isinstance(error, KeyboardInterrupt):
            self.interrupt = error

    @property
    def interrupted(self) -> bool:
        """Whether this is the main thread and `raise_interrupt` would raise."""
        main = threading.main_thread()
        return self.interrupt is not None and threading.current_thread() is main

    def raise_interrupt(self) -> None:
        """Raise the Ctrl-C that came during a log line, after C has returned.

        It belongs to the main thread; in other threads this does nothing.
        """
        if self.interrupt is not None and self.interrupted:
            error, self.interrupt = self.interrupt, None
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame

    def _receive(self, level: int, text: Any, _user_data: Any) -> None:
        line = self._ffi.string(text).decode("utf-8", "replace")
        partial: tuple[int, str] | None = getattr(self._thread, "partial", None)
        if partial is not None:
            # Level 5 continues a line in every build; a line without a newline is unfinished.
            level, line = partial[0], partial[1] + line
        if not line.endswith("\n"):
            self._thread.partial = (level, line)
            return
        self._thread.partial = None
        line = line.rstrip()
        if not line.strip(". "):
            return
        with self._lock:
            levels = self._levels
            if levels is None:
                self._early.append((level, line))
                return
        self._emit(levels.get(level, logging.INFO), line)

    def _emit(self, level: int, line: str) -> None:
        for lowest, lines in self._captures:
            if level >= lowest:
                lines.append(line)
        if level >= logging.WARNING:
            self.count += 1
            self._recent.append(line)
        _log.log(level, "%s", line)
