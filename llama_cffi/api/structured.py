"""Answers as JSON of a schema: the option that asks for them, and the text that comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import ValidationError

if TYPE_CHECKING:
    from .types import CreateChatCompletionResponse

__all__ = ["json_format", "json_text"]


def json_format(schema: Mapping[str, object]) -> Mapping[str, object]:
    """Return the `response_format` of answers that are JSON of *schema*."""
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def json_text(answer: CreateChatCompletionResponse) -> str:
    """Return the JSON of an answer.

    Raises:
        ValidationError: The answer was truncated.
    """
    choice, n_tokens = answer["choices"][0], answer["usage"]["completion_tokens"]
    if choice["finish_reason"] == "length":
        raise ValidationError(
            f"the answer was truncated after {n_tokens} tokens, before the JSON ended; raise "
            "max_tokens or n_ctx, or limit the length of the type's strings and lists"
        )
    return choice["message"]["content"] or ""
