"""A context of one's own that is made anew when a call needs a larger one."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ..binding import Context

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GrowingContext"]


class GrowingContext(ABC):
    """Owns a context that is as large as the largest call so far.

    Args:
        n_tokens: What the first one holds.
        n_seqs: Its sequences.
    """

    def __init__(self, n_tokens: int, n_seqs: int) -> None:
        self._lock = threading.Lock()
        self._context = self._make(n_tokens, n_seqs)

    def close(self) -> None:
        """Free the context. Calling it again does nothing."""
        with self._lock:
            self._context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _make(self, n_tokens: int, n_seqs: int) -> Context:
        """Return a new context."""

    @abstractmethod
    def _room(self, context: Context) -> int:
        """Return how many tokens a context holds."""

    def _grown(self, n_tokens: int, n_seqs: int) -> Context:
        """Return a context with room for so many tokens and sequences."""
        context = self._context
        before = self._room(context), context.n_seq_max
        if before[0] < n_tokens or before[1] < n_seqs:
            _ = context.ptr  # raises when it is closed
            context.close()  # before the next one takes its memory
            try:
                self._context = self._make(max(n_tokens, before[0]), max(n_seqs, before[1]))
            except BaseException:
                self._context = self._make(*before)
                raise
        return self._context
