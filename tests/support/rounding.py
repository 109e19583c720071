"""Helpers for tests that must pass with any processor's rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llama_cffi import Vocab

__all__ = ["EXACT", "ever_shorter"]

# A context in which the size of a batch changes the logits of `demo_f32` by 1e-5 at most, on any
# processor. With 8-bit weights or a 16-bit cache it is 0.1, and now and then another token.
EXACT: dict[str, Any] = {"flash_attn": False, "type_k": "f32", "type_v": "f32"}

_CLOSING = (b'"', b"]", b"}")


def ever_shorter(vocab: Vocab, n: int = 8) -> Iterator[dict[int, float]]:
    """Yield the `logit_bias` of *n* attempts at a JSON document.

    The first is unbiased, so a string or list in it may go on until the context is full. Each
    later one favours closing tokens by 3 more, so the last ones always end.
    """
    closing = [
        token
        for token in range(len(vocab))
        if vocab.is_eog(token) or vocab.token_to_piece(token).startswith(_CLOSING)
    ]
    for attempt in range(n):
        yield dict.fromkeys(closing, 3.0 * attempt)
