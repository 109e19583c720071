"""Strict reading by the types of an SDK: its own parsing lets unknown and missing fields pass."""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

__all__ = ["EXTENSIONS", "assert_strict", "problems", "strictly"]

# Fields that other local servers have, too, and that clients read where they exist.
EXTENSIONS = frozenset(
    ("aliases", "architecture", "meta", "reasoning_content", "status", "tags", "timings")
)


def strictly(kind: Any, value: object) -> Any:
    """Return *value*, sent as JSON, as *kind*: a pydantic model, or a type of models and JSON.

    Raises:
        AssertionError: A field is unknown, missing, or of another type.
    """
    sent = json.loads(json.dumps(value, allow_nan=False))
    found = [*problems(kind, sent)]
    assert not found, "\n".join(found)
    return _adapter(kind).validate_python(sent)


def assert_strict(answer: BaseModel, extensions: frozenset[str] = EXTENSIONS) -> None:
    """Fail on fields of an SDK's object that are unknown, missing, or of another type."""
    data = answer.model_dump(mode="json", exclude_unset=True, by_alias=True, warnings=False)
    found = [*problems(type(answer), data, extensions=extensions)]
    assert not found, "\n".join(found)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def problems(
    kind: Any, value: Any, path: str = "$", extensions: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield what is wrong with a value of JSON."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from problems(inner[0], value, path, extensions)
    elif hasattr(kind, "__value__"):  # `type X = ...`
        yield from problems(kind.__value__, value, path, extensions)
    elif origin in (Union, types.UnionType):
        meant = [each for each in inner if _is_meant(each, value)] or inner
        yield from min(([*problems(each, value, path, extensions)] for each in meant), key=len)
    elif origin is Literal:
        if value not in inner:
            yield f"{path}: {value!r} is none of {inner}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{path}: {value!r} is not a list"
            return
        for i, each in enumerate(value):
            yield from problems(inner[0], each, f"{path}[{i}]", extensions)
    elif origin is dict:
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is not an object"
            return
        for name, each in value.items():
            yield from problems(inner[1], each, f"{path}.{name}", extensions)
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from _fields(kind, value, path, extensions)
    elif kind in (None, type(None)):
        if value is not None:
            yield f"{path}: {value!r} is not null"
    elif kind not in (Any, object):
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            yield f"{path}: {value!r} is not {getattr(kind, '__name__', kind)}"


def _fields(
    model: type[BaseModel], value: Any, path: str, extensions: frozenset[str]
) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is not an object"
        return
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for name in value.keys() - fields.keys() - extensions:
        yield f"{path}: {model.__name__} has no field {name!r}"
    for name, field in fields.items():
        if name in value:
            yield from problems(field.annotation, value[name], f"{path}.{name}", extensions)
        elif field.is_required():
            yield f"{path}: {model.__name__} needs the field {name!r}"


def _is_meant(kind: Any, value: Any) -> bool:
    """Return whether the discriminator `type` chooses this member of a union."""
    fields = kind.model_fields if hasattr(kind, "model_fields") else {}
    kinds = get_args(fields["type"].annotation) if "type" in fields else ()
    return isinstance(value, dict) and value.get("type") in kinds
