"""OpenAI's `input` of embeddings: a text, its token ids, or a list of either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

from ..validation import as_list

__all__ = ["as_inputs"]


def as_inputs(name: str, given: Any) -> tuple[list[str | Sequence[int]], bool]:
    """Return the inputs, and whether *given* is a single one.

    Raises:
        ValidationError: It is neither a str nor a list.
    """
    if isinstance(given, str):
        return [given], True
    items = as_list(name, given)
    if items and isinstance(items[0], SupportsIndex):
        return [items], True
    return items, False
