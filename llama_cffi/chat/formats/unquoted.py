"""Values that models write without quotes, of which the schema says what they are."""

from __future__ import annotations

import ast
import json
from contextlib import suppress

from ...schema import json_type
from ..scanner import is_json, loads

__all__ = ["is_text", "read_unquoted"]

_CONSTANTS = ("True", "False", "None")


def is_text(types: frozenset[str]) -> bool:
    """Return whether only text, and perhaps null, is among the JSON *types*."""
    return "string" in types and types <= {"string", "null"}


def read_unquoted(text: str, types: frozenset[str]) -> str:
    """Return a value that was written without quotes as JSON.

    Where only text is allowed it is that text, whatever it looks like; ``null`` and Python's
    ``None`` are null where null is allowed, too. Elsewhere it is what it says as JSON, or as a
    Python literal, if that has an allowed type; else it is text.

    Args:
        text: The value.
        types: The JSON types that its schema allows; see `allowed_types`.
    """
    stripped = text.strip()
    if is_text(types):
        return "null" if "null" in types and stripped in ("null", "None") else _dumped(text)
    if is_json(stripped):
        value = loads(stripped)
        if json_type(value) in types:
            return stripped
        if isinstance(value, str):  # JSON within quotes
            return read_unquoted(value, types)
        if "string" not in types:
            return stripped
    elif "string" not in types or stripped in _CONSTANTS or stripped[:1] in ("[", "{"):
        with suppress(SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            written = _dumped(ast.literal_eval(stripped))
            if json_type(loads(written)) in types:
                return written
    return _dumped(text)


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
