"""The grammar sampler."""

from __future__ import annotations

from typing import Any

from ..library import Library
from .vocab import vocab_of

__all__ = ["grammar_sampler"]


def grammar_sampler(library: Library, model: Any, grammar: str, root: str) -> Any:
    """Create the sampler; NULL when C refuses the grammar (b3889: one that does nothing).

    C: llama_sampler_init_grammar, which took the model until b4529.
    """
    vocab = vocab_of(library, model)
    return library.lib.llama_sampler_init_grammar(vocab, grammar.encode(), root.encode())
