"""Typed access to the fields of a JSON object; errors name their path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ...errors import ValidationError
from ...validation import INT32_MAX, shown

__all__ = ["Fields", "Kind", "typed"]

Kind: TypeAlias = "type | tuple[type, ...]"

_KINDS: dict[Kind, str] = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    (int, float): "a number",
    list: "a list",
    dict: "an object",
    (str, list): "a string or a list of blocks",
}


class Fields:
    """An object of the request; errors name the path of a field.

    Args:
        value: The JSON value.
        path: Its path, such as `messages.0`; empty: it is the body.
    """

    def __init__(self, value: object, path: str) -> None:
        self._path = path
        self._values: Mapping[str, Any] = typed(value, dict, path or "the body")

    def path(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self._path}.{name}" if self._path else name

    def get(self, name: str, kind: Kind) -> Any:
        """Return a field; None: it is absent, or null."""
        value = self._values.get(name)
        return None if value is None else typed(value, kind, self.path(name))

    def need(self, name: str, kind: Kind) -> Any:
        """Return a field that must be there."""
        return typed(self._values.get(name), kind, self.path(name))

    def integer(self, name: str, low: int) -> int | None:
        """Return a number from *low* on; None: it is absent, or null."""
        value: int | None = self.get(name, int)
        if value is not None and not low <= value <= INT32_MAX:
            raise ValidationError(f"{self.path(name)}={value} is outside {low}..{INT32_MAX}")
        return value

    def choice(self, name: str, known: Sequence[str]) -> str:
        """Return a field that must be one of *known*."""
        value: str = self.need(name, str)
        if value not in known:
            listed = ", ".join(known)
            raise ValidationError(f"{self.path(name)}={shown(value)} is not one of {listed}")
        return value

    def inner(self, name: str) -> Fields | None:
        """Return the object in a field; None: it is absent, or null."""
        value = self.get(name, dict)
        return None if value is None else Fields(value, self.path(name))


def typed(value: Any, kind: Kind, path: str) -> Any:
    """Return a JSON value of a *kind*; true and false are not numbers.

    Raises:
        ValidationError: It is of another, or null.
    """
    if value is None:
        raise ValidationError(f"{path} is missing; it must be {_KINDS[kind]}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValidationError(f"{path} must be {_KINDS[kind]}, got {shown(value)}")
    return value
