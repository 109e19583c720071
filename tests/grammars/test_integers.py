from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from support.random_schemas import Taker

from llama_cffi import GrammarError
from llama_cffi.api.tool_grammar import call_grammar
from llama_cffi.chat.formats import FORMATS
from llama_cffi.chat.tools import normalise_tools
from llama_cffi.grammars import LlamaGrammar
from llama_cffi.grammars.integers import integer_range

ODD = 2**53 + 1  # not a float
LONG: dict[str, Any] = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
DOCUMENTS: list[Any] = [
    *(0, ODD, ODD - 1, ODD + 1, -(2**63), -(2**63) - 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64),
    *(None, "a", 1.5, [ODD], [ODD, 3], [ODD - 1], [], {"id": ODD}, {"id": ODD - 1}, {"x": "s"}, {}),
    *(
        {"id": ODD, "x": "s"},
        {"id": 1, "next": {"id": 2**63 - 1}},
        {"id": 1, "next": {"id": 2**63}},
    ),
    {"a": 1, "id": ODD},
]


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    shape = {"properties": properties, "required": required, "additionalProperties": False}
    return {"type": "object", **shape}


@pytest.mark.parametrize(
    "schema",
    [
        LONG,
        {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        {"type": "integer", "minimum": 2**53 - 1, "maximum": 2**53 + 5},
        {"type": "integer", "exclusiveMinimum": ODD},
        {"type": "integer", "exclusiveMaximum": ODD + 1.0},
        {"const": ODD},
        {"const": -(2**63)},
        {"const": 2**64 - 1},
        {"enum": [ODD, "a", None, 1.5]},
        {"type": "integer", "enum": [ODD, "a", 2**63]},
        {"type": ["integer", "null"], "minimum": ODD},
        {"type": "array", "items": {"const": ODD}, "maxItems": 1},
        {"type": "array", "items": LONG, "minItems": 2},
        {"type": "array", "items": LONG, "maxItems": 0},
        closed(["id"], id={"const": ODD}, x={"type": "string"}),
        closed([], a={}, id=LONG, x={"type": "string"}),
        {"anyOf": [{"const": ODD}, {"type": "string"}]},
        {
            "$defs": {"n": closed(["id"], id=LONG, next={"$ref": "#/$defs/n"})},
            "$ref": "#/$defs/n",
        },
        {"type": "integer", "default": ODD, "minimum": 0},
    ],
    ids=str,
)
def test_integers_of_any_size_are_exact(schema: Any) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    taker = Taker(LlamaGrammar.from_json_schema(schema))
    for document in DOCUMENTS:
        assert taker.takes(document) == validator.is_valid(document), document


def test_random_ranges_of_integers() -> None:
    rng = random.Random(0)
    for _ in range(500):
        low, high = sorted(
            rng.choice(
                [
                    rng.randint(-150, 150),
                    rng.randint(-(10**19), 10**19),
                    10 ** rng.randint(0, 18) + rng.randint(-2, 2),
                ]
            )
            for _ in range(2)
        )
        least, most = rng.choice([low, low, None]), rng.choice([high, high, None])
        pattern = re.compile(integer_range(least, most))
        for n in (low, high, low - 1, high + 1, low + 1, high - 1, 0, 5, -5, (low + high) // 2):
            fits = (least is None or n >= least) and (most is None or n <= most)
            assert bool(pattern.fullmatch(str(n))) == fits, (least, most, n)


def test_bounds_within_other_keywords_are_rounded_inwards() -> None:
    schema = {"type": "object", "properties": {"id": LONG}}  # open
    takes = Taker(LlamaGrammar.from_json_schema(schema)).takes
    assert all(takes({"id": n}) for n in (0, 2**53, 2**63 - 1024, -(2**63) + 1024))
    assert not any(takes({"id": n}) for n in (2**63, -(2**63) - 1))
    schema = {"properties": {"id": {"const": -(2**60)}}}
    assert Taker(LlamaGrammar.from_json_schema(schema)).takes({"id": -(2**60)})
    for constant in (ODD, -(2**63), 2**64):
        with pytest.raises(GrammarError, match=f"#: the constant {constant} cannot be enforced"):
            LlamaGrammar.from_json_schema({"properties": {"id": {"enum": [1, constant]}}})


def test_white_space_between_large_integers() -> None:
    taker = Taker(LlamaGrammar.from_json_schema({"type": "array", "items": LONG}))
    assert taker.takes_text("[ 1,\n    2\n]")
    assert not taker.takes_text("[  1]")
    tight = {"x-guidance": {"whitespace_flexible": False}, "type": "array", "items": LONG}
    taker = Taker(LlamaGrammar.from_json_schema(tight))
    assert taker.takes_text("[1,2]")
    assert not taker.takes_text("[1, 2]")


def test_large_integers_in_arguments() -> None:
    function = {"name": "f", "parameters": {"properties": {"id": LONG}, "required": ["id"]}}
    function["parameters"]["type"] = "object"  # type: ignore[index]
    tools = normalise_tools([{"type": "function", "function": function}])
    taker = Taker(call_grammar(FORMATS["hermes"].grammar_parts(tools, False, True), {}))
    call = '<tool_call>\n{{"name": "f", "arguments": {}}}\n</tool_call>'
    assert taker.takes_text(call.format(json.dumps({"id": -(2**63)})))
    assert not taker.takes_text(call.format(json.dumps({"id": 2**63})))
