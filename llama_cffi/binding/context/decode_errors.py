"""Cleaning up after a failed decode, and the error to raise for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import DecodeAbortedError, GenerationError, KvCacheFullError
from .. import compat

if TYPE_CHECKING:
    from .batch import Batch
    from .context import Context
    from .embedding_batch import EmbeddingBatch

__all__ = ["REFUSED", "decode_error", "roll_back"]

REFUSED = -1  # C rejected the batch and computed nothing
_NO_SLOT, _ABORTED = 1, 2


def roll_back(context: Context, batch: Batch | EmbeddingBatch) -> list[int]:
    """Remove a failed batch from the memory; return the sequences that were lost completely."""
    memory = context.memory
    if context.model.keeps_states and compat.needs_clear_after_failure(context.library):
        memory.clear()
        return list(range(context.n_seq_max))
    return [
        seq_id
        for seq_id, pos in batch.starts().items()
        if not memory.seq_rm(seq_id, pos) and memory.seq_rm(seq_id)
    ]


def decode_error(
    context: Context,
    function: str,
    code: int,
    batch: Batch | EmbeddingBatch,
    mark: int,
    lost: Sequence[int] = (),
) -> GenerationError:
    """Return the error for the return code of a C function.

    Args:
        context: The context.
        function: Name of the C function.
        code: Its return code; 0 if it succeeded although the abort flag is set.
        batch: The batch that failed.
        mark: The log's count before the call.
        lost: Sequences that are empty now.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed while C was logging.
    """
    n_tokens, logs = len(batch), context.library.logs
    reason = "; ".join(logs.since(mark)) or "llama.cpp gave no reason"
    logs.raise_interrupt()
    after = f"; sequences {list(lost)} are empty now" if lost else ""
    if code == _NO_SLOT:
        return KvCacheFullError(
            f"no slot in the KV cache for {n_tokens} tokens (n_ctx={context.n_ctx}); decode "
            f"smaller batches, free sequences, or use a larger n_ctx{after}"
        )
    if code in (0, _ABORTED):
        return DecodeAbortedError(
            f"decoding {n_tokens} tokens was stopped by the abort flag{after}"
        )
    return GenerationError(f"{function} failed with {code} on {n_tokens} tokens: {reason}{after}")
