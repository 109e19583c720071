"""Samplers."""

from __future__ import annotations

from typing import Any

from ..library import Library
from .names import call
from .vocab import vocab_of

__all__ = ["sampler_penalties"]


def sampler_penalties(
    library: Library, model: Any, last_n: int, repeat: float, frequency: float, presence: float
) -> Any:
    """Create the penalties sampler.

    C: llama_sampler_init_penalties: 9 arguments until b4435, then 4, 5 with n_vocab since b10361.
    """
    lib = library.lib
    count = len(library.ffi.typeof(lib.llama_sampler_init_penalties).args)
    numbers = (last_n, repeat, frequency, presence)
    if count == 4:
        return lib.llama_sampler_init_penalties(*numbers)
    vocab = vocab_of(library, model)
    n_vocab = call(library, "llama_vocab_n_tokens")(vocab)
    if count == 5:
        return lib.llama_sampler_init_penalties(n_vocab, *numbers)
    eos, newline = lib.llama_token_eos(model), lib.llama_token_nl(model)
    return lib.llama_sampler_init_penalties(n_vocab, eos, newline, *numbers, True, False)
