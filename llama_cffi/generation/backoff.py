"""Backing off after a refused decode: the one policy of `Slot` and the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..binding import Memory

__all__ = ["Backoff", "is_intact"]


class Backoff:
    """Sizes of the batches to try while the KV cache has no slot.

    After the first refusal cells are freed and the same batch is tried again, because builds before
    b6301 need a contiguous slot. After that, batches are halved. A success doubles the size again.

    Args:
        n_tokens: Maximum size of the first batch.
        n_min: Smallest batch to try.
        free_cells: Frees cells or closes gaps; returns whether trying again can help.

    Attributes:
        n_tokens: Maximum size of the next batch.
    """

    __slots__ = ("_free_cells", "_freed", "_n_min", "n_tokens")

    def __init__(self, n_tokens: int, n_min: int, free_cells: Callable[[], bool]) -> None:
        self.n_tokens, self._n_min, self._free_cells = n_tokens, n_min, free_cells
        self._freed = False

    def refused(self, n: int) -> bool:
        """Adapt to a refused batch of *n* tokens; return whether to try again."""
        self.n_tokens = n
        if not self._freed:
            self._freed = True
            if self._free_cells():
                return True
        self.n_tokens = max(self._n_min, n // 2)
        return n > self._n_min

    def accepted(self, limit: int) -> None:
        """Adapt to a decoded batch; the next one has at most *limit* tokens."""
        self.n_tokens = min(limit, 2 * self.n_tokens)


def is_intact(memory: Memory, seq_id: int, last: int) -> bool:
    """Whether a sequence still ends at position *last* (-1: empty) after a decode failed.

    Recurrent memories cannot remove a part of a sequence and lose all of it.
    """
    return memory.seq_pos_max(seq_id) == last
