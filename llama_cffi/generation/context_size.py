"""The context size of a generation: the default, and a warning beyond the model's training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..validation import check_int, warn_caller

if TYPE_CHECKING:
    from ..binding import Model

__all__ = ["DEFAULT_N_CTX", "context_size", "default_n_ctx", "n_sequences"]

DEFAULT_N_CTX = 4096
_MAX_SEQUENCES = 64  # of the oldest builds
# Who sets one of these extends the context on purpose.
_EXTENDS = ("rope_scaling", "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_orig_ctx")


def context_size(n_ctx: int | None, model: Model, options: Mapping[str, Any]) -> int:
    """Return the context size to create, tokens; warn if the model was trained for less.

    Args:
        n_ctx: As the caller gave it. None: 4096, or the model's training length if that is less;
            0: the training length.
        model: The model.
        options: The other arguments of `Context`; those that scale RoPE turn the warning off.

    Raises:
        ValidationError: *n_ctx* is negative or not an integer.
    """
    trained = model.n_ctx_train
    if n_ctx is None:
        return default_n_ctx(trained)
    size = check_int("n_ctx", n_ctx, 0) or trained
    extended = any(options.get(name) for name in _EXTENDS)
    if 0 < trained < size and not extended and not model.is_recurrent:
        warn_caller(
            f"n_ctx={size} is more than the {trained} tokens that {model.path.name} was trained "
            f"for: answers get worse beyond them. Use n_ctx={trained} or less (0: the model's "
            "own), or scale RoPE as the model's authors say (rope_scaling, rope_freq_scale)"
        )
    return size


def default_n_ctx(trained: int) -> int:
    """Return the default context size of a model with this training length; 0: unknown."""
    return min(DEFAULT_N_CTX, trained) if trained > 0 else DEFAULT_N_CTX


def n_sequences(n_parallel: int, *, shares_cells: bool, keeps_states: bool) -> int:
    """Return the number of sequences of a context for *n_parallel* answers.

    Where they share their cells, there are more, to keep prefixes; not in models that keep a state
    for each.
    """
    if not shares_cells or keeps_states:
        return n_parallel
    return max(n_parallel, min(2 * n_parallel, _MAX_SEQUENCES))
