"""Changes to JSON Schemas that keep to the places where a schema may stand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

__all__ = ["FORMATS", "Schema", "close_objects", "inlined", "mapped", "renamed", "target"]

Schema = dict[str, Any]

#: Enforced formats of strings. Any other is an annotation (JSON Schema 2020-12, section 7.2.3).
FORMATS = frozenset(
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"]
)
_ONE = {
    "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
_LISTS = {"allOf", "anyOf", "items", "oneOf", "prefixItems"}
_MAPS = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
_NOTES = {"default", "deprecated", "description", "examples", "title"}
_PREFIX = "#/$defs/"
_LONGEST_INLINE = 4096  # characters: bounds the size where classes nest many times


def mapped(function: Callable[[Schema], Schema], schema: Mapping[str, Any]) -> Schema:
    """Return a copy of *schema*, with *function* applied to the schemas directly within it."""

    def one(value: Any) -> Any:
        return function(value) if isinstance(value, dict) else value

    result: Schema = {}
    for key, value in schema.items():
        if key in _LISTS and isinstance(value, list):
            value = [one(item) for item in value]
        elif key in _ONE:
            value = one(value)
        elif key in _MAPS and isinstance(value, dict):
            value = {name: one(item) for name, item in value.items()}
        result[key] = value
    return result


def renamed(schema: Schema, names: Mapping[str, str]) -> Schema:
    """Return *schema* with other names for the definitions that it refers to."""
    result = mapped(lambda inner: renamed(inner, names), schema)
    name = names.get(_target(schema) or "")
    return {**result, "$ref": _PREFIX + name} if name else result


def inlined(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """Return *schema* with definitions in place of `$ref`.

    Chat templates and the formats of tool calls read `type` and `enum`, and follow no references.
    Definitions that contain themselves, or are long, stay in `$defs`.
    """
    inliner = _Inliner(definitions)
    result = inliner.schema(schema)
    return {**result, "$defs": inliner.kept} if inliner.kept else result


class _Inliner:
    """Attributes: kept: The definitions that references still point to."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self.kept: dict[str, Schema] = {}
        self._definitions = definitions
        self._inline: dict[str, Schema | None] = {}  # None: a reference has to stay
        self._recursive: set[str] = set()

    def schema(self, schema: Schema) -> Schema:
        name = _target(schema)
        if name is not None and schema.keys() - {"$ref"} <= _NOTES:
            definition = self._definition(name)
            if definition is not None:
                notes = {key: value for key, value in schema.items() if key != "$ref"}
                return {**copy.deepcopy(definition), **notes}
        elif name is not None:
            self._keep(name)
        return mapped(self.schema, schema)

    def _definition(self, name: str) -> Schema | None:
        if name not in self._inline:
            self._inline[name] = None  # as long as its own parts are read
            definition = self.schema(self._definitions[name])
            if name in self._recursive or len(json.dumps(definition)) > _LONGEST_INLINE:
                self.kept[name] = definition
            else:
                self._inline[name] = definition
        elif self._inline[name] is None:
            self._recursive.add(name)
        return self._inline[name]

    def _keep(self, name: str) -> None:
        definition = self._definition(name)
        if definition is not None:
            self.kept[name] = definition


def _target(schema: Mapping[str, Any]) -> str | None:
    """Return the name of the definition that a schema refers to."""
    reference = schema.get("$ref")
    is_ours = isinstance(reference, str) and reference.startswith(_PREFIX)
    return str(reference).removeprefix(_PREFIX) if is_ours else None


def close_objects(schema: Any) -> Any:
    """Return *schema* with all objects that declare properties closed to other names.

    An object stays open where the schema says something about other names
    (`additionalProperties`, `unevaluatedProperties`), or has no `properties`, as for
    `dict[str, int]`. Where several schemas apply to one object, as in `allOf`, it may have the
    names that any of them has.
    """
    try:
        return _Closer(schema).document() if isinstance(schema, dict) else schema
    except RecursionError:  # nested so deeply that it cannot be enforced, either
        return schema


_SAME_OBJECT = {"$ref", "allOf", "anyOf", "dependentSchemas", "else", "if", "oneOf", "then"}
_ABOUT_OTHERS = {"additionalProperties", "unevaluatedProperties"}
_TESTS = {"contains", "if", "not"}  # schemas that values need not fit


class _Closer:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._names: dict[tuple[str, str], str] = {}
        self._definitions: Schema = {}

    def document(self) -> Schema:
        result = self._value(self._root)
        own = result.get("$defs", {})
        if not self._definitions or not isinstance(own, dict):
            return result
        return {**result, "$defs": {**own, **self._definitions}}

    def _value(self, schema: Schema) -> Schema:
        """Close the schema of one value and of the values within it."""
        combining = _SAME_OBJECT & schema.keys()
        is_one_of_several = combining <= {"anyOf", "oneOf"} or schema.keys() - _NOTES == {"$ref"}
        try:
            if not combining:
                return _with_names(self._mapped(self._value, schema), [schema])
            if (
                is_one_of_several
                and len(combining) == 1
                and not {"properties", "required"} & schema.keys()
            ):
                return self._mapped(self._value, schema)
            return _with_names(self._part(schema), self._parts(schema, set()))
        except LookupError:  # a reference to another document
            return mapped(self._value, schema)

    def _part(self, schema: Schema) -> Schema:
        """Close the values within one of several schemas of an object."""
        result = self._mapped(
            self._value, {k: v for k, v in schema.items() if k not in _SAME_OBJECT}
        )
        for part in ({k: v} for k, v in schema.items() if k in _SAME_OBJECT):
            result |= self._mapped(self._part, part)
        if "$ref" in schema:
            result["$ref"] = self._copied(schema["$ref"], self._part)
        return result

    def _unchanged(self, schema: Schema) -> Schema:
        """Return *schema*, with references to definitions that are not closed."""
        result = mapped(self._unchanged, schema)
        if "$ref" in schema:
            result["$ref"] = self._copied(schema["$ref"], self._unchanged)
        return result

    def _mapped(self, function: Callable[[Schema], Schema], schema: Schema) -> Schema:
        return {
            key: mapped(self._unchanged if key in _TESTS else function, {key: value})[key]
            for key, value in schema.items()
        }

    def _copied(self, reference: str, function: Callable[[Schema], Schema]) -> str:
        """Return a reference to another version of a definition."""
        found = self._target(reference)
        key = (reference, function.__name__)
        if key not in self._names:
            name = f"open-{len(self._names)}"
            self._names[key] = _PREFIX + name
            self._definitions[name] = function(found)
        return self._names[key]

    def _parts(self, schema: Schema, followed: set[str]) -> list[Schema]:
        """Return *schema* and the schemas that it applies to the same object."""
        parts = [schema]

        def add(part: Schema) -> Schema:
            parts.extend(self._parts(part, followed))
            return part

        mapped(add, {key: value for key, value in schema.items() if key in _SAME_OBJECT})
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in followed:
            found = self._target(reference)
            followed.add(reference)
            add(found)
        return parts

    def _target(self, reference: Any) -> Schema:
        found = target(self._root, reference)
        if not isinstance(found, dict):
            raise LookupError(reference)
        return {key: value for key, value in found.items() if key not in ("$defs", "definitions")}


def target(root: Any, reference: Any) -> Any:
    """Return what a `$ref` within the document *root* points to.

    Raises:
        LookupError: It is not a JSON pointer (RFC 6901), or points to nothing.
    """
    if not isinstance(reference, str) or not f"{reference}/".startswith("#/"):
        raise LookupError(reference)
    for name in unquote(reference).split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(root, list) and name.isdecimal():
            root = root[int(name)]
        elif isinstance(root, Mapping):
            root = root[name]
        else:
            raise LookupError(reference)
    return root


def _with_names(schema: Schema, parts: list[Schema]) -> Schema:
    """Close *schema* to names that none of *parts* has, unless one speaks of other names."""
    is_said = any(_ABOUT_OTHERS & part.keys() for part in parts)
    if is_said or not any("properties" in part for part in parts):
        return schema
    # What is not a schema is left for the compiler to refuse.
    if not isinstance(schema.get("properties", {}), dict):
        return schema
    properties = dict(schema.get("properties", {}))
    for part in parts:
        named, required = part.get("properties", {}), part.get("required", [])
        names = [*(named if isinstance(named, dict) else ())]
        names += required if isinstance(required, list) else ()
        for name in names:
            if isinstance(name, str):
                properties.setdefault(name, True)
    return {**schema, "properties": properties, "additionalProperties": False}
