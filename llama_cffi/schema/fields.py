"""The named parts of classes that JSON writes as objects."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from ..errors import ValidationError
from .annotations import class_of, wrapper
from .docstring import read_docstring

__all__ = ["MISSING", "Field", "description_of", "fields_of"]

MISSING: Any = dataclasses.MISSING


class Field(NamedTuple):
    """One field of a class, or one parameter of a function.

    Attributes:
        type: Its type hint.
        is_required: Whether it has to be given.
        default: Its value where it is not given; `MISSING` where that is unknown.
        description: From the docstring; may be empty.
    """

    type: Any
    is_required: bool = True
    default: Any = MISSING
    description: str = ""


def fields_of(type_: Any) -> dict[str, Field] | None:
    """Return the fields of a dataclass, NamedTuple or TypedDict; None for any other type.

    Raises:
        ValidationError: An annotation cannot be resolved.
    """
    cls = class_of(type_)
    fields = _fields(cls)
    if fields is None:
        return None
    _, described = _docstring(cls)
    parameters = getattr(cls, "__parameters__", ())
    arguments = dict(zip(parameters, get_args(type_), strict=False))
    return {
        name: field._replace(
            type=_filled(field.type, arguments), description=described.get(name, "")
        )
        for name, field in fields.items()
    }


def description_of(cls: type) -> str:
    """Return the description in the docstring of a class."""
    return _docstring(cls)[0]


def _fields(cls: Any) -> dict[str, Field] | None:
    if not inspect.isclass(cls):
        return None
    if dataclasses.is_dataclass(cls):
        hints = _hints(cls)
        return {
            f.name: Field(
                hints[f.name], f.default is MISSING and f.default_factory is MISSING, f.default
            )
            for f in dataclasses.fields(cls)
            if f.init
        }
    names, defaults = getattr(cls, "_fields", None), getattr(cls, "_field_defaults", None)
    if issubclass(cls, tuple) and names is not None and defaults is not None:
        hints = _hints(cls)
        return {
            name: Field(hints.get(name, Any), name not in defaults, defaults.get(name, MISSING))
            for name in names
        }
    required = getattr(cls, "__required_keys__", None)
    if required is not None:
        return {
            name: Field(hint, _is_required(hint, name in required))
            for name, hint in _hints(cls).items()
        }
    return None


def _is_required(hint: Any, otherwise: bool) -> bool:
    """Read Required or NotRequired, which a class with postponed annotations does not know."""
    while hasattr(hint, "__metadata__") or wrapper(hint) == "ReadOnly":
        hint = get_args(hint)[0]
    return {"Required": True, "NotRequired": False}.get(wrapper(hint), otherwise)


def _hints(cls: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as e:
        raise ValidationError(
            f"the annotations of {cls.__name__} cannot be read: {e}; define the types that they "
            "name in the same module"
        ) from None


def _filled(hint: Any, arguments: dict[Any, Any]) -> Any:
    """Return a hint of a generic class with types in place of its type variables."""
    if isinstance(hint, TypeVar):
        return arguments.get(hint, hint)
    own = getattr(hint, "__parameters__", ()) if get_origin(hint) else ()
    return hint[tuple(arguments.get(p, p) for p in own)] if own and arguments else hint


def _docstring(cls: type) -> tuple[str, dict[str, str]]:
    """Read the docstring of the class itself, without those that Python makes."""
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    is_made = text.startswith(f"{cls.__name__}(") or text == "An enumeration."
    return read_docstring("" if is_made else text)
