"""Which JSON types a schema allows, and what is known about the inside of its values."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from llama_cffi.schema import ANY_TYPE, allowed_types, json_type, types_within

STRING, NULL, INTEGER = {"type": "string"}, {"type": "null"}, {"type": "integer"}
TEXT_OR_NULL = {"string", "null"}
CYCLE = {"anyOf": [STRING, {"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}]}

CASES: list[tuple[Any, set[str]]] = [
    (STRING, {"string"}),
    ({"type": ["string", "null"]}, TEXT_OR_NULL),
    ({"type": "number"}, {"number", "integer"}),
    (INTEGER, {"integer"}),
    ({"anyOf": [STRING, NULL], "default": None}, TEXT_OR_NULL),
    ({"oneOf": [NULL, STRING]}, TEXT_OR_NULL),
    ({"allOf": [STRING]}, {"string"}),
    ({"allOf": [{"type": ["string", "integer"]}, {"type": ["null", "string"]}]}, {"string"}),
    ({"const": "90210"}, {"string"}),
    ({"const": None}, {"null"}),
    ({"enum": ["90210", "true", None]}, TEXT_OR_NULL),
    ({"enum": ["a", 1]}, {"string", "integer", "number"}),
    ({"type": "string", "enum": ["a", 1]}, {"string"}),
    ({"type": "string", "nullable": True}, TEXT_OR_NULL),
    ({"anyOf": [{"enum": ["a"]}, {"const": "b"}, NULL]}, TEXT_OR_NULL),
    ({"anyOf": [{"anyOf": [STRING, INTEGER]}, NULL], "type": ["string", "null"]}, TEXT_OR_NULL),
    ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": STRING}}, {"string"}),
    ({"$ref": "#/definitions/a~1b%20c", "definitions": {"a/b c": STRING}}, {"string"}),
    ({"$ref": "#/anyOf/1", "anyOf": [INTEGER, STRING]}, {"string"}),
    ({"$ref": "#/$defs/A", "$defs": {"A": CYCLE}}, {"string"}),
    ({"minLength": 3}, set(ANY_TYPE)),
    ({"$ref": "#/$defs/none"}, set(ANY_TYPE)),
    ({"$ref": "https://example.org/schema"}, set(ANY_TYPE)),
    ({"type": "dict"}, set(ANY_TYPE)),
    ({}, set(ANY_TYPE)),
    (True, set(ANY_TYPE)),
    (False, set()),
]


def case_id(value: object) -> str:
    return str(sorted(value) if isinstance(value, set) else value)[:50]


@pytest.mark.parametrize(("schema", "types"), CASES, ids=case_id)
def test_allowed_types(schema: Any, types: set[str]) -> None:
    assert allowed_types(schema) == types


# What jsonschema does not know, or does not resolve.
_REFUSED = ("example.org", "none", "dict", "nullable", "#/$defs/A")


@pytest.mark.parametrize(
    ("schema", "types"),
    [(schema, types) for schema, types in CASES if not any(n in str(schema) for n in _REFUSED)],
    ids=case_id,
)
def test_no_value_of_another_type_is_valid(schema: Any, types: set[str]) -> None:
    valid = jsonschema.Draft202012Validator(schema).is_valid
    for value in (None, True, 3, 1.5, "90210", "", "abc", [], {}):
        assert json_type(value) in types or not valid(value)


def test_references_into_the_schema_around_it() -> None:
    root = {"$defs": {"Zip": {"type": ["string", "null"]}}, "properties": {"a": STRING}}
    assert allowed_types({"$ref": "#/$defs/Zip"}, root) == TEXT_OR_NULL
    assert allowed_types({"$ref": "#/properties/a"}, root) == {"string"}


def test_deep_and_branching_schemas_are_read() -> None:
    deep: Any = STRING
    for _ in range(300):
        deep = {"allOf": [deep]}
    assert "string" in allowed_types(deep)
    definitions = {
        str(i): {"anyOf": [{"$ref": f"#/$defs/{i + 1}"}, {"$ref": f"#/$defs/{i + 1}"}]}
        for i in range(40)
    }
    schema = {"$ref": "#/$defs/0", "$defs": {**definitions, "40": STRING}}
    assert allowed_types(schema) == {"string"}


@pytest.mark.parametrize(
    ("path", "types"),
    [
        ([], {"object"}),
        (["n"], {"integer"}),
        (["list", None], {"integer", "null"}),
        (["tree", "leaves", None, "leaves"], {"array"}),
        (["tree", "weight"], {"number", "integer"}),
        (["other"], {"string"}),
        (["n", "deeper"], set(ANY_TYPE)),
        (["list", "name"], set(ANY_TYPE)),
    ],
)
def test_types_within(path: list[str | None], types: set[str]) -> None:
    tree = {
        "type": "object",
        "properties": {
            "leaves": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
            "weight": {"type": "number"},
        },
    }
    schema = {
        "type": "object",
        "properties": {
            "n": INTEGER,
            "list": {"anyOf": [{"type": "array", "items": {"type": ["integer", "null"]}}, NULL]},
            "tree": {"$ref": "#/$defs/Tree"},
        },
        "additionalProperties": STRING,
        "$defs": {"Tree": tree},
    }
    assert types_within(schema, path) == types


@pytest.mark.parametrize(
    ("value", "name"),
    [(None, "null"), (True, "boolean"), (3, "integer"), (140.0, "integer"), (1.5, "number"),
     (1e400, "number"), ("", "string"), ([], "array"), ({}, "object")],
)  # fmt: skip
def test_json_type(value: object, name: str) -> None:
    assert json_type(value) == name
