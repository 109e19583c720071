"""An output of a cell that changes while the cell runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from IPython.core.displaypub import DisplayPublisher
from IPython.core.getipython import get_ipython
from IPython.display import display

from .display import Shown

__all__ = ["Live"]

_display: Callable[..., Any] = display  # it has no types
# Each update is a message to every front end.
_INTERVAL_S = 0.1


class Live:
    """An output that is replaced, at most ten times a second; in a terminal it comes at the end.

    Args:
        first: What it shows at first.
    """

    def __init__(self, first: Shown) -> None:
        self._handle = None if _is_terminal() else _display(first, display_id=True)
        self._next_s = time.monotonic() + _INTERVAL_S

    def update(self, make: Callable[[], Shown]) -> None:
        """Show what *make* returns, unless the last update was just now."""
        if self._handle is not None and time.monotonic() >= self._next_s:
            self._handle.update(make())
            self._next_s = time.monotonic() + _INTERVAL_S

    def finish(self, last: Shown) -> None:
        """Show *last*."""
        if self._handle is None:
            _display(last)
        else:
            self._handle.update(last)


def _is_terminal() -> bool:
    """Return whether outputs are printed: what is printed cannot be replaced."""
    shell = get_ipython()
    return shell is None or type(shell.display_pub) is DisplayPublisher
