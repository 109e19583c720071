"""A context's memory: the KV cache or recurrent state, by sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ValidationError
from . import compat
from .checks import INT32_MAX, integer

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
        return bool(self._call("seq_rm", self._seq(seq_id, any_=True), *_span(p0, p1)))

    def seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
        """Let *target* share positions [p0, p1) of *source*. C: llama_memory_seq_cp.

        Raises:
            ValidationError: A part of a sequence, where sequences do not share a cache.
        """
        source, target, (p0, p1) = self._seq(source), self._seq(target), _span(p0, p1)
        if source == target:
            return
        if not self._context.kv_unified and (p0 > 0 or p1 >= 0):  # is_full
            raise ValidationError(
                f"positions [{p0}, {p1}) cannot be copied: only a whole sequence can, or make the "
                "context with kv_unified=True"
            )
        self._call("seq_cp", source, target, p0, p1)

    def seq_keep(self, seq_id: int) -> None:
        """Remove every other sequence. C: llama_memory_seq_keep."""
        seq_id = self._seq(seq_id)
        if self._context.kv_unified:
            self._call("seq_keep", seq_id)
            return
        for other in range(self._context.n_seq_max):  # C looks only into the cache of seq_id
            if other != seq_id:
                self._call("seq_rm", other, -1, -1)

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Shift positions [p0, p1) by *delta*. C: llama_memory_seq_add.

        Raises:
            ValidationError: The memory of this model cannot shift.
        """
        seq_id, (p0, p1) = self._seq(seq_id), _span(p0, p1)
        last = self.seq_pos_max(seq_id)
        delta = integer("delta", delta, -INT32_MAX, INT32_MAX - max(last, 0))
        if not self.can_shift:
            raise ValidationError("the memory of this model cannot shift positions")
        self._call("seq_add", seq_id, p0, p1, delta)
        self._context.hold_abort()

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
        _ = self._context.ptr  # raises when it is closed
        return integer("seq_id", seq_id, -1 if any_ else 0, self._context.n_seq_max - 1)

    def _call(self, verb: str, *args: object) -> object:
        context = self._context
        return compat.memory_call(context.library, context.ptr, verb)(*args)


def _span(p0: int, p1: int) -> tuple[int, int]:
    low = -INT32_MAX
    return integer("p0", p0, low), integer("p1", p1, low)
