"""Checks of JSON against the types of an SDK, stricter than the SDK itself.

The SDKs construct their models without validation: a missing field becomes None, an unknown one an
attribute. Here both fail, and so does a value of another type.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

__all__ = ["EXTENSIONS", "assert_strict", "faults"]

# Fields that other local servers have, too, and that clients read where they exist.
EXTENSIONS = frozenset(("aliases", "meta", "reasoning_content", "timings"))


def assert_strict(answer: BaseModel, extensions: frozenset[str] = EXTENSIONS) -> None:
    """Fail on fields of an SDK's object that are unknown, missing, or of another type."""
    data = answer.model_dump(mode="json", exclude_unset=True, by_alias=True, warnings=False)
    assert [*faults(data, type(answer), extensions)] == []


def faults(data: Any, kind: Any, extensions: frozenset[str], where: str = "") -> Iterator[str]:
    """Yield what is wrong with *data* as a value of the type *kind*."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from faults(data, args[0], extensions, where)
    elif hasattr(kind, "__value__"):  # `type X = ...`
        yield from faults(data, kind.__value__, extensions, where)
    elif origin in (Union, types.UnionType):
        found = [[*faults(data, option, extensions, where)] for option in args]
        if all(found):
            yield min(found, key=len)[0]
    elif origin is Literal:
        if data not in args:
            yield f"{where}: {data!r} is none of {args}"
    elif origin is list:
        if not isinstance(data, list):
            yield f"{where}: {data!r} is not a list"
            return
        for i, item in enumerate(data):
            yield from faults(item, args[0], extensions, f"{where}[{i}]")
    elif origin is dict:
        if not isinstance(data, dict):
            yield f"{where}: {data!r} is not an object"
            return
        for name, item in data.items():
            yield from faults(item, args[1], extensions, f"{where}.{name}")
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from _model_faults(data, kind, extensions, where)
    elif kind in (None, type(None)):
        if data is not None:
            yield f"{where}: {data!r} is not null"
    elif kind in (int, float, str, bool):
        allowed = (int, float) if kind is float else kind
        if not isinstance(data, allowed) or (isinstance(data, bool) and kind is not bool):
            yield f"{where}: {data!r} is not {kind.__name__}"
    elif kind not in (object, Any):
        yield f"{where}: this helper does not know {kind!r}"


def _model_faults(
    data: Any, kind: type[BaseModel], extensions: frozenset[str], where: str
) -> Iterator[str]:
    if not isinstance(data, dict):
        yield f"{where}: {data!r} is not an object"
        return
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    for name, field in fields.items():
        if name not in data:
            if field.is_required():
                yield f"{where}.{name} is missing"
        else:
            inner = field.annotation
            yield from faults(data[name], inner, extensions, f"{where}.{name}")
    for name in data:
        if name not in fields and name not in extensions:
            yield f"{where}.{name} is unknown to {kind.__name__}"
