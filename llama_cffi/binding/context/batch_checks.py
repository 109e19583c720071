"""Check what C asserts about a batch in encoders, with embeddings and without causal attention.

Plain decoding needs none of it: `Context` calls these only if `needs_checks` says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ValidationError
from .. import compat
from ..memory_limits import check_bytes, check_threads, is_limited

if TYPE_CHECKING:
    from .batch import Batch
    from .context import Context

__all__ = ["check_decode", "check_encode", "needs_checks"]

# Besides the outputs, whose failure C reports (measured: below 1 MiB), and to sample from them.
_DECODE_BYTES, _SAMPLE_BYTES = 2**22, 16


def needs_checks(context: Context) -> bool:
    """Whether `check_decode` has anything to check for this context."""
    kind = context.kind
    return (
        is_limited()
        or context.embeddings
        or context.mtp
        or not context.causal_attn
        or kind.has_encoder
        or kind.n_positions is not None
    )


def check_decode(context: Context, batch: Batch) -> None:
    """Refuse a batch that C would abort on or compute wrongly; request every output it needs.

    Raises:
        ValidationError: With the wrong value.
        OutOfMemoryError: A limit leaves almost nothing to this process.
    """
    kind, library = context.kind, context.library
    _check_limits(context)
    if kind.has_encoder:
        if not kind.has_decoder:
            raise ValidationError("this model is an encoder; use encode")
        if missing := sorted(batch.starts().keys() - context.encoded):
            raise ValidationError(f"sequences {missing} were not encoded; use encode first")
    _check_positions(context, batch)
    pooled = context.embeddings and context.pooling != "none"
    if pooled or not context.causal_attn:
        _check_whole(context, batch)
        several = len(batch.starts()) > 1
        if several and not context.kv_unified and compat.has_memory(library, context.ptr):
            raise ValidationError(  # C computes equally many tokens of each, then the rest
                "several sequences in one batch would be split here; decode them one by one, or "
                "create the context with kv_unified=True"
            )
    if pooled:
        _check_small_ids(context, batch)
    if context.embeddings:
        batch.want_all()


def check_encode(context: Context, batch: Batch) -> None:
    """Refuse a batch that C would abort on when it encodes.

    Raises:
        ValidationError: With the wrong value, or for a model without an encoder.
        OutOfMemoryError: A limit leaves almost nothing to this process.
    """
    if not context.kind.has_encoder:
        raise ValidationError(f"{context.model.path.name} has no separate encoder; use decode")
    _check_limits(context)
    _check_positions(context, batch)
    _check_whole(context, batch)
    if context.pooling != "none":
        library = context.library
        supported = (
            compat.encode_supports_pooling(library)
            if context.embeddings
            else context.pooling != "rank" or compat.encodes_with_rank_pooling(library)
        )
        if not supported:
            raise ValidationError(
                f"this build cannot pool what it encodes; {compat.newer_build(context.library)}"
            )
        _check_small_ids(context, batch)  # C selects rows even if it computed no embeddings
    batch.want_all()


def _check_limits(context: Context) -> None:
    if is_limited():
        check_bytes(_DECODE_BYTES + _SAMPLE_BYTES * context.n_vocab, "decoding")
        n_threads = max(context.n_threads, context.n_threads_batch)
        if n_threads > 1 and not compat.keeps_threads(context.library):
            check_threads(n_threads)  # C starts them for each graph


def _check_positions(context: Context, batch: Batch) -> None:
    rows = context.kind.n_positions
    if rows is not None and batch.last_position() >= rows:  # i01 >= 0 && i01 < ne01
        raise ValidationError(
            f"position {batch.last_position()} is outside the model's table of {rows} positions"
        )


def _check_whole(context: Context, batch: Batch) -> None:
    """Refuse more than n_ubatch tokens: parts of a sequence would not see each other.

    C: GGML_ASSERT(cparams.n_ubatch >= n_tokens)
    """
    if len(batch) > context.n_ubatch:
        raise ValidationError(
            f"{len(batch)} tokens must be computed together and n_ubatch is {context.n_ubatch}; "
            "create the context with a larger n_ubatch (and n_batch)"
        )


def _check_small_ids(context: Context, batch: Batch) -> None:
    library, starts = context.library, batch.starts()
    if compat.pools_any_sequence(library):
        return
    last = max(starts)
    if last >= len(batch):
        raise ValidationError(
            f"sequence {last} in a batch of {len(batch)} tokens: this build pools only sequences "
            f"below the number of tokens; {compat.newer_build(library)}"
        )
    if len(starts) > 1 and context.model.keeps_states:
        raise ValidationError(  # C pools parts of equal length, and asserts seq_id < n_tokens
            f"{len(starts)} sequences in one batch: this build pools sequences of a recurrent "
            f"model only one by one; {compat.newer_build(library)}"
        )
