"""Texts that the call grammars allow are parsed to arguments that match the schemas."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from typing import Any

import jsonschema
import pytest

from llama_cffi.chat.formats import (
    FORMATS,
    Alternatives,
    Element,
    Json,
    Maybe,
    Repeat,
    Text,
    ToolFormat,
)
from llama_cffi.chat.tools import normalise_tools


def tool(name: str, required: list[str], **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


STRING = {"type": "string"}
TOOLS = normalise_tools(
    [
        tool("get_weather", ["city"], city=STRING, unit={"type": "string", "enum": ["C", "F"]}),
        tool("add", ["b", "a"], a={"type": "integer"}, b={"type": "number"}),
        tool("all_optional", [], x=STRING, y={"type": "boolean"}, z={"type": "null"}),
        tool(
            "deep",
            ["tags", "place"],
            tags={"type": "array", "items": STRING},
            place={
                "type": "object",
                "properties": {"at": {"type": "array", "items": {"type": "number"}}, "of": STRING},
                "required": ["at"],
            },
        ),
        tool("late", ["b"], a=STRING, b=STRING),
        tool("now", []),
    ]
)
WORDS = [
    "",
    "Rome",
    "a b",
    "é 你",
    "it's",
    "x, y",
    "(1)",
    "line\nbreak",
    "{}",
    "42",
    "a:b",
    "a1b2c3d4e5",
]


def value(schema: Any, rng: random.Random) -> Any:
    """Draw a value that matches *schema*; supports what the tools above use."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema["type"]
    if kind == "object":
        required = schema.get("required", ())
        names = [n for n in schema["properties"] if n in required or rng.random() < 0.5]
        return {name: value(schema["properties"][name], rng) for name in names}
    if kind == "array":
        return [value(schema["items"], rng) for _ in range(rng.randrange(3))]
    choices = {"string": WORDS, "integer": [0, -3], "number": [2, 0.5], "null": [None]}
    return rng.choice(choices.get(kind, [True, False]))


def written(elements: Iterable[Element], rng: random.Random) -> str:
    """Return a random text that the elements allow."""
    text = ""
    for element in elements:
        if isinstance(element, str):
            text += element
        elif isinstance(element, Json):
            text += json.dumps(value(element.schema, rng), ensure_ascii=False)
        elif isinstance(element, Text):
            pattern = element.schema.get("pattern", "")
            words = [w for w in WORDS if element.stop not in w and re.search(pattern, w)]
            text += rng.choice(words)
        elif isinstance(element, Maybe):
            text += written(element.elements, rng) if rng.random() < 0.5 else ""
        elif isinstance(element, Alternatives):
            text += written(rng.choice(element.options), rng)
        else:
            assert isinstance(element, Repeat)
            parts = [written(element.elements, rng) for _ in range(rng.randrange(3))]
            text += element.separator.join(parts)
    return text


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_what_the_grammar_allows_is_parsed_and_valid(form: ToolFormat) -> None:
    rng = random.Random(1)
    parts = form.grammar_parts(TOOLS, parallel=True, required=True)
    assert (parts.is_parallel, parts.is_required) == (form.is_parallel, True)
    assert [call.name for call in parts.calls] == [tool["function"]["name"] for tool in TOOLS]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    for round_ in range(60):
        calls = rng.choices(parts.calls, k=1 + round_ % 3 * form.is_parallel)
        texts = [written(call.elements, rng) for call in calls]
        text = parts.begin + parts.separator.join(texts) + parts.end
        message = form.parse(text, TOOLS)
        assert [call.name for call in message.tool_calls] == [call.name for call in calls], text
        assert not message.is_malformed, text
        assert message.content.strip() == "", text
        for call in message.tool_calls:
            jsonschema.validate(json.loads(call.arguments), schemas[call.name])


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_triggers_are_prefixes_of_what_the_grammar_allows(form: ToolFormat) -> None:
    parts = form.grammar_parts(TOOLS)
    begins = [parts.begin + written(call.elements, random.Random(1)) for call in parts.calls]
    assert parts.triggers
    for trigger in parts.triggers:
        assert any(begin.startswith(trigger) for begin in begins), (trigger, begins)
    for begin in begins:
        assert any(begin.startswith(trigger) for trigger in parts.triggers), (begin, parts.triggers)


def test_no_tools_no_calls() -> None:
    assert all(form.grammar_parts([]).calls == () for form in FORMATS.values())


def test_definitions_are_included_in_each_parameter() -> None:
    shared = {"Place": {"type": "object"}}
    deep = tool("go", ["to"], to={"$ref": "#/$defs/Place"})
    deep["function"]["parameters"]["$defs"] = shared
    found = [
        p for p in FORMATS["glm"].grammar_parts([deep]).calls[0].elements if isinstance(p, Json)
    ]
    assert found == [Json({"$defs": shared, "$ref": "#/$defs/Place"})]
