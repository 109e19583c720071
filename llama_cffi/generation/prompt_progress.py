"""How far the evaluation of a prompt is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["PromptProgress", "PromptReport"]


class PromptProgress(NamedTuple):
    """How far the evaluation of a prompt is.

    Attributes:
        n_total: Tokens of the prompt.
        n_cached: Those of them that were in the KV cache.
        n_processed: Those that are in it now.
        time_s: Seconds since the evaluation began.
    """

    n_total: int
    n_cached: int
    n_processed: int
    time_s: float


class PromptReport:
    """Tells a function of each batch of one prompt: first of none, last of all.

    Args:
        callback: Called with the progress.
        n_total: Tokens of the prompt.
        n_cached: Those that were in the KV cache.
    """

    def __init__(
        self, callback: Callable[[PromptProgress], object], n_total: int, n_cached: int
    ) -> None:
        self._callback, self._n_total, self._n_cached = callback, n_total, n_cached
        self._n_processed, self._started_s = -1, time.monotonic()
        self(n_cached)

    @property
    def is_complete(self) -> bool:
        """Whether the whole prompt was reported."""
        return self._n_processed == self._n_total

    def __call__(self, n_processed: int) -> None:
        """Report that *n_processed* tokens are in the KV cache, unless it was reported."""
        n = min(n_processed, self._n_total)
        if n > self._n_processed:  # fewer after a preemption
            self._n_processed = n
            passed_s = time.monotonic() - self._started_s
            self._callback(PromptProgress(self._n_total, self._n_cached, n, passed_s))
