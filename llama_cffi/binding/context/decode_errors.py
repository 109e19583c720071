"""What a failed decode leaves behind, and the error that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import DecodeAbortedError, GenerationError, KvCacheFullError
from .. import compat

if TYPE_CHECKING:
    from .batch import Batch
    from .context import Context

__all__ = ["REFUSED", "failure", "roll_back"]

REFUSED = -1  # the batch itself; nothing was computed
_NO_SLOT, _ABORTED = 1, 2


def roll_back(context: Context, batch: Batch) -> list[int]:
    """Remove what C kept of a batch that failed; return the sequences that had to go whole."""
    memory = context.memory
    if context.model.keeps_states and compat.breaks_states(context.library):
        memory.clear()
        return list(range(context.n_seq_max))
    return [
        seq_id
        for seq_id, pos in batch.starts().items()
        if not memory.seq_rm(seq_id, pos) and memory.seq_rm(seq_id)
    ]


def failure(
    context: Context, function: str, code: int, batch: Batch, mark: int, lost: Sequence[int] = ()
) -> GenerationError:
    """Return the error for the *code* of a C function.

    Args:
        context: Where it failed.
        function: The C function.
        code: What it returned; 0 when the abort flag is set all the same.
        batch: What it was to compute.
        mark: The log's count before the call.
        lost: Sequences that are empty now.

    Raises:
        KeyboardInterrupt: A Ctrl-C came in a log line.
    """
    n_tokens, logs = len(batch), context.library.logs
    why = "; ".join(logs.since(mark)) or "llama.cpp gave no reason"
    logs.raise_interrupt()
    after = f"; sequences {list(lost)} are empty now" if lost else ""
    if code == _NO_SLOT:
        return KvCacheFullError(
            f"no slot in the KV cache for {n_tokens} tokens (n_ctx={context.n_ctx}); decode fewer "
            f"at once, free sequences, or make the context larger{after}"
        )
    if code in (0, _ABORTED):
        return DecodeAbortedError(
            f"decoding {n_tokens} tokens was stopped by the abort flag{after}"
        )
    return GenerationError(f"{function} failed with {code} on {n_tokens} tokens: {why}{after}")
