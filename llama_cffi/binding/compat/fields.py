"""Fields of parameter structs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..loading.library import Library

__all__ = ["assign", "fields"]


def assign(params: Any, values: Mapping[str, Any]) -> None:
    """Set the fields that have a value; None keeps the default."""
    for name, value in values.items():
        if value is not None:
            setattr(params, name, value)


def fields(library: Library, params: Any) -> set[str]:
    """Return the names of the fields that a struct has in this build."""
    return {name for name, _ in library.ffi.typeof(params).fields}
