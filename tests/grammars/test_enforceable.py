"""Schemas that llguidance does not enforce by itself, or not as JSON Schema means them."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from support.random_schemas import Taker, random_document, random_schema, wrong

from llama_cffi import GrammarError
from llama_cffi.grammars import LlamaGrammar

NAMES = {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "additionalProperties": False}


def test_random_schemas_take_what_jsonschema_takes() -> None:
    rng = random.Random(0)
    for _ in range(500):
        schema = random_schema(rng)
        documents = [random_document(rng) for _ in range(10)]
        assert wrong(schema, documents) == [], json.dumps(schema)


def test_random_ranges_of_numbers_are_exact() -> None:
    rng = random.Random(0)
    for _ in range(400):
        low, high = sorted(round(rng.uniform(-9, 9), rng.choice([0, 0, 1, 2])) for _ in range(2))
        high = round(rng.choice([high, low + 0.5, low + 1, low + 0.1]), 3)
        schema: dict[str, Any] = {"type": rng.choice(["integer", "number"])}
        schema |= rng.choice([{"minimum": low}, {"exclusiveMinimum": low}, {}])
        schema |= rng.choice([{"maximum": high}, {"exclusiveMaximum": high}, {}])
        near = [bound + d for bound in (low, high) for d in (0, 0.1, -0.1, 0.01, -0.01, 1, -1)]
        documents: list[Any] = [round(x, 3) for x in (*near, 0.5 * (low + high))]
        documents = [int(x) if x.is_integer() else x for x in documents]
        assert wrong(schema, documents) == [], schema


@pytest.mark.parametrize("step", [0.01, 0.05, 0.1, 0.125, 0.25, 0.5, 0.75, 1.5, 0.375, 3])
def test_multiples_may_be_written_without_their_last_zeros(step: float) -> None:
    taker = Taker(LlamaGrammar.from_json_schema({"type": "number", "multipleOf": step}))
    for n in range(0, 8000, 25):
        value = Decimal(n) / 1000
        text = f"{value.normalize():f}"
        assert taker.takes_text(text) == (value % Decimal(str(step)) == 0), text
        assert taker.takes_text(f"-{text}") == (value % Decimal(str(step)) == 0), text


@pytest.mark.parametrize(
    ("schema", "fits", "others"),
    [
        # not
        ({"not": {"type": "null"}}, [1, "", [], {}], [None]),
        ({"type": ["string", "null"], "not": {"enum": ["", None]}}, ["a"], ["", None]),
        ({"type": "integer", "not": {"const": 5}}, [4, 6, -5, 50], [5]),
        ({"type": "number", "not": {"enum": [0, 1.5]}}, [-0.5, 1, 1.51, 2], [0, 1.5]),
        ({"type": "string", "not": {"enum": ["a", 'b"']}}, ["", "b", 'b""', "aa"], ["a", 'b"']),
        ({**NAMES, "not": {"required": ["a", "b"]}}, [{}, {"a": 1}, {"c": 1}], [{"a": 1, "b": 1}]),
        ({"type": "integer", "not": {"minimum": 3}}, [2, -9], [3, 4]),
        ({"type": "integer", "not": {"type": "integer", "maximum": 3}}, [4], [3]),
        (
            {**NAMES, "not": {"properties": {"a": {"const": 1}}, "required": ["a"]}},
            [{}, {"a": 2}, {"b": 1}],
            [{"a": 1}, {"a": 1, "b": 1}],
        ),
        ({"type": "array", "items": {"not": {"not": {"const": 1}}}}, [[], [1, 1]], [[2]]),
        ({"type": "array", "maxItems": 3, "not": {"maxItems": 1}}, [[1, 2]], [[], [1]]),
        (
            {"$defs": {"n": {"type": "null", "title": "N"}}, "not": {"$ref": "#/$defs/n"}},
            [1],
            [None],
        ),
        # if
        (
            {
                **NAMES,
                "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
                "then": {"required": ["b"]},
                "else": {"required": ["c"]},
            },
            [{"a": 1, "b": 0}, {"a": 2, "c": 0}, {"c": 0}],
            [{"a": 1}, {"a": 1, "c": 0}, {"a": 2, "b": 0}, {}],
        ),
        ({"if": {"type": "string"}, "then": {"maxLength": 1}}, ["a", 5], ["ab"]),
        ({"if": {"type": "string"}, "else": {"const": 5}}, ["ab", 5], [6]),
        ({"then": {"const": 1}, "type": "integer"}, [2], ["a"]),
        # dependencies, names
        (
            {**NAMES, "dependentRequired": {"a": ["b"]}},
            [{}, {"b": 1}, {"a": 1, "b": 1}],
            [{"a": 1}],
        ),
        (
            {**NAMES, "dependentSchemas": {"a": {"properties": {"b": {"const": 2}}}}},
            [{"b": 1}, {"a": 1}, {"a": 1, "b": 2}],
            [{"a": 1, "b": 1}],
        ),
        (
            {"type": "object", "propertyNames": {"enum": ["x", "y"]}},
            [{}, {"x": 1, "y": None}],
            [{"z": 1}],
        ),
        (
            {"type": "object", "propertyNames": {"pattern": '^[^"]{2}$', "type": "string"}},
            [{"ab": 1}, {}],
            [{"a": 1}, {'a"': 1}],
        ),
        (
            {"type": "object", "propertyNames": {"minLength": 1, "maxLength": 2}},
            [{"😀": 1}],
            [{"": 1}],
        ),
        ({"type": "object", "propertyNames": False}, [{}], [{"a": 1}]),
        ({**NAMES, "propertyNames": {"const": "b"}}, [{"b": 1}], [{"a": 1}]),
        ({"type": "object", "propertyNames": {"format": "mine"}}, [{"a": 1}], [1]),
        # contains, uniqueItems
        (
            {
                "type": "array",
                "items": {"type": "integer"},
                "maxItems": 3,
                "contains": {"const": 7},
            },
            [[7], [1, 7], [1, 2, 7], [7, 7]],
            [[], [1], [1, 2, 3]],
        ),
        ({"type": "array", "contains": {"const": 7}, "minContains": 0}, [[], [1]], [7]),
        (
            {"type": "array", "maxItems": 3, "contains": {"const": 7}, "maxContains": 1},
            [[7], [1, 7, 2]],
            [[7, 7], [1], []],
        ),
        (
            {"type": "array", "maxItems": 4, "contains": {"const": 7}, "minContains": 2},
            [[7, 1, 7], [1, 1, 7, 7]],
            [[7], [1, 7, 1, 1]],
        ),
        (
            {"type": "array", "items": {"enum": ["a", "b", 1]}, "uniqueItems": True},
            [[], ["b"], ["b", "a"], [1, "a", "b"]],
            [["a", "a"], [1, "b", 1], ["c"]],
        ),
        (
            {"items": {"type": "boolean"}, "uniqueItems": True, "minItems": 2},
            [[True, False], [False, True], "other"],
            [[True], [True, True]],
        ),
        (
            {"items": {"enum": [1, 1.0, True, 2]}, "uniqueItems": True, "type": "array"},
            [[True, 1, 2]],
            [[1, 1], [2, 1, 2]],
        ),
        (
            {
                "type": "array",
                "uniqueItems": True,
                "maxItems": 2,
                "items": {"type": "integer", "minimum": 0, "maximum": 8},
            },
            [[0, 8], [5, 4]],
            [[5, 5], [1, 2, 3]],
        ),
        # oneOf
        ({"type": "integer", "oneOf": [{"minimum": 5}, {"maximum": 7}]}, [4, 8], [5, 6, 7]),
        (
            {**NAMES, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            [{"a": 1}, {"b": 1, "c": 1}],
            [{}, {"a": 1, "b": 1}],
        ),
        (
            {"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]},
            ["a", "c"],
            ["b", "d"],
        ),
        ({"oneOf": [{"type": "string"}, {"type": "string"}, {"type": "null"}]}, [None], ["a"]),
        ({"anyOf": [{"oneOf": [True, True]}, {"const": 1}]}, [1], [2, "a"]),
        (
            {"$defs": {"s": {"type": "string"}}, "oneOf": [{"$ref": "#/$defs/s"}, {"const": 1}]},
            ["a", 1],
            [2],
        ),
        # unevaluated
        (
            {"properties": {"a": {}}, "unevaluatedProperties": False, "type": "object"},
            [{"a": 1}],
            [{"b": 1}],
        ),
        (
            {"type": "array", "prefixItems": [{"const": 1}], "unevaluatedItems": {"const": 2}},
            [[], [1], [1, 2, 2]],
            [[1, 1]],
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_keywords_that_are_rewritten(schema: Any, fits: list[Any], others: list[Any]) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    assert all(map(validator.is_valid, fits))
    assert not any(map(validator.is_valid, others))
    takes = Taker(LlamaGrammar.from_json_schema(schema)).takes
    assert [document for document in fits if not takes(document)] == []
    assert [document for document in others if takes(document)] == []


def test_items_that_cannot_be_listed_may_repeat_up_to_their_number() -> None:
    takes = Taker(
        LlamaGrammar.from_json_schema({"items": {"type": "string"}, "uniqueItems": True})
    ).takes
    assert takes(["a", "b"])
    assert takes(["a", "a"])  # docs/structured-output.md says so
    many = {"type": "array", "items": {"enum": [*"abcdefgh"]}, "uniqueItems": True}
    takes = Taker(LlamaGrammar.from_json_schema(many)).takes
    assert takes([*"hgfedcba"])
    assert not takes([*"abcdefgha"])  # one of nine occurs twice


@pytest.mark.parametrize("type_", ["integer", "number", "string", "object"])
@pytest.mark.parametrize(
    "name",
    [
        "int32", "uint64", "double", "password", "binary", "byte", "base64url", "uri-template",
        "path", "regex", "json-pointer", "idn-email", "cuid", "",
    ],
)  # fmt: skip
def test_a_format_that_is_not_enforced_is_an_annotation(type_: str, name: str) -> None:
    values = {"integer": 5, "number": 1.5, "string": "a b", "object": {"x": 1}}
    taker = Taker(LlamaGrammar.from_json_schema({"type": type_, "format": name}))
    for other, value in values.items():
        assert taker.takes(value) == (other == type_ or (type_, other) == ("number", "integer"))


@pytest.mark.parametrize(
    "keywords",
    [
        {"properties": {"a": {"type": "integer"}}},
        {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
        {"patternProperties": {"^a$": {"type": "integer"}}},
    ],
    ids=str,
)
def test_a_name_spelled_with_escapes_gets_no_other_value(keywords: Any) -> None:
    taker = Taker(LlamaGrammar.from_json_schema({"type": "object", **keywords}))
    assert taker.takes_text('{"a":1}')
    assert not taker.takes_text('{"a":"x"}')
    assert not taker.takes_text(r'{"\u0061":"x"}')
    assert taker.takes({"b\n": "x"})


@pytest.mark.parametrize("keyword", ["properties", "required"])
def test_a_name_that_is_too_long_is_refused_before_generating(keyword: str) -> None:
    def schema(name: str) -> Any:
        return {"type": "object", keyword: {name: True} if keyword == "properties" else [name]}

    assert Taker(LlamaGrammar.from_json_schema(schema("a" * 4000))).takes({"a" * 4000: 1})
    for name in ("a" * 200_000, "\u20ac" * 40_000):
        with pytest.raises(GrammarError, match=r"at most 4,096"):
            LlamaGrammar.from_json_schema(schema(name)).compiled()


def test_white_space_is_bounded() -> None:
    taker = Taker(LlamaGrammar.from_json_schema({"type": "array", "items": {"const": 1}}))
    assert taker.takes_text("[\n" + 32 * " " + "1, 1\n]")
    for text in ("[" + 2 * " " + "1]", "[\n" + 33 * " " + "1]", "[\n\n1]"):
        assert not taker.takes_text(text)


def test_complements_of_complements_end() -> None:
    schema: Any = {"type": "string"}
    for _ in range(400):
        schema = {"not": schema}
    with pytest.raises(GrammarError):
        LlamaGrammar.from_json_schema(schema)
    taker = Taker(LlamaGrammar.from_json_schema({"not": {"$ref": "#"}}))  # a paradox: nothing fits
    assert not any(map(taker.takes, [None, 1, "", [], {}]))


def test_schemas_that_contain_themselves_many_times_are_read_in_time() -> None:
    options = [{"$ref": f"#/$defs/n{i}"} for i in range(8)]
    nodes = {
        f"n{i}": {
            "type": "object",
            "properties": {"left": {"oneOf": options}, "right": {"not": options[i]}},
            "required": ["left"],
        }
        for i in range(8)
    }
    for keyword in ({"oneOf": options}, {"not": options[0]}, {"if": options[0], "then": True}):
        with pytest.raises(GrammarError):
            LlamaGrammar.from_json_schema({"$defs": nodes, **keyword})
    tagged = {
        name: {
            "type": "object",
            "properties": {"kind": {"const": name}, "in": {"oneOf": options}},
            "required": ["kind"],
            "additionalProperties": False,
        }
        for name in nodes
    }
    taker = Taker(LlamaGrammar.from_json_schema({"$defs": tagged, "oneOf": options}))
    assert taker.takes({"kind": "n1", "in": {"kind": "n2"}})
    assert not taker.takes({"kind": "n8"})


@pytest.mark.parametrize(
    "bound",
    [10**400, -(10**400), 1e300, 2**63, 1e400],
    ids=lambda b: f"{b:.0e}" if isinstance(b, float) else f"{len(str(b))} digits",
)
@pytest.mark.parametrize("keyword", ["minimum", "exclusiveMaximum", "const", "multipleOf"])
@pytest.mark.parametrize("type_", ["integer", "number"])
def test_bounds_of_any_size_are_enforced_or_refused(type_: str, keyword: str, bound: Any) -> None:
    schema = {"type": type_, keyword: bound}
    validator = jsonschema.Draft202012Validator(schema)
    documents = [0, 1, -1, 2**63 - 1, 10**301, -(10**301)]
    try:
        taker = Taker(LlamaGrammar.from_json_schema(json.dumps(schema)))
    except GrammarError:
        return
    for document in documents:
        assert validator.is_valid(document) or not taker.takes(document)


def test_white_space_stays_bounded_beside_other_options() -> None:
    schema = {"x-guidance": {"coerce_one_of": True}, "type": "array", "items": {"const": 1}}
    taker = Taker(LlamaGrammar.from_json_schema(schema))
    assert taker.takes_text("[ 1]")
    assert not taker.takes_text("[   1]")
