"""Which JSON types a JSON Schema allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

__all__ = ["ANY_TYPE", "allowed_types", "json_type", "resolved", "types_within"]

#: All JSON types; a number without a fraction is an integer, too.
ANY_TYPE = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_MAX_DEPTH = 100  # levels of references and combined schemas


def allowed_types(schema: object, root: Mapping[str, Any] | None = None) -> frozenset[str]:
    """Return the JSON types of the values that *schema* may allow.

    ``type``, ``enum``, ``const``, ``allOf``, ``anyOf``, ``oneOf``, ``$ref`` and OpenAPI's
    ``nullable`` are read. Whatever else restricts values (and any ``type`` that JSON Schema does
    not know) is ignored, so that no type is missing.

    Args:
        schema: A JSON Schema.
        root: The schema that contains it, for references such as ``#/$defs/Name``; None: itself.

    Returns:
        Some of `ANY_TYPE`; ``integer`` is there whenever ``number`` is.
    """
    if root is None:
        root = schema if isinstance(schema, Mapping) else {}
    return _Reader(root).types(schema)


def types_within(schema: object, path: Sequence[str | None]) -> frozenset[str]:
    """Return the JSON types of what is somewhere within the values that *schema* may allow.

    Args:
        schema: A JSON Schema.
        path: The way to it: the name of a member, or None for an item, at each level.
    """
    reader = _Reader(schema if isinstance(schema, Mapping) else {})
    found: list[object] = [schema]
    for name in path:
        if not found:
            break
        inner = (inner for outer in found for inner in reader.within(outer, name))
        found = [*{id(schema): schema for schema in inner}.values()]  # each once
    return frozenset().union(*map(reader.types, found)) if found else ANY_TYPE


def json_type(value: object) -> str:
    """Return the JSON type of a value that `json.loads` returned; ``integer`` also for 140.0."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, (int, float)):
        return "integer" if value == value // 1 else "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def resolved(reference: str, root: Mapping[str, Any]) -> object:
    """Return the schema that a ``$ref`` within *root* points to; True if there is none."""
    if not reference.startswith("#"):
        return True
    found: Any = root
    for part in filter(None, unquote(reference[1:]).split("/")):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, Mapping) and key in found:
            found = found[key]
        else:
            return True
    return found


class _Reader:
    """Reads schemas within *root*, each reference once."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._referenced: dict[str, frozenset[str]] = {}
        self._depth = 0

    def types(self, schema: object) -> frozenset[str]:
        if not isinstance(schema, Mapping) or self._depth == _MAX_DEPTH:
            return ANY_TYPE if schema is not False else frozenset()
        self._depth += 1
        types = _named(schema["type"]) if "type" in schema else ANY_TYPE
        if schema.get("nullable") is True:
            types |= {"null"}
        if "const" in schema:
            types &= _types_of([schema["const"]])
        if isinstance(schema.get("enum"), list):
            types &= _types_of(schema["enum"])
        if "$ref" in schema:
            types &= self._reference(str(schema["$ref"]))
        for inner in _list(schema, "allOf"):
            types &= self.types(inner)
        for key in ("anyOf", "oneOf"):
            if options := _list(schema, key):
                types &= frozenset().union(*map(self.types, options))
        self._depth -= 1
        return types

    def within(self, schema: object, name: str | None) -> Iterator[object]:
        """Yield the schemas of a member of *schema*, or of its items."""
        yield from self._within(schema, name, set())

    def _within(self, schema: object, name: str | None, seen: set[str]) -> Iterator[object]:
        if not isinstance(schema, Mapping):
            return
        properties = schema.get("properties")
        if name is None:
            yield from [schema["items"]] if "items" in schema else ()
            yield from _list(schema, "prefixItems")
        elif isinstance(properties, Mapping) and name in properties:
            yield properties[name]
        elif "additionalProperties" in schema:
            yield schema["additionalProperties"]
        reference = str(schema.get("$ref", ""))
        if reference and reference not in seen:
            seen.add(reference)
            yield from self._within(resolved(reference, self._root), name, seen)
        for key in ("allOf", "anyOf", "oneOf"):
            for inner in _list(schema, key):
                yield from self._within(inner, name, seen)

    def _reference(self, reference: str) -> frozenset[str]:
        if reference not in self._referenced:
            self._referenced[reference] = frozenset()  # what a cycle adds
            self._referenced[reference] = self.types(resolved(reference, self._root))
        return self._referenced[reference]


def _named(names: object) -> frozenset[str]:
    types = frozenset(map(str, names if isinstance(names, list) else [names]))
    if not types <= ANY_TYPE:
        return ANY_TYPE
    return types | {"integer"} if "number" in types else types


def _types_of(values: list[Any]) -> frozenset[str]:
    types = frozenset(map(json_type, values))
    return types | {"number"} if "integer" in types else types


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []
