"""Facts about JSON Schemas: references, types, values and whether two schemas overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..schema import allowed_types, json_type
from ..schema.keywords import target

__all__ = ["ALL_TYPES", "IN_PLACE", "NOTES", "InexactError", "Schemas", "different", "joined"]

ALL_TYPES = ("null", "boolean", "number", "string", "array", "object")
#: Keywords that apply schemas to the same value.
IN_PLACE = frozenset(
    [
        "$dynamicRef", "$recursiveRef", "$ref", "allOf", "anyOf", "dependencies",
        "dependentSchemas", "else", "if", "not", "oneOf", "then",
    ]
)  # fmt: skip
#: Keywords that restrict nothing.
NOTES = frozenset(
    [
        "$anchor", "$comment", "$defs", "$id", "$schema", "contentEncoding", "contentMediaType",
        "contentSchema", "default", "definitions", "deprecated", "description", "examples",
        "readOnly", "title", "writeOnly",
    ]
)  # fmt: skip
_MAX_REFERENCES = 32
_MAX_VALUES = 64
_MAX_DEPTH = 40
_MAX_VISITS = 20_000


class InexactError(Exception):
    """A fact is not known, or a schema cannot be written."""


class Schemas:
    """The schemas of one document.

    Args:
        root: The document, which references point into.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._depth = self._n_visits = 0

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Enter one more schema; references may lead in circles, and to ever more schemas.

        Raises:
            InexactError: There were too many.
        """
        self._depth += 1
        self._n_visits += 1
        try:
            if self._depth > _MAX_DEPTH or self._n_visits > _MAX_VISITS:
                raise InexactError
            yield
        finally:
            self._depth -= 1

    def resolved(self, reference: Any) -> Any:
        """Return the schema that a `$ref` points to.

        Raises:
            InexactError: It does not point into the document.
        """
        try:
            return target(self._root, reference)
        except LookupError:
            raise InexactError(f"$ref: {reference}") from None

    def plain(self, schema: Any) -> Any:
        """Return *schema* without annotations, and in place of a mere `$ref` what it points to.

        Raises:
            InexactError: References point nowhere, or in a circle.
        """
        for _ in range(_MAX_REFERENCES):
            if not isinstance(schema, Mapping):
                return schema
            schema = {key: value for key, value in schema.items() if key not in NOTES}
            if schema.keys() != {"$ref"}:
                return schema
            schema = self.resolved(schema["$ref"])
        raise InexactError("$ref")

    def types(self, schema: Any) -> frozenset[str]:
        """Return the types that values may have; see `allowed_types`."""
        return allowed_types(schema, self._root)

    def values(self, schema: Any) -> list[Any]:
        """Return all values that fit.

        Raises:
            InexactError: There are many, or they are not easy to list.
        """
        with self.visit():
            return self._values(self.plain(schema))

    def _values(self, schema: Any) -> list[Any]:
        if schema is False:
            return []
        keys = schema.keys() if isinstance(schema, Mapping) else {"true"}
        found: list[Any]
        if keys and keys <= {"const", "enum", "type"} and keys != {"type"}:
            given = [schema["const"]] if "const" in schema else _listed(schema["enum"])
            allowed = _listed(schema["enum"]) if "enum" in schema else given
            types = self.types({"type": schema["type"]} if "type" in schema else {})
            known = {different(value) for value in allowed}
            found = [
                value for value in given if different(value) in known and json_type(value) in types
            ]
        elif keys == {"anyOf"}:
            found = [value for option in schema["anyOf"] for value in self.values(option)]
        elif keys == {"type"} and set(_listed(schema["type"])) <= {"null", "boolean"}:
            listed: dict[str, list[Any]] = {"null": [None], "boolean": [False, True]}
            found = [value for name in _listed(schema["type"]) for value in listed[name]]
        elif keys == {"type", "minimum", "maximum"} and schema["type"] == "integer":
            low, high = schema["minimum"], schema["maximum"]
            if not isinstance(low, int) or not isinstance(high, int) or high - low > _MAX_VALUES:
                raise InexactError
            found = list(range(low, high + 1))
        else:
            raise InexactError
        found = list({different(value): value for value in found}.values())
        if len(found) > _MAX_VALUES:
            raise InexactError
        return found

    def are_disjoint(self, one: Any, other: Any) -> bool:
        """Tell whether no value fits both schemas, as far as that is easy to see.

        Raises:
            InexactError: The schemas contain themselves.
        """
        if not self.types(one) & self.types(other):
            return True
        try:
            one, other = self.plain(one), self.plain(other)
            values = [{different(value) for value in self.values(s)} for s in (one, other)]
            return values[0].isdisjoint(values[1])
        except InexactError:
            pass
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            return False
        if not self.types(one) == self.types(other) == {"object"}:
            return False
        properties = [s.get("properties", {}) for s in (one, other)]
        names = {*_listed(one.get("required", [])), *_listed(other.get("required", []))}
        with self.visit():
            return any(
                self.are_disjoint(*(p.get(name, True) for p in properties)) for name in names
            )


def different(value: Any) -> str:
    """Return a text that differs for different JSON values: 1 is 1.0 and not True."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Mapping):
        return f"{{{sorted((key, different(item)) for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(different, value))}]"
    return repr(value)


def joined(options: Iterable[Any]) -> Any:
    """Return the schema of the values that fit at least one of *options*."""
    kept = [option for option in options if option is not False]
    if True in kept or {} in kept:
        return True
    return {"anyOf": kept} if len(kept) > 1 else kept[0] if kept else False


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
