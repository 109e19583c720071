"""What decisions are about: text, a conversation, or any other JSON value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeGuard

from ..errors import ValidationError
from ..validation import shown

__all__ = ["DecisionInput", "as_json", "is_conversation"]

#: Text, a conversation in OpenAI's format, or another JSON object or list.
DecisionInput: TypeAlias = str | Mapping[str, object] | Sequence[object]


def is_conversation(input: object) -> TypeGuard[Sequence[Mapping[str, object]]]:
    """Whether an input is a list of messages."""
    return (
        isinstance(input, Sequence)
        and bool(input)
        and all(isinstance(message, Mapping) and "role" in message for message in input)
    )


def as_json(value: object) -> str:
    """Return a JSON object or list as text.

    Raises:
        ValidationError: It is something else, or cannot be written as JSON.
    """
    if not isinstance(value, (Mapping, list, tuple)):
        raise ValidationError(
            f"the input must be a str, a conversation, or a JSON object or list, got {shown(value)}"
        )
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"the input cannot be written as JSON: {error}") from None
