"""JSON schemas of Python type hints."""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import ValidationError

__all__ = ["Schemas"]

Schema = dict[str, Any]

_PLAIN: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}
_ARRAYS = (list, set, frozenset, Sequence, Iterable)


class Schemas:
    """Writes the schemas of one function's parameters.

    Args:
        function: Its name, for messages.

    Attributes:
        definitions: What ``$ref`` points to: classes that contain themselves, pydantic's own.
    """

    def __init__(self, function: str) -> None:
        self.definitions: dict[str, Schema] = {}
        self._function = function
        self._open: list[type] = []

    def of(self, hint: Any, where: str) -> Schema:
        """Return the schema of a type hint.

        Args:
            hint: str, int, float, bool, None, Any, Literal, Optional, Union, list, tuple, set,
                dict, Enum, TypedDict, dataclass, pydantic model, or Annotated with a description.
            where: The parameter, for messages.

        Raises:
            ValidationError: JSON Schema has no word for it.
        """
        if hint is Any:
            return {}
        if hint is None or (isinstance(hint, type) and hint in _PLAIN):
            return {"type": _PLAIN[type(None) if hint is None else hint]}
        origin, args = get_origin(hint), get_args(hint)
        if origin is Annotated:
            texts = [note for note in args[1:] if isinstance(note, str)]
            schema = self.of(args[0], where)
            return {**schema, "description": texts[0]} if texts else schema
        if origin is Literal:
            return _choices(list(args))
        if origin in (Union, types.UnionType):
            return _any_of([self.of(arg, where) for arg in args])
        container = origin or hint
        if container is tuple:
            return self._tuple(args, where)
        if container in _ARRAYS:
            schema = {"type": "array", **({"items": self.of(args[0], where)} if args else {})}
            return {**schema, "uniqueItems": True} if container in (set, frozenset) else schema
        if container in (dict, Mapping):
            return self._dict(args, where)
        if isinstance(hint, type):
            return self._class(hint, where)
        raise self._refused(hint, where)

    def _refused(self, hint: Any, where: str) -> ValidationError:
        return ValidationError(
            f"{self._function}() gives {where!r} the type {hint!r}, which JSON lacks; use "
            "str, int, float, bool, list, dict, Literal, Enum, a dataclass or a TypedDict"
        )

    def _tuple(self, args: tuple[Any, ...], where: str) -> Schema:
        if not args:
            return {"type": "array"}
        if len(args) == 2 and args[1] is Ellipsis:
            return {"type": "array", "items": self.of(args[0], where)}
        items = [self.of(arg, where) for arg in args]
        return {
            "type": "array",
            "prefixItems": items,
            "items": False,
            "minItems": len(items),
            "maxItems": len(items),
        }

    def _dict(self, args: tuple[Any, ...], where: str) -> Schema:
        if not args:
            return {"type": "object"}
        if args[0] is not str:
            raise ValidationError(
                f"{self._function}() gives {where!r} a dict with keys of type {args[0]!r}; "
                "the keys of a JSON object are str"
            )
        return {"type": "object", "additionalProperties": self.of(args[1], where)}

    def _class(self, hint: type, where: str) -> Schema:
        if issubclass(hint, enum.Enum):
            return _choices([member.value for member in hint])
        if hasattr(hint, "model_json_schema"):
            schema: Schema = hint.model_json_schema()
            self.definitions.update(schema.pop("$defs", {}))
            return schema
        if dataclasses.is_dataclass(hint):
            fields = [field for field in dataclasses.fields(hint) if field.init]
            required = [
                field.name
                for field in fields
                if field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            ]
            return self._object(hint, [field.name for field in fields], required, where)
        if issubclass(hint, dict) and hasattr(hint, "__required_keys__"):
            names = list(hint.__annotations__)
            required = [name for name in names if name in hint.__required_keys__]
            return self._object(hint, names, required, where)
        raise self._refused(hint, where)

    def _object(self, hint: type, names: list[str], required: list[str], where: str) -> Schema:
        reference = {"$ref": f"#/$defs/{hint.__name__}"}
        if hint in self._open:
            self.definitions[hint.__name__] = {}
            return reference
        self._open.append(hint)
        try:
            hints = get_type_hints(hint, include_extras=True)
        except (NameError, TypeError) as error:
            raise ValidationError(
                f"the type hints of {hint.__name__}, of which {where!r} of {self._function}() is, "
                f"cannot be read: {error}"
            ) from None
        properties = {name: self.of(_bare(hints[name]), f"{where}.{name}") for name in names}
        self._open.pop()
        schema = {"type": "object", "properties": properties, "required": required}
        if not required:
            del schema["required"]
        if hint.__name__ not in self.definitions:
            return schema
        self.definitions[hint.__name__] = schema
        return reference


def _bare(hint: Any) -> Any:
    """Take the Required[] or NotRequired[] of a TypedDict off; Python 3.10 has neither."""
    name = str(get_origin(hint)).rpartition(".")[2]
    return get_args(hint)[0] if name in ("Required", "NotRequired") else hint


def _choices(values: list[Any]) -> Schema:
    kinds = list(dict.fromkeys(_PLAIN.get(type(value)) for value in values))
    if None in kinds:
        raise ValidationError(f"the choices {values!r} hold one that is no str, number or bool")
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _any_of(options: list[Schema]) -> Schema:
    """Join the schemas of a union, in one ``type`` where they say nothing else."""
    if {} in options:
        return {}
    if all(list(option) == ["type"] for option in options):
        return {"type": [option["type"] for option in options]}
    return {"anyOf": options}
