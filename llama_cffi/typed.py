"""Python types -> JSON Schema, and JSON text -> values of those types.

A pydantic model brings both itself, also within other types; the rest is read here: dataclasses,
TypedDict, NamedTuple, Enum, Literal, list, tuple, dict, Union, numbers, texts, dates, UUID.
Annotated is its type; what it is annotated with counts for pydantic only.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import inspect
import json
import re
import types
import typing
import uuid
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
)
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from .errors import ValidationError

__all__ = ["schema_of", "value_of"]

T = TypeVar("T")

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    None: {"type": "null"},
    Any: {},
    object: {},
}
# Types that JSON has as texts: what a schema calls them, and how a text becomes one.
_TEXTS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    datetime.datetime: ("date-time", lambda text: datetime.datetime.fromisoformat(_iso(text))),
    datetime.date: ("date", datetime.date.fromisoformat),
    datetime.time: ("time", lambda text: datetime.time.fromisoformat(_iso(text))),
    uuid.UUID: ("uuid", uuid.UUID),
}
_LISTS = (list, Sequence, MutableSequence, Iterable, Collection)
_MAPS = (dict, Mapping, MutableMapping)
_DATA = {"const", "default", "enum", "examples"}  # keywords whose values are no schemas
_WRAPS = {"Required", "NotRequired", "ReadOnly", "Final"}
_CONSTRAINTS = {"annotated_types", "pydantic"}  # whose words in Annotated pydantic enforces


def schema_of(type_: Any) -> dict[str, Any]:
    """Return the JSON Schema of the JSON documents that are values of *type_*.

    Classes that occur become `$defs`; they may refer to themselves. Docstrings become
    descriptions. A field with a default is not required; other keys may not be in an object,
    unless a pydantic model says that it allows them.

    Raises:
        ValidationError: JSON has no such values, or a name in an annotation means nothing.
    """
    writer = _Writer()
    schema = writer.schema(type_, "the type")
    return {**schema, **({"$defs": writer.definitions} if writer.definitions else {})}


def value_of(type_: type[T], text: str) -> T:
    """Return the value of *type_* that a JSON document stands for.

    Raises:
        ValidationError: The text is no JSON, or not of that type; the message says where. What
            pydantic raises for its models is the cause.
    """
    if _is_pydantic(type_):
        value: T = _validated(type_, text, "$")
        return value
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValidationError(f"the text is no JSON: {e}: {text!r:.200}") from None
    result: T = _read(type_, document, "$")
    return result


def _is_pydantic(type_: Any) -> bool:
    """Tell whether pydantic knows best: a model, or Annotated with its constraints."""
    said = [type(word).__module__.split(".")[0] for word in getattr(type_, "__metadata__", ())]
    return hasattr(type_, "model_json_schema") or not _CONSTRAINTS.isdisjoint(said)


def _adapter(type_: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(type_)


def _validated(type_: Any, text: str, where: str) -> Any:
    try:
        return _adapter(type_).validate_json(text)
    except ValueError as e:
        raise ValidationError(f"{where}: {e}") from e


def _closed(schema: Any) -> Any:
    """Return a schema whose objects have no other keys where it does not speak of them."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: value if key in _DATA else _closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


class _Field(typing.NamedTuple):
    type: Any
    required: bool


def _fields(type_: Any) -> dict[str, _Field] | None:
    """Return the fields of a class that JSON has as an object; None = it is no such class."""
    if not inspect.isclass(type_):
        return None
    if dataclasses.is_dataclass(type_):
        hints = _hints(type_)
        missing = dataclasses.MISSING
        return {
            f.name: _Field(hints[f.name], f.default is missing and f.default_factory is missing)
            for f in dataclasses.fields(type_)
            if f.init
        }
    defaults = getattr(type_, "_field_defaults", None)
    if issubclass(type_, tuple) and defaults is not None:
        return {name: _Field(hint, name not in defaults) for name, hint in _hints(type_).items()}
    if hasattr(type_, "__required_keys__"):
        # Where annotations are texts, the class itself does not see what is NotRequired.
        said = {"Required": True, "NotRequired": False}
        return {
            name: _Field(hint, said.get(_wrapper(hint), name in type_.__required_keys__))
            for name, hint in _hints(type_).items()
        }
    return None


def _hints(type_: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(type_, include_extras=True)
    except NameError as e:
        raise ValidationError(
            f"{type_.__name__}: {e}; define the types that it refers to in its module"
        ) from None


def _wrapper(type_: Any) -> str:
    """Return the name of what is around a type, such as NotRequired."""
    return str(get_origin(type_)).rpartition(".")[2]


def _unwrapped(type_: Any) -> Any:
    """Return what Annotated, Required, NotRequired, Final and NewType are about."""
    while True:
        if hasattr(type_, "__supertype__"):
            type_ = type_.__supertype__
        elif _wrapper(type_) in _WRAPS:
            type_ = get_args(type_)[0]
        elif hasattr(type_, "__metadata__") and not _is_pydantic(type_):
            type_ = type_.__origin__
        else:
            return type_


class _Writer:
    """Writes schemas; classes once, as definitions."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._names: dict[Any, str] = {}

    def schema(self, type_: Any, where: str) -> dict[str, Any]:
        type_ = _unwrapped(type_)
        if hasattr(type_, "__metadata__"):
            return self._adopted(type_)
        if isinstance(type_, (str, typing.ForwardRef)):
            raise ValidationError(f"{where}: the name {type_!r} is not resolved; give the type")
        if isinstance(type_, TypeVar):
            raise ValidationError(f"{where}: {type_} is not a type yet; fill the parameter in")
        try:
            if type_ in _PLAIN:
                return dict(_PLAIN[type_])
            if type_ in _TEXTS:
                return {"type": "string", "format": _TEXTS[type_][0]}
        except TypeError:
            raise ValidationError(f"{where}: {type_!r} is no type") from None
        origin, args = get_origin(type_), get_args(type_)
        if origin is Literal:
            return {"enum": [_json_value(value, where) for value in args]}
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.schema(arg, where) for arg in args]}
        if (origin or type_) in _LISTS:
            items = self.schema(args[0], f"{where}[]") if args else {}
            return {"type": "array", "items": items}
        if (origin or type_) is tuple:
            return self._tuple(args, where)
        if (origin or type_) in _MAPS:
            if args and _unwrapped(args[0]) is not str:
                raise ValidationError(f"{where}: the keys of JSON objects are str, not {args[0]}")
            values = self.schema(args[1], f"{where}{{}}") if args else {}
            return {"type": "object", "additionalProperties": values}
        if (
            _is_pydantic(type_)
            or _fields(type_) is not None
            or (inspect.isclass(type_) and issubclass(type_, enum.Enum))
        ):
            return self._class(type_)
        raise ValidationError(f"{where}: JSON has no values of {type_!r}")

    def _tuple(self, args: tuple[Any, ...], where: str) -> dict[str, Any]:
        if not args:
            return {"type": "array", "items": {}}
        if args[-1] is Ellipsis:
            return {"type": "array", "items": self.schema(args[0], f"{where}[]")}
        items = [self.schema(arg, f"{where}[{i}]") for i, arg in enumerate(args)]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}

    def _class(self, type_: Any) -> dict[str, Any]:
        if type_ not in self._names:
            name = type_.__name__
            while name in self.definitions:
                name += "_"
            self._names[type_] = name
            self.definitions[name] = {}  # taken, also while the fields are read
            self.definitions[name] = self._definition(type_)
        return {"$ref": f"#/$defs/{self._names[type_]}"}

    def _definition(self, type_: Any) -> dict[str, Any]:
        if _is_pydantic(type_):
            schema = self._adopted(type_)
            # One that refers to itself is a definition already.
            own = str(schema.get("$ref", "")).removeprefix("#/$defs/")
            return dict(self.definitions.get(own, schema))
        described, fields = _description(type_), _fields(type_)
        if fields is None:
            return {"enum": [_json_value(m.value, type_.__name__) for m in type_], **described}
        return {
            "type": "object",
            "properties": {
                name: self.schema(field.type, f"{type_.__name__}.{name}")
                for name, field in fields.items()
            },
            "required": [name for name, field in fields.items() if field.required],
            "additionalProperties": False,
            **described,
        }

    def _adopted(self, type_: Any) -> dict[str, Any]:
        """Return pydantic's schema of a type; its definitions become ours."""
        schema: dict[str, Any] = _closed(_adapter(type_).json_schema())
        for name, inner in schema.pop("$defs", {}).items():
            if self.definitions.get(name) not in (None, {}, inner):
                raise ValidationError(f"two types are called {name}; rename one of them")
            self.definitions[name] = inner
        return schema


def _description(type_: Any) -> dict[str, str]:
    """Return the docstring that somebody wrote: dataclasses, enums and tuples make their own."""
    text = inspect.cleandoc(type_.__dict__.get("__doc__") or "")
    made = text.startswith(f"{type_.__name__}(") or text == "An enumeration."
    return {"description": text} if text and not made else {}


def _json_value(value: Any, where: str) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    if value is not None and type(value) not in (str, int, float, bool):
        raise ValidationError(f"{where}: {value!r} is no JSON value")
    return value


def _read(type_: Any, document: Any, where: str) -> Any:
    """Return *document* as a value of *type_*."""
    type_ = _unwrapped(type_)
    if _is_pydantic(type_):
        return _validated(type_, json.dumps(document), where)
    if type_ in (Any, object):
        return document
    if type_ in _TEXTS:
        try:
            return _TEXTS[type_][1](_checked(str, document, where))
        except ValueError as e:
            raise ValidationError(f"{where}: {document!r:.80} is no {_name(type_)}: {e}") from None
    if type_ in _PLAIN:
        return _plain(type_, document, where)
    origin, args = get_origin(type_), get_args(type_)
    if origin is Literal:
        return _one_of({_key(_json_value(v, where)): v for v in args}, document, where)
    if origin in (Union, types.UnionType):
        return _first_that_fits(args, document, where)
    if (origin or type_) in _LISTS:
        item = args[0] if args else Any
        return [_read(item, x, f"{where}[{i}]") for i, x in enumerate(_list(document, where))]
    if (origin or type_) is tuple:
        return _read_tuple(args, _list(document, where), where)
    if (origin or type_) in _MAPS:
        item = args[1] if args else Any
        given = _checked(dict, document, where)
        return {key: _read(item, value, f"{where}.{key}") for key, value in given.items()}
    if inspect.isclass(type_) and issubclass(type_, enum.Enum):
        return _one_of({_key(member.value): member for member in type_}, document, where)
    fields = _fields(type_)
    if fields is None:
        raise ValidationError(f"{where}: JSON has no values of {type_!r}")
    return _read_object(type_, fields, _checked(dict, document, where), where)


def _read_object(
    type_: Any, fields: Mapping[str, _Field], document: Mapping[str, Any], where: str
) -> Any:
    for name, field in fields.items():
        if field.required and name not in document:
            raise ValidationError(f"{where}: {type_.__name__} needs {name!r}")
    for name in document:
        if name not in fields:
            raise ValidationError(f"{where}: {type_.__name__} has no {name!r}")
    values = {
        name: _read(fields[name].type, value, f"{where}.{name}") for name, value in document.items()
    }
    try:
        return type_(**values)
    except ValueError as e:  # what __post_init__ refuses
        raise ValidationError(f"{where}: {e}") from e


def _read_tuple(args: tuple[Any, ...], items: list[Any], where: str) -> tuple[Any, ...]:
    if not args:
        return tuple(items)
    if args[-1] is Ellipsis:
        args = (args[0],) * len(items)
    if len(args) != len(items):
        raise ValidationError(f"{where}: {len(items)} items, not {len(args)}")
    return tuple(
        _read(arg, item, f"{where}[{i}]")
        for i, (arg, item) in enumerate(zip(args, items, strict=True))
    )


def _first_that_fits(args: tuple[Any, ...], document: Any, where: str) -> Any:
    errors = []
    # `float | int` of 1 is the int: what the document says exactly comes first.
    for arg in sorted(args, key=lambda arg: type(document) is not _unwrapped(arg)):
        try:
            return _read(arg, document, where)
        except ValidationError as e:
            if arg is not type(None):
                errors.append(e)
    if len(errors) == 1:
        raise errors[0]
    names = " nor ".join(map(_name, args))
    raise ValidationError(f"{where}: {document!r:.80} is neither {names}")


def _one_of(known: Mapping[Any, Any], document: Any, where: str) -> Any:
    try:
        return known[_key(document)]
    except (KeyError, TypeError):
        values = ", ".join(repr(value) for _, value in known)
        raise ValidationError(f"{where}: {document!r:.80} is none of {values}") from None


def _key(value: Any) -> tuple[bool, Any]:
    """Return a key under which True is not 1."""
    return isinstance(value, bool), value


def _plain(type_: Any, document: Any, where: str) -> Any:
    if type_ is float and type(document) is int:
        return float(document)
    if type_ is int and type(document) is float and document.is_integer():
        return int(document)  # a JSON Schema integer may be written 1.0
    return _checked(type(None) if type_ is None else type_, document, where)


def _list(document: Any, where: str) -> list[Any]:
    items: list[Any] = _checked(list, document, where)
    return items


def _checked(type_: Any, document: Any, where: str) -> Any:
    if type(document) is not type_:
        raise ValidationError(f"{where}: {document!r:.80} is no {_name(type_)}")
    return document


def _name(type_: Any) -> str:
    return getattr(type_, "__name__", str(type_))


def _iso(text: str) -> str:
    """Write the Z and the fraction of RFC 3339 as Python before 3.11 reads them."""
    text = re.sub(r"[Zz]$", "+00:00", text)
    return re.sub(r"\.(\d+)", lambda found: f".{found[1]:0<6.6}", text)
