"""A batch of input embeddings, such as those of a picture, instead of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ValidationError
from ...validation import INT32_MAX

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..ffi_types import CData
    from .context import Context

__all__ = ["EmbeddingBatch"]


class EmbeddingBatch:
    """Embeddings of one sequence for llama_decode, without outputs.

    Shapes: *rows* (n, n_embd_inp) float32, *positions* (n,) int32, or (4, n) for models with
    M-RoPE: time, height, width and a spare axis.

    Args:
        context: Where they are decoded.
        rows: The embeddings.
        positions: Their positions.
        seq_id: Their sequence.

    Attributes:
        value: The C struct.

    Raises:
        ValidationError: An array has another shape or type, there are more rows than `n_batch`,
            or a number is out of range.
    C: struct llama_batch
    """

    def __init__(
        self,
        context: Context,
        rows: NDArray[np.float32],
        positions: NDArray[np.int32],
        seq_id: int,
    ) -> None:
        n, width = len(rows), context.model.n_embd_inp
        if rows.dtype != "float32" or rows.shape != (n, width):
            raise ValidationError(
                f"embeddings must be (n, {width}) float32, got {rows.shape} {rows.dtype}"
            )
        if positions.dtype != "int32" or positions.shape not in ((n,), (4, n)):
            raise ValidationError(
                f"positions must be ({n},) or (4, {n}) int32, got {positions.shape} "
                f"{positions.dtype}"
            )
        if not 1 <= n <= context.n_batch:
            raise ValidationError(f"{n} embeddings for batches of 1 to {context.n_batch} (n_batch)")
        if not 0 <= seq_id < context.n_seq_max:
            raise ValidationError(f"sequence {seq_id} is outside 0..{context.n_seq_max - 1}")
        if positions.min() < 0 or positions.max() >= INT32_MAX:
            raise ValidationError("a position is negative or too large")
        ffi = context.library.ffi
        self._seq_id, self._start = seq_id, int(positions.min())
        sequence = ffi.new("int32_t *", seq_id)
        # Contiguous copies, which C reads until the batch is decoded.
        rows_c = ffi.from_buffer("float[]", rows.tobytes())
        positions_c = ffi.from_buffer("int32_t[]", positions.tobytes())
        self._kept = (
            sequence,
            rows_c,
            positions_c,
            ffi.new("int32_t[]", [1] * n),
            ffi.new("int32_t *[]", [sequence] * n),
            ffi.new("int8_t[]", n),
        )
        struct = self._struct = ffi.new("struct llama_batch *")
        struct.n_tokens = n
        struct.embd, struct.pos = rows_c, positions_c
        struct.n_seq_id, struct.seq_id, struct.logits = self._kept[3:]
        self.value: CData = struct[0]

    def __len__(self) -> int:
        return int(self._struct.n_tokens)

    def starts(self) -> dict[int, int]:
        """Return the first position of the sequence."""
        return {self._seq_id: self._start}
