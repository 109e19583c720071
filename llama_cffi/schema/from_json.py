"""JSON text -> values of Python types."""

from __future__ import annotations

import decimal
import enum
import json
import types
from collections.abc import Callable, Mapping, MutableSet
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args

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
from .fields import Field, fields_of
from .pydantic_types import pydantic_value

__all__ = ["parse_json"]

T = TypeVar("T")


def parse_json(type_: type[T], text: str) -> T:
    """Return the value of a type that a JSON document stands for.

    Of a union, the first type that fits is taken; a number is an int or a float as it is written,
    where the union has both.

    Args:
        type_: A class or type hint that `json_schema` has a schema for.
        text: JSON.

    Raises:
        ValidationError: The text is not valid JSON, or not of that type; the message says where.
            pydantic's own error is the cause where it read the value.
    """
    if is_pydantic(type_):
        value: T = pydantic_value(type_, text, "$")
        return value
    try:
        document = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as e:
        raise ValidationError(f"the text is not valid JSON: {e}: {text!r:.200}") from None
    try:
        result: T = _read(type_, document, "$")
    except RecursionError:
        raise ValidationError(f"the JSON is nested too deeply: {text!r:.200}") from None
    return result


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _read(type_: Any, document: Any, where: str) -> Any:
    """Return *document* as a value of *type_*."""
    type_, _ = unwrapped(type_)
    if is_pydantic(type_):
        return pydantic_value(type_, json.dumps(document), where)
    if is_alias(type_):
        return _read(type_.__value__, document, where)
    if type_ in (Any, object):
        return document
    if type_ in STRINGS:
        text = _checked(str, document, where)
        return _made(lambda: STRINGS[type_][1](text), type_, document, where)
    if type_ in PLAIN:
        return _plain(type_, document, where)
    args, container = get_args(type_), class_of(type_)
    if container is Literal:
        values = {_key(v.value if isinstance(v, enum.Enum) else v): v for v in args}
        return _one_of(values, document, where)
    if container in (Union, types.UnionType):
        return _first_that_fits(args, document, where)
    if container is tuple:
        return _read_tuple(type_, _checked(list, document, where), where)
    if container in ARRAYS or container in SETS:
        item, given = args[0] if args else Any, _checked(list, document, where)
        items = [_read(item, value, f"{where}[{i}]") for i, value in enumerate(given)]
        if container in ARRAYS:
            return items
        made = set if container in (set, MutableSet) else frozenset
        return _made(lambda: made(items), type_, document, where)
    if container in OBJECTS:
        name, item = args or (str, Any)
        given = _checked(dict, document, where)
        return {
            _read(name, key, where): _read(item, value, f"{where}.{key}")
            for key, value in given.items()
        }
    if is_enum(type_):
        return _one_of({_key(member.value): member for member in type_}, document, where)
    fields = fields_of(type_)
    if fields is None:
        raise ValidationError(f"{where}: JSON has no values of {type_!r}")
    return _read_object(type_, fields, _checked(dict, document, where), where)


def _read_object(
    type_: Any, fields: Mapping[str, Field], document: Mapping[str, Any], where: str
) -> Any:
    for name, field in fields.items():
        if field.is_required and name not in document:
            raise ValidationError(f"{where}: {name_of(type_)} needs {name!r}")
    for name in document:
        if name not in fields:
            raise ValidationError(f"{where}: {name_of(type_)} has no {name!r}")
    values = {
        name: _read(fields[name].type, value, f"{where}.{name}") for name, value in document.items()
    }
    # __post_init__ may refuse the values.
    return _made(lambda: class_of(type_)(**values), type_, document, where)


def _read_tuple(type_: Any, items: list[Any], where: str) -> tuple[Any, ...]:
    args = tuple_args(type_)
    if args[1:] == (Ellipsis,):
        args = args[:1] * len(items)
    if len(args) != len(items):
        raise ValidationError(f"{where}: expected {len(args)} items, got {len(items)}")
    return tuple(
        _read(arg, item, f"{where}[{i}]")
        for i, (arg, item) in enumerate(zip(args, items, strict=True))
    )


def _first_that_fits(args: tuple[Any, ...], document: Any, where: str) -> Any:
    errors = []
    is_number = type(document) in (int, float)
    # Of `float | int`, 1 is the int and 1.0 the float.
    for arg in sorted(args, key=lambda arg: is_number and type(document) is not unwrapped(arg)[0]):
        try:
            return _read(arg, document, where)
        except ValidationError as e:
            if arg is not type(None):
                errors.append(e)
    if len(errors) == 1:
        raise errors[0]
    names = " or ".join(map(name_of, args))
    raise ValidationError(f"{where}: expected {names}, got {document!r:.80}")


def _one_of(known: Mapping[Any, Any], document: Any, where: str) -> Any:
    try:
        return known[_key(document)]
    except (KeyError, TypeError):
        values = ", ".join(repr(value) for _, value in known)
        raise ValidationError(f"{where}: expected one of {values}, got {document!r:.80}") from None


def _key(value: Any) -> tuple[bool, Any]:
    """Return a key under which True is not 1."""
    return isinstance(value, bool), value


def _plain(type_: Any, document: Any, where: str) -> Any:
    if type_ is float and type(document) is int:
        return float(str(document))  # inf beyond the largest float, as json has it for 1e999
    if type_ is int and type(document) is float and document.is_integer():
        return int(document)  # a JSON Schema integer may be written 1.0
    if type_ is decimal.Decimal and type(document) in (int, float):
        # The shortest digits that are this float are those that were written, up to 15 of them.
        value = decimal.Decimal(str(document))
        if value.is_finite():
            return value
    return _checked(type(None) if type_ is None else type_, document, where)


def _made(make: Callable[[], Any], type_: Any, document: Any, where: str) -> Any:
    try:
        return make()
    except (ArithmeticError, TypeError, ValueError) as e:
        raise ValidationError(
            f"{where}: {document!r:.80} is not a valid {name_of(type_)}: {e}"
        ) from e


def _checked(type_: Any, document: Any, where: str) -> Any:
    if type(document) is not type_:
        raise ValidationError(f"{where}: expected {name_of(type_)}, got {document!r:.80}")
    return document
