"""The grammar sampler."""

from __future__ import annotations

from typing import Any

from ..loading.library import Library
from .vocab import vocab_of

__all__ = ["grammar_sampler"]


def grammar_sampler(library: Library, model: Any, grammar: str) -> Any:
    """Create the sampler of a grammar with the start rule `root`; NULL if C refuses it.

    C: llama_sampler_init_grammar, which took the model until b4529; b3889 returns a sampler that
    does nothing instead of NULL.
    """
    vocab = vocab_of(library, model)
    return library.lib.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
