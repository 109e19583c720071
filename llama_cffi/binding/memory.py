"""A context's memory: the KV cache or recurrent state, by sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ValidationError
from . import compat

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Memory"]


class Memory:
    """What the context remembers of each sequence. Lives with its context."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def clear(self, data: bool = True) -> None:
        """Forget everything; *data* also zeroes the buffers. C: llama_memory_clear."""
        self._call("clear", data)

    def seq_rm(self, seq_id: int, p0: int = -1, p1: int = -1) -> bool:
        """Remove positions [p0, p1) of a sequence; -1 = open end, seq_id -1 = every sequence.

        Returns:
            False when the memory cannot remove a part of a sequence (recurrent models).
        C: llama_memory_seq_rm
        """
        return bool(self._call("seq_rm", self._seq(seq_id, any_=True), p0, p1))

    def seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
        """Let *target* share positions [p0, p1) of *source*. C: llama_memory_seq_cp."""
        self._call("seq_cp", self._seq(source), self._seq(target), p0, p1)

    def seq_keep(self, seq_id: int) -> None:
        """Remove every other sequence. C: llama_memory_seq_keep."""
        self._call("seq_keep", self._seq(seq_id))

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Shift positions [p0, p1) by *delta*. C: llama_memory_seq_add.

        Raises:
            ValidationError: The memory of this model cannot shift.
        """
        if not self.can_shift:
            raise ValidationError("the memory of this model cannot shift positions")
        self._call("seq_add", self._seq(seq_id), p0, p1, delta)

    def seq_pos_max(self, seq_id: int) -> int:
        """Largest position of a sequence, -1 when it is empty. C: llama_memory_seq_pos_max."""
        return int(self._call("seq_pos_max", self._seq(seq_id)))  # type: ignore[call-overload, no-any-return]

    @property
    def can_shift(self) -> bool:
        """Whether positions can be shifted. C: llama_memory_can_shift."""
        try:
            return bool(self._call("can_shift"))
        except AttributeError:  # before b4435: every model of those builds could
            return True

    def _seq(self, seq_id: int, *, any_: bool = False) -> int:
        low, high = (-1 if any_ else 0), self._context.n_seq_max
        if not low <= seq_id < high:
            raise ValidationError(
                f"sequence {seq_id} is outside {low}..{high - 1}; the context has n_seq_max={high}"
            )
        return seq_id

    def _call(self, verb: str, *args: object) -> object:
        context = self._context
        return compat.memory_call(context.library, context.ptr, verb)(*args)
