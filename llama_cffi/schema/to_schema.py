"""Python types -> JSON Schema."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import pathlib
import re
import types
import typing
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar, Union, get_args

from ..errors import ValidationError
from .annotations import (
    ARRAYS,
    OBJECTS,
    PLAIN,
    SETS,
    STRINGS,
    class_of,
    is_alias,
    is_enum,
    is_pydantic,
    name_of,
    tuple_args,
    unwrapped,
)
from .fields import MISSING, Field, description_of, fields_of
from .keywords import Schema, inlined, renamed
from .pydantic_types import pydantic_schema

__all__ = ["Schema", "json_schema", "json_value", "object_schema"]


def json_schema(type_: Any) -> Schema:
    """Return the JSON Schema of the JSON documents that are values of a type.

    Docstrings and strings within Annotated become descriptions, also those of fields in Google
    style. A field with a default is not required; an object may have no other keys, unless a
    pydantic model says that it allows them. Classes stand where they are used; those that contain
    themselves are in `$defs`.

    Args:
        type_: A class or type hint.

    Raises:
        ValidationError: JSON has no such values, or an annotation cannot be resolved.
    """
    writer = _Writer()
    return inlined(writer.schema(type_, name_of(type_)), writer.definitions)


def object_schema(fields: Mapping[str, Field], where: str) -> Schema:
    """Return the JSON Schema of objects with these fields and no other keys.

    Args:
        fields: Name -> field.
        where: What has them, for messages.

    Raises:
        ValidationError: As for `json_schema`.
    """
    writer = _Writer()
    return inlined(writer.object(fields, where), writer.definitions)


class _Writer:
    """Writes schemas; classes with fields once, as definitions."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self._names: dict[Any, str] = {}

    def schema(self, type_: Any, where: str) -> Schema:
        type_, description = unwrapped(type_)
        schema = self._schema(type_, where)
        return {**schema, "description": description} if description else schema

    def object(self, fields: Mapping[str, Field], where: str) -> Schema:
        properties = {}
        for name, field in fields.items():
            schema = self.schema(field.type, f"{where}.{name}")
            if field.description:
                schema["description"] = field.description
            if field.default is not MISSING and field.default is not None:
                with suppress(TypeError, ValueError):  # JSON may lack it: it is only optional then
                    schema["default"] = json_value(field.default)
            properties[name] = schema
        schema = {"type": "object", "properties": properties}
        if required := [name for name, field in fields.items() if field.is_required]:
            schema["required"] = required
        return {**schema, "additionalProperties": False}

    def _schema(self, type_: Any, where: str) -> Schema:
        if is_pydantic(type_):
            return self._adopted(pydantic_schema(type_))
        if isinstance(type_, (str, typing.ForwardRef)):
            raise ValidationError(f"{where}: the name {type_!r} is not resolved; give the type")
        if isinstance(type_, TypeVar):
            raise ValidationError(f"{where}: {type_} is a type variable; give a type for it")
        try:
            if type_ in PLAIN:
                return {"type": PLAIN[type_]} if PLAIN[type_] else {}
            if type_ in STRINGS:
                format_ = STRINGS[type_][0]
                return {"type": "string", **({"format": format_} if format_ else {})}
        except TypeError:
            raise ValidationError(f"{where}: expected a type, got {type_!r}") from None
        args, container = get_args(type_), class_of(type_)
        if container is Literal:
            return _choices(args, where)
        if container in (Union, types.UnionType):
            return _any_of([self.schema(arg, where) for arg in args])
        if container is tuple:
            return self._tuple(tuple_args(type_), where)
        if container in ARRAYS or container in SETS:
            unique = {"uniqueItems": True} if container in SETS else {}
            return {**self._array(args[0] if args else Any, where), **unique}
        if container in OBJECTS:
            return self._mapping(args, where)
        return self._class(type_, where)

    def _array(self, item: Any, where: str) -> Schema:
        items = self.schema(item, f"{where}[]")
        return {"type": "array", **({"items": items} if items else {})}

    def _tuple(self, args: tuple[Any, ...], where: str) -> Schema:
        if args[1:] == (Ellipsis,):
            return self._array(args[0], where)
        if not args:
            return {"type": "array", "maxItems": 0}
        items = [self.schema(arg, f"{where}[{i}]") for i, arg in enumerate(args)]
        length = {"minItems": len(items), "maxItems": len(items)}
        return {"type": "array", "prefixItems": items, "items": False, **length}

    def _mapping(self, args: tuple[Any, ...], where: str) -> Schema:
        key, item = args or (str, Any)
        key, _ = unwrapped(key)
        values = self.schema(item, f"{where}{{}}")
        if is_enum(key) or class_of(key) is Literal:
            names = [m.value for m in key] if is_enum(key) else get_args(key)
            choices = _choices(names, where)
            if choices["type"] == "string":
                properties = dict.fromkeys(choices["enum"], values)
                return {"type": "object", "properties": properties, "additionalProperties": False}
        if key is not str:
            raise ValidationError(f"{where}: the keys of JSON objects are str, not {name_of(key)}")
        return {"type": "object", **({"additionalProperties": values} if values else {})}

    def _class(self, type_: Any, where: str) -> Schema:
        if is_enum(type_):
            description = description_of(type_)
            schema = _choices([member.value for member in type_], type_.__name__)
            return {**schema, "description": description} if description else schema
        if type_ not in self._names:
            fields = fields_of(type_)
            if fields is None and not is_alias(type_):
                raise ValidationError(
                    f"{where}: JSON has no values of {type_!r}; use str, int, float, bool, list, "
                    "dict, Literal, Enum, a dataclass or a TypedDict"
                )
            name = self._names[type_] = self._reserve(class_of(type_).__name__)
            if fields is None:
                self.definitions[name] = self.schema(type_.__value__, where)
            else:
                self.definitions[name] = self._described(class_of(type_), fields)
        return {"$ref": f"#/$defs/{self._names[type_]}"}

    def _described(self, cls: type, fields: Mapping[str, Field]) -> Schema:
        description = description_of(cls)
        schema = self.object(fields, cls.__name__)
        return {**schema, "description": description} if description else schema

    def _adopted(self, schema: Schema) -> Schema:
        """Take over the definitions that a schema brings along."""
        found: Schema = schema.pop("$defs", {})
        names = {
            name: name if self.definitions.get(name) == definition else self._reserve(name)
            for name, definition in found.items()
        }
        for name, definition in found.items():
            self.definitions[names[name]] = renamed(definition, names)
        return renamed(schema, names)

    def _reserve(self, name: str) -> str:
        """Return a name for a definition that no other has."""
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        while name in self.definitions:
            name += "_"
        self.definitions[name] = {}
        return name


def json_value(value: Any) -> Any:
    """Return the JSON document of a value: the inverse of `parse_json`.

    Raises:
        TypeError: JSON has no such value.
        ValueError: The bytes are not UTF-8.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, (float, decimal.Decimal)):
        if math.isfinite(value):
            return float(value)
        raise TypeError(f"JSON has no number {value}")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, pathlib.PurePath)):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    if dump := getattr(value, "model_dump", None):
        return dump(mode="json", by_alias=True)
    fields = fields_of(type(value)) or {}
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if fields:
        return {name: json_value(getattr(value, name)) for name in fields}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_value(item) for item in value]
    raise TypeError(f"JSON has no value for {value!r:.80}")


def _choices(values: Iterable[Any], where: str) -> Schema:
    known: dict[tuple[str, Any], Any] = {}
    for value in values:
        value = value.value if isinstance(value, enum.Enum) else value
        kind = None if isinstance(value, decimal.Decimal) else PLAIN.get(type(value))
        if kind is None or (isinstance(value, float) and not math.isfinite(value)):
            raise ValidationError(
                f"{where}: {value!r} cannot be a choice; use str, int, float, bool or None"
            )
        known[kind, value] = value
    if not known:
        raise ValidationError(f"{where}: there are no choices; name at least one")
    return {**_types(kind for kind, _ in known), "enum": list(known.values())}


def _any_of(options: list[Schema]) -> Schema:
    """Join the schemas of a union, in one `type` where they say nothing else."""
    flat: list[Schema] = []
    for option in options:
        flat += option["anyOf"] if option.keys() == {"anyOf"} else [option]
    if {} in flat:
        return {}
    if all(option.keys() == {"type"} for option in flat):
        return _types(name for option in flat for name in _listed(option["type"]))
    different = [option for i, option in enumerate(flat) if option not in flat[:i]]
    return {"anyOf": different} if len(different) > 1 else different[0]


def _types(names: Iterable[str]) -> Schema:
    different = list(dict.fromkeys(names))
    return {"type": different[0] if len(different) == 1 else different}


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
