"""Changes to JSON Schemas that keep to the places where a schema may stand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Schema", "inlined", "mapped", "renamed", "without_unique_items"]

Schema = dict[str, Any]

_ONE = {"additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"}
_LISTS = {"allOf", "anyOf", "oneOf", "prefixItems"}
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
        if key in _ONE:
            value = one(value)
        elif key in _LISTS and isinstance(value, list):
            value = [one(item) for item in value]
        elif key in _MAPS and isinstance(value, dict):
            value = {name: one(item) for name, item in value.items()}
        result[key] = value
    return result


def without_unique_items(schema: Mapping[str, Any]) -> Schema:
    """Return *schema* without `uniqueItems`, which a grammar cannot enforce.

    For a value that is read as a set, duplicates are harmless.
    """
    kept = {key: value for key, value in schema.items() if key != "uniqueItems"}
    return mapped(without_unique_items, kept)


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
