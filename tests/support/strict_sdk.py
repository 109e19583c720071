"""Strict reading by the types of an SDK: its own parsing lets unknown and missing fields pass."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

T = TypeVar("T")


def strict(kind: type[T], value: Any) -> T:
    """Return *value* as *kind*, a pydantic model, or another type of models and JSON.

    Raises:
        AssertionError: A field is unknown, missing, or of another type.
    """
    found = [*problems(kind, value)]
    assert not found, "\n".join(found)
    return _adapter(kind).validate_python(value)  # type: ignore[no-any-return]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def problems(kind: Any, value: Any, path: str = "$") -> Iterator[str]:
    """Yield what is wrong with a value of JSON."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from problems(inner[0], value, path)
    elif origin in (Union, types.UnionType):
        meant = [each for each in inner if _is_meant(each, value)] or inner
        yield from min(([*problems(each, value, path)] for each in meant), key=len)
    elif origin is Literal:
        if value not in inner:
            yield f"{path}: {value!r} is none of {inner}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{path}: {value!r} is not a list"
            return
        for i, each in enumerate(value):
            yield from problems(inner[0], each, f"{path}[{i}]")
    elif origin is dict:
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is not an object"
            return
        for name, each in value.items():
            yield from problems(inner[1], each, f"{path}.{name}")
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from _fields(kind, value, path)
    elif kind not in (Any, object):
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            yield f"{path}: {value!r} is no {getattr(kind, '__name__', kind)}"


def _fields(model: type[BaseModel], value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is not an object"
        return
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for name in value.keys() - fields.keys():
        yield f"{path}: {model.__name__} has no field {name!r}"
    for name, field in fields.items():
        if name in value:
            yield from problems(field.annotation, value[name], f"{path}.{name}")
        elif field.is_required():
            yield f"{path}: {model.__name__} needs the field {name!r}"


def _is_meant(kind: Any, value: Any) -> bool:
    """Return whether the discriminator `type` chooses this member of a union."""
    fields = kind.model_fields if hasattr(kind, "model_fields") else {}
    kinds = get_args(fields["type"].annotation) if "type" in fields else ()
    return isinstance(value, dict) and value.get("type") in kinds
