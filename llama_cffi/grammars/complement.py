"""Complements of JSON Schemas in the keywords that llguidance has, where that is exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..schema.keywords import FORMATS
from .patterns import other_than
from .schemas import ALL_TYPES, InexactError, Schemas, joined

__all__ = ["complement"]

Schema = dict[str, Any]

# Keyword -> the type that it restricts.
_RESTRICTS = {
    **dict.fromkeys(("format", "maxLength", "minLength", "pattern"), "string"),
    **dict.fromkeys(
        ("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"), "number"
    ),
    **dict.fromkeys(
        (
            "additionalItems", "contains", "items", "maxContains", "maxItems", "minContains",
            "minItems", "prefixItems", "unevaluatedItems", "uniqueItems",
        ),
        "array",
    ),
    **dict.fromkeys(
        (
            "additionalProperties", "dependencies", "dependentRequired", "dependentSchemas",
            "maxProperties", "minProperties", "patternProperties", "properties", "propertyNames",
            "required", "unevaluatedProperties",
        ),
        "object",
    ),
}  # fmt: skip
_COMBINES = {"$dynamicRef", "$recursiveRef", "else", "if", "oneOf", "then"}
# A bound -> the keyword of the values beyond it, and by how much it differs.
_BEYOND = {
    "minimum": ("exclusiveMaximum", 0),
    "maximum": ("exclusiveMinimum", 0),
    "exclusiveMinimum": ("maximum", 0),
    "exclusiveMaximum": ("minimum", 0),
    "minLength": ("maxLength", -1),
    "maxLength": ("minLength", 1),
    "minItems": ("maxItems", -1),
    "maxItems": ("minItems", 1),
    "minProperties": ("maxProperties", -1),
    "maxProperties": ("minProperties", 1),
}
_EXACT = 2**53  # integers up to it are exact in llguidance, which computes with floats


def complement(schemas: Schemas, schema: Any, base: Any) -> Any:
    """Return the schema of the values that do not fit *schema*.

    Args:
        schemas: The document that *schema* is part of.
        schema: A schema.
        base: What the values fit in any case; the result is right for these only.

    Raises:
        InexactError: The keywords that llguidance has cannot express it; the message says why not.
    """
    schema = schemas.plain(schema)
    if not isinstance(schema, Mapping):
        return schema is not True
    types = schemas.types(base)
    options: list[Any] = []
    with schemas.visit():
        for keyword, value in schema.items():
            restricted = _RESTRICTS.get(keyword)
            is_number = restricted == "number" and "integer" in types
            if restricted is None or restricted in types or is_number:
                options += _violating(schemas, keyword, value, base, types)
    return joined(options)


def _violating(
    schemas: Schemas, keyword: str, value: Any, base: Any, types: frozenset[str]
) -> Iterator[Any]:
    """Yield schemas whose values together are those that violate a keyword."""
    if keyword == "type":
        yield _other_types(value, types)
    elif keyword in ("const", "enum"):
        yield from _other_values([value] if keyword == "const" else value, types)
    elif keyword == "not":
        yield value
    elif keyword == "allOf":
        for inner in value:
            yield complement(schemas, inner, base)
    elif keyword == "anyOf":
        yield {"allOf": [complement(schemas, inner, base) for inner in value]}
    elif keyword == "$ref":
        yield complement(schemas, {"$ref": value}, base)
    elif keyword in _BEYOND:
        beyond, more = _BEYOND[keyword]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InexactError(keyword)
        if value + more >= 0 or not more:
            yield {"type": _RESTRICTS[keyword], beyond: value + more}
    elif keyword == "required":
        for name in value:
            yield {"type": "object", "properties": {name: False}}
    elif keyword == "properties":
        known = base.get("properties", {}) if isinstance(base, Mapping) else {}
        for name, inner in value.items():
            other = complement(schemas, inner, known.get(name, True))
            if other is not False:
                yield {"type": "object", "properties": {name: other}, "required": [name]}
    elif keyword == "format" and value not in FORMATS:
        return
    elif keyword in _COMBINES or (keyword in _RESTRICTS and value is not True and value != {}):
        raise InexactError(keyword)


def _other_types(given: Any, types: frozenset[str]) -> Any:
    given = set(given) if isinstance(given, list) else {given}
    if "integer" in given and "number" not in given:
        if "number" in types:
            raise InexactError("type: integer")
        given |= {"number"}
    left = [name for name in ALL_TYPES if name not in given]
    return {"type": left} if left else False


def _other_values(values: list[Any], types: frozenset[str]) -> Iterator[Any]:
    """Yield schemas of the values of *types* that are not among *values*."""
    if any(isinstance(value, (list, Mapping)) for value in values) and types & {"array", "object"}:
        raise InexactError("enum of arrays or objects")
    if "string" in types:
        texts = [value for value in values if isinstance(value, str)]
        yield {"type": "string", **({"pattern": other_than(texts)} if texts else {})}
    if types & {"number", "integer"}:
        numbers = sorted(
            {v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)}
        )
        if any(abs(number) > _EXACT for number in numbers):
            raise InexactError("enum of large numbers")
        low: Schema = {}
        for number in numbers:
            yield {"type": "number", **low, "exclusiveMaximum": number}
            low = {"exclusiveMinimum": number}
        yield {"type": "number", **low}
    for flag in (False, True):
        if not any(value is flag for value in values):
            yield {"type": "boolean", "const": flag}
    if None not in values:
        yield {"type": "null"}
    yield {"type": ["array", "object"]}
