"""Answers of a hot model that come to an end, however the kernels of this CPU round."""

from __future__ import annotations

from collections.abc import Iterator

from llama_cffi import Vocab

__all__ = ["ever_shorter"]

_CLOSING = (b'"', b"]", b"}")


def ever_shorter(vocab: Vocab, n: int = 8) -> Iterator[dict[int, float]]:
    """Yield the `logit_bias` of *n* attempts at a JSON document.

    The first is free, and a string or list in it may go on until the context is full. Each later
    one favours tokens that close something by 3 more, so that the last ones do end.
    """
    closing = [
        token
        for token in range(len(vocab))
        if vocab.is_eog(token) or vocab.token_to_piece(token).startswith(_CLOSING)
    ]
    for attempt in range(n):
        yield dict.fromkeys(closing, 3.0 * attempt)
