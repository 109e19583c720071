"""The grammars of tool calls compile for every format."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_cffi import Constraint, Model, ValidationError
from llama_cffi.api.tool_grammar import call_grammar
from llama_cffi.chat.formats import FORMATS, CallGrammar, GrammarParts, Text
from llama_cffi.chat.tools import normalise_tools


def move(city: str, speed: float, note: str = "", fast: bool = False) -> None:
    """Move to a city."""


def stay() -> None:
    """Stay."""


def tag(labels: set[str]) -> None:
    """Tag with labels, each once: no grammar can enforce that."""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("special", [{}, {"<tool_call>": 3, "[TOOL_CALLS]": 7}])
@pytest.mark.parametrize("parallel", [False, True])
def test_every_format_has_a_grammar(name: str, special: dict[str, int], parallel: bool) -> None:
    parts = FORMATS[name].grammar_parts(normalise_tools([move, stay, tag]), parallel, True)
    assert call_grammar(parts, special).kind == "lark"


def test_control_tokens_are_named_and_text_ends_at_its_stop(tiny_model: Path) -> None:
    with Model(tiny_model) as model:
        start = model.vocab.tokenize("<|im_start|>", False, True)
        call = CallGrammar("f", ("<v>", Text("\n</v>"), "\n</v>"))
        parts = GrammarParts("<|im_start|>", (call,), "", "", (), False, True)
        constraint = Constraint(model, call_grammar(parts, {"<|im_start|>": start[0]}))
        assert not constraint.allows(model.vocab.tokenize("<", False)[0])
        constraint.accept(start[0])
        for token in model.vocab.tokenize("<v>a\n<b\n</v>", False):
            assert not constraint.complete
            constraint.accept(token)
        assert constraint.complete
        assert not constraint.allows(model.vocab.tokenize("a", False)[0])


@pytest.mark.parametrize(
    ("name", "arguments", "fits"),
    [
        ("stay", "{}", True),
        ("stay", '{"city": "Rome"}', False),
        ("move", '{"city": "Rome", "speed": 1}', True),
        ("move", '{"city": "Rome", "speed": 1, "unit": "c"}', False),
    ],
)
def test_calls_have_parameters_of_the_function_only(
    tiny_model: Path, name: str, arguments: str, fits: bool
) -> None:
    parts = FORMATS["hermes"].grammar_parts(normalise_tools([move, stay]), False, True)
    call = f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    with Model(tiny_model) as model:
        constraint = Constraint(model, call_grammar(parts, {}))
        try:
            for token in model.vocab.tokenize(call, False):
                constraint.accept(token)
        except ValidationError:
            assert not fits
        else:
            assert constraint.complete
            assert fits


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ("{}", True),
        ('{"at": {"x": 1}}', True),
        ('{"more": {"any": [1]}}', True),
        ('{"at": {"x": 1, "y": 2}}', False),
        ('{"at": {}, "unknown": 1}', False),
        ('{"list": [{"x": 1}]}', True),
        ('{"list": [{"z": 1}]}', False),
    ],
)
def test_calls_have_parameters_of_a_dict_only(tiny_model: Path, arguments: str, fits: bool) -> None:
    point = {"type": "object", "properties": {"x": {"type": "integer"}}}
    many = {"type": "array", "items": point}
    properties = {"at": point, "more": {"type": "object"}, "list": many}
    function = {"name": "f", "parameters": {"type": "object", "properties": properties}}
    tools = normalise_tools([{"type": "function", "function": function}])
    parts = FORMATS["hermes"].grammar_parts(tools, False, True)
    call = f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>'
    with Model(tiny_model) as model:
        constraint = Constraint(model, call_grammar(parts, {}))
        tokens = model.vocab.tokenize(call, False)
        try:
            for token in tokens:
                constraint.accept(token)
        except ValidationError:
            assert not fits
        else:
            assert constraint.complete == fits
    assert "additionalProperties" not in tools[0]["function"]["parameters"]  # in the prompt


@pytest.mark.parametrize("day", ["28", "29"])
def test_dates_in_arguments_exist(tiny_model: Path, day: str) -> None:
    dated = {"properties": {"day": {"type": "string", "format": "date"}}, "required": ["day"]}
    function = {"name": "f", "parameters": {"type": "object", **dated}}
    tools = normalise_tools([{"type": "function", "function": function}])
    parts = FORMATS["hermes"].grammar_parts(tools, False, True)
    call = f'<tool_call>\n{{"name": "f", "arguments": {{"day": "2023-02-{day}"}}}}\n</tool_call>'
    with Model(tiny_model) as model:
        constraint = Constraint(model, call_grammar(parts, {}))
        try:
            for token in model.vocab.tokenize(call, False):
                constraint.accept(token)
        except ValidationError:
            assert day == "29"
        else:
            assert constraint.complete
            assert day == "28"
    assert dated["properties"] == {"day": {"type": "string", "format": "date"}}


@pytest.mark.parametrize(
    ("schema", "value", "fits"),
    [
        ({"enum": ["90210", None]}, "90210", True),
        ({"enum": ["90210", None]}, "null", True),
        ({"enum": ["90210", None]}, '"90210"', False),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "a 'b'", True),
        ({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}, "abc", True),
        ({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}, "null", True),
        ({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}, "abcd", False),
        ({"$ref": "#/$defs/Zip"}, "10001", True),
        ({"$ref": "#/$defs/Zip"}, "90210", False),
        ({"type": ["integer", "null"]}, "7", True),
        ({"type": ["integer", "null"]}, "a", False),
    ],
)
@pytest.mark.parametrize(
    ("name", "written"),
    [
        (
            "qwen3-coder",
            "<tool_call>\n<function=f>\n<parameter=x>\n{}\n</parameter>\n</function>\n</tool_call>",
        ),
        (
            "minimax-m3",
            ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="f">]<]minimax[>[<x>{}'
            "]<]minimax[>[</x>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
        ),
    ],
)
def test_text_or_null_has_no_quotes_between_tags(
    tiny_model: Path, name: str, written: str, schema: dict[str, object], value: str, fits: bool
) -> None:
    parameters = {
        "type": "object",
        "properties": {"x": schema},
        "required": ["x"],
        "$defs": {"Zip": {"enum": ["10001", None]}},
    }
    function = {"name": "f", "parameters": parameters}
    tools = normalise_tools([{"type": "function", "function": function}])
    parts = FORMATS[name].grammar_parts(tools, False, True)
    with Model(tiny_model) as model:
        constraint = Constraint(model, call_grammar(parts, {}))
        try:
            for token in model.vocab.tokenize(written.format(value), False):
                constraint.accept(token)
        except ValidationError:
            assert not fits
        else:
            assert constraint.complete
            assert fits
