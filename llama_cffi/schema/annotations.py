"""Type hints taken apart, and the types that both directions know."""

from __future__ import annotations

import datetime
import decimal
import enum
import pathlib
import re
import typing
import uuid
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Sequence,
    Set,
)
from typing import Any, get_args, get_origin

__all__ = [
    "ARRAYS",
    "OBJECTS",
    "PLAIN",
    "SETS",
    "STRINGS",
    "class_of",
    "is_alias",
    "is_enum",
    "is_pydantic",
    "name_of",
    "tuple_args",
    "unwrapped",
    "wrapper",
]

#: What JSON itself has: the type in a schema, or None for any.
PLAIN: dict[Any, str | None] = {
    str: "string",
    int: "integer",
    float: "number",
    decimal.Decimal: "number",
    bool: "boolean",
    type(None): "null",
    None: "null",
    Any: None,
    object: None,
}
ARRAYS = (list, Sequence, MutableSequence, Iterable, Collection)
SETS = (set, frozenset, Set, MutableSet)
OBJECTS = (dict, Mapping, MutableMapping)

_WRAPPERS = {"Required", "NotRequired", "ReadOnly", "Final"}
_PYDANTIC = {"annotated_types", "pydantic"}  # modules of the metadata that pydantic enforces
_HOOKS = ("__get_pydantic_core_schema__", "__pydantic_core_schema__")


def _iso(text: str) -> str:
    """Write the Z and the fraction of RFC 3339 as Python before 3.11 reads them."""
    text = re.sub(r"[Zz]$", "+00:00", text)
    return re.sub(r"\.(\d+)", lambda found: f".{found[1]:0<6.6}", text)


#: Types that JSON has as strings: their format, and how a string becomes one.
STRINGS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    datetime.datetime: ("date-time", lambda text: datetime.datetime.fromisoformat(_iso(text))),
    datetime.date: ("date", datetime.date.fromisoformat),
    datetime.time: ("time", lambda text: datetime.time.fromisoformat(_iso(text))),
    uuid.UUID: ("uuid", uuid.UUID),
    bytes: ("", str.encode),  # UTF-8, as pydantic reads them
    pathlib.Path: ("", pathlib.Path),
    pathlib.PurePath: ("", pathlib.PurePath),
}


def unwrapped(type_: Any) -> tuple[Any, str]:
    """Return what Annotated, Required, NotRequired, ReadOnly, Final and NewType are about.

    The second value is the description: the first string within Annotated. Annotated with
    constraints of pydantic's stays, for pydantic enforces them.
    """
    description = ""
    while True:
        notes = getattr(type_, "__metadata__", ())
        description = description or next((note for note in notes if isinstance(note, str)), "")
        if hasattr(type_, "__supertype__"):
            type_ = type_.__supertype__
        elif wrapper(type_) in _WRAPPERS:
            type_ = get_args(type_)[0]
        elif notes and not is_pydantic(type_):
            type_ = type_.__origin__
        else:
            return type_, description


def wrapper(type_: Any) -> str:
    """Return the name of what is around a type, such as NotRequired."""
    return str(get_origin(type_)).rpartition(".")[2]


def class_of(type_: Any) -> Any:
    """Return the class of a generic class with arguments, or *type_* itself."""
    return get_origin(type_) or type_


def tuple_args(type_: Any) -> tuple[Any, ...]:
    """Return the arguments of a tuple type; those of `tuple` alone are `Any, ...`."""
    # get_args does not tell tuple from tuple[()].
    return (Any, ...) if type_ in (tuple, typing.Tuple) else get_args(type_)  # noqa: UP006


def is_alias(type_: Any) -> bool:
    """Tell whether *type_* was made by a `type` statement."""
    return type(type_).__name__ == "TypeAliasType"


def is_enum(type_: Any) -> bool:
    """Tell whether *type_* is a class of choices."""
    return isinstance(type_, enum.EnumMeta)


def is_pydantic(type_: Any) -> bool:
    """Tell whether pydantic has to read a type: its own, or Annotated with its constraints."""
    notes = {type(note).__module__.split(".")[0] for note in getattr(type_, "__metadata__", ())}
    return not _PYDANTIC.isdisjoint(notes) or any(hasattr(class_of(type_), h) for h in _HOOKS)


def name_of(type_: Any) -> str:
    """Return the name of a type for messages."""
    is_plain = isinstance(type_, type) and not get_args(type_)
    return type_.__name__ if is_plain else str(type_)
