"""The memory of a context: KV cache or recurrent state, by sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import ValidationError
from ...validation import INT32_MAX, check_int, not_picklable
from .. import compat

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Memory"]


class Memory:
    """The KV cache or recurrent state of a context; closes with it.

    The positions of a sequence run from `seq_pos_min` to `seq_pos_max` without gaps, unless a part
    in the middle was removed. Sequences in one cache (`kv_unified`) share cells after `seq_cp`, and
    `seq_add` and `seq_div` then move the positions of all of them.

    A *seq_id* is 0 to the context's `n_seq_max` - 1. Positions *p0* and *p1* are the first one and
    the one after the last, -1 = open end. Methods raise ValidationError for any other number.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def __repr__(self) -> str:
        return f"<Memory of {self._context!r}>"

    __reduce__ = not_picklable("save its state, as Llama.get_state does")

    def clear(self, data: bool = True) -> None:
        """Remove all sequences; *data* also zeroes the buffers. C: llama_memory_clear."""
        self._call("clear", bool(data))

    def seq_rm(self, seq_id: int, p0: int = -1, p1: int = -1) -> bool:
        """Remove positions [p0, p1) of a sequence; -1 = open end, seq_id -1 = every sequence.

        True does not mean that the sequence can be continued at p0: see `can_truncate`.

        Returns:
            False if the memory cannot remove a part of a sequence (recurrent models).
        C: llama_memory_seq_rm
        """
        seq_id, (p0, p1) = self._seq(seq_id, every=True), _span(p0, p1)
        # C accepts -1 too, but in newer builds not for recurrent models.
        sequences = range(self._context.n_seq_max) if seq_id < 0 else (seq_id,)
        context = self._context
        removed = all(self._call("seq_rm", s, p0, p1) for s in sequences)
        stale = context.model.keeps_states and compat.keeps_removed_states(context.library)
        if stale and all(self.seq_pos_max(s) < 0 for s in range(context.n_seq_max)):
            self.clear()
        return removed

    def seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
        """Copy positions [p0, p1) of *source* to *target*, replacing its own.

        Raises:
            ValidationError: It is a part of a sequence, and sequences do not share a cache or the
                model is recurrent.
        C: llama_memory_seq_cp
        """
        source, target, (p0, p1) = self._seq(source), self._seq(target), _span(p0, p1)
        if source == target:
            return
        context = self._context
        part = p0 > 0 or 0 <= p1 <= self.seq_pos_max(source)
        if part and context.model.keeps_states:
            raise ValidationError(
                f"positions [{p0}, {p1}) cannot be copied: a recurrent model keeps one state for "
                "the whole sequence; copy the whole sequence"
            )
        if not context.kv_unified:
            if p0 > 0 or p1 >= 0:  # is_full
                raise ValidationError(
                    f"positions [{p0}, {p1}) cannot be copied: copy the whole sequence, or create "
                    "the context with kv_unified=True"
                )
            context.hold_abort(target)  # the next decode copies the data
        # Some builds count cells that are shared twice double, and keep them when removed.
        self._call("seq_rm", target, p0, p1)
        self._call("seq_cp", source, target, p0, p1)

    def seq_keep(self, seq_id: int) -> None:
        """Remove every other sequence. C: llama_memory_seq_keep."""
        seq_id = self._seq(seq_id)
        if self._context.kv_unified:
            self._call("seq_keep", seq_id)
            return
        for other in range(self._context.n_seq_max):  # C changes only the cache of seq_id
            if other != seq_id:
                self._call("seq_rm", other, -1, -1)

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Shift positions [p0, p1) of *seq_id* by *delta*; the next decode rotates the keys.

        Raises:
            ValidationError: This memory cannot shift positions, or one would become negative.
        C: llama_memory_seq_add
        """
        seq_id, (p0, p1) = self._seq(seq_id), _span(p0, p1)
        last = max(self.seq_pos_max(seq_id), 0)
        delta = check_int("delta", delta, -INT32_MAX, INT32_MAX - last)
        first = max(p0, 0)
        if first + delta < 0 and first <= last:
            raise ValidationError(
                f"positions from {first} shifted by {delta} would be negative; remove those before "
                f"{-delta} first and shift from {-delta}"
            )
        self._require_shift()
        self._call("seq_add", seq_id, p0, p1, delta)
        self._context.hold_abort()

    def seq_div(self, seq_id: int, p0: int, p1: int, divisor: int) -> None:
        """Divide positions [p0, p1) of *seq_id* by *divisor*, rounding down.

        The next decode rotates the keys.

        Raises:
            ValidationError: This memory cannot shift positions, or *divisor* is below 1.
        C: llama_memory_seq_div
        """
        seq_id, (p0, p1) = self._seq(seq_id), _span(p0, p1)
        divisor = check_int("divisor", divisor, 1)
        self._require_shift()
        self._call("seq_div", seq_id, p0, p1, divisor)
        self._context.hold_abort()

    def seq_pos_min(self, seq_id: int) -> int:
        """Return the smallest position of a sequence, -1 if it is empty.

        It is above 0 if a sliding window dropped earlier positions, and the last position for
        recurrent models.

        Raises:
            ValidationError: The build is from before 2025-06 and does not report it.
        C: llama_memory_seq_pos_min
        """
        seq_id, library = self._seq(seq_id), self._context.library
        if not compat.reports_pos_min(library):
            raise ValidationError(
                f"this build does not report the smallest position; {compat.newer_build(library)}"
            )
        return int(self._call("seq_pos_min", seq_id))

    def seq_pos_max(self, seq_id: int) -> int:
        """Return the largest position of a sequence, -1 if it is empty.

        C: llama_memory_seq_pos_max
        """
        seq_id, context = self._seq(seq_id), self._context
        return compat.seq_pos_max(context.library, context.ptr, seq_id, context.n_seq_max)

    def can_truncate(self, seq_id: int, p0: int) -> bool:
        """Whether a sequence can continue at *p0* after `seq_rm(seq_id, p0)`, with equal results.

        `seq_rm` alone does not tell: a sliding window drops old positions, and tokens at p0 would
        attend to them again once the tail is removed. So the first p0 tokens of a sequence can be
        reused if and only if

        - p0 is 0, or nothing is at or after p0; or
        - the model is not recurrent, and every position in the window of p0 is still there:
          `seq_pos_min(seq_id) <= max(0, p0 - n_swa + 1)`.
        """
        seq_id, p0 = self._seq(seq_id), check_int("p0", p0, 0)
        return p0 == 0 or p0 >= self.first_cut(seq_id)

    def first_cut(self, seq_id: int) -> int:
        """Return the least p0 above 0 that `can_truncate` accepts."""
        seq_id, context = self._seq(seq_id), self._context
        library, model, end = context.library, context.model, self.seq_pos_max(seq_id) + 1
        if end <= 1:
            return 1
        if model.keeps_states:
            return end
        if not compat.reports_pos_min(library) or (first := self.seq_pos_min(seq_id)) <= 0:
            return 1
        return min(first + max(model.n_swa - 1, 1), end)

    def defrag(self) -> bool:
        """Let the next decode close the gaps that removed sequences left.

        Builds before b6301 need contiguous cells for a batch, so a cache with gaps can refuse one
        that would fit. Newer builds need no defragmentation, and this does nothing; nor does it
        in b4980, where C asserts.

        Returns:
            Whether the build has it.
        C: llama_kv_self_defrag
        """
        context = self._context
        supported = compat.defrag(context.library, context.ptr)
        if supported:
            context.hold_abort()
        return supported

    @property
    def window(self) -> int:
        """Positions that sliding windows keep, see `ContextParams.swa_full`; 0: all are kept."""
        context = self._context
        params = compat.position_params(context.library, context.params)
        return 0 if params.get("swa_full", True) else context.model.n_swa

    @property
    def takes_several(self) -> bool:
        """Whether sequences may start and end while others run.

        False for recurrent models in builds before b5640, which mix up their states.
        """
        context = self._context
        return not (context.model.keeps_states and compat.mixes_up_states(context.library))

    @property
    def can_shift(self) -> bool:
        """Whether positions can be shifted. C: llama_memory_can_shift."""
        context = self._context
        pooled = context.embeddings and context.pooling == "mean"
        if pooled and not compat.shifts_with_mean_pooling(context.library):
            return False
        able = compat.can_shift(context.library, context.ptr, context.model.gguf)
        return able and context.keys_shift  # it also depends on the type of the cache

    def _require_shift(self) -> None:
        if not self.can_shift:
            raise ValidationError("the memory of this context cannot shift positions")

    def _seq(self, seq_id: int, *, every: bool = False) -> int:
        _ = self._context.ptr  # raises if closed
        return check_int("seq_id", seq_id, -1 if every else 0, self._context.n_seq_max - 1)

    def _call(self, verb: str, *args: object) -> Any:
        context = self._context
        held = context.hold()
        try:
            return compat.memory_call(context.library, context.ptr, verb)(*args)
        finally:
            del held


def _span(p0: int, p1: int) -> tuple[int, int]:
    low = -INT32_MAX
    return check_int("p0", p0, low), check_int("p1", p1, low)
