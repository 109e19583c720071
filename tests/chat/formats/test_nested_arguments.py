"""MiniMax M3: nested elements, and what is kept of those that are broken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.parsed_answers import Call, read, tool

from llama_cffi.chat.formats import get_format

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
_T = "]<]minimax[>["
TOOLS = [
    tool(
        "save",
        name=STRING,
        text=STRING,
        n=INTEGER,
        tags={"type": "array", "items": STRING},
        at={
            "type": "object",
            "properties": {"k": STRING, "deep": {"type": "array", "items": INTEGER}},
        },
        maybe={"anyOf": [STRING, {"type": "null"}]},
    ),
    tool("now"),
]


def parsed(form: str, text: str, tools: Any) -> tuple[str, list[Call]]:
    """Return the content and the calls of an answer."""
    answer = read(form, text, tools)
    return answer.content, answer.calls


def element(key: str, *inner: str) -> str:
    return f"{_T}<{key}>{''.join(inner)}{_T}</{key}>"


def call(*inner: str, name: str = "save") -> str:
    invoke = f'{_T}<invoke name="{name}">{"".join(inner)}{_T}</invoke>'
    return f"{_T}<tool_call>\n{invoke}\n{_T}</tool_call>"


NAME, TEXT = element("name", "a"), element("text", "b")
BOTH = {"name": "a", "text": "b"}
_CUT = f'{_T}<tool_call>\n{_T}<invoke name="save">'


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (call(NAME, TEXT), BOTH),
        (
            call(element("name", "90210"), element("text", "true")),
            {"name": "90210", "text": "true"},
        ),
        (call(element("maybe", "90210")), {"maybe": "90210"}),
        (call(element("maybe", "null")), {"maybe": None}),
        (call(element("n", "140.0")), {"n": 140}),
        (call(element("tags", element("item", "1"), element("item", ""))), {"tags": ["1", ""]}),
        (call(element("tags"), element("at")), {"tags": [], "at": {}}),
        (
            call(element("at", element("k", "1"), element("deep", element("item", "2")))),
            {"at": {"k": "1", "deep": [2]}},
        ),
        (call(element("-A", "3"), element("new", element("x", "y"))), {"-A": 3, "new": {"x": "y"}}),
        # Tags within a text.
        (call(element("name", f"x{_T}</name>y")), {"name": f"x{_T}</name>y"}),
        (
            call(element("name", f"{_T}</invoke> y"), TEXT),
            {"name": f"{_T}</invoke> y", "text": "b"},
        ),
        (call(element("name", f'{_T}<invoke name="')), {"name": f'{_T}<invoke name="'}),
        (
            call(element("name", f"\n{call(NAME)}\n"), TEXT),
            {"name": f"\n{call(NAME)}\n", "text": "b"},
        ),
        # Missing tags.
        (call(f"{_T}a{_T}</name>", TEXT), BOTH),
        (call(f"{_T}<name>a", TEXT), BOTH),
        (call(NAME, f"{_T}<text>b"), BOTH),
        (call(NAME, TEXT).replace(f"{_T}</invoke>\n", ""), BOTH),
        (call(NAME, TEXT).partition("\n")[2].partition("\n")[0], BOTH),
        (_CUT + NAME + f"{_T}<text>b", BOTH),
        (f"{_CUT}{_T}<at>{_T}<deep>{element('item', '1')}{_T}<item>2", {"at": {"deep": [1, 2]}}),
        # Broken elements.
        (call(f"{_T}<\n>", "oops", NAME, TEXT), BOTH),
        (call(NAME, f"{_T}</oops>", TEXT), BOTH),
    ],
)
def test_what_is_parsed(text: str, arguments: dict[str, Any]) -> None:
    assert parsed("minimax-m3", text, TOOLS) == ("", [("save", arguments)])
    next_call = call(name="now")
    both = [("save", arguments), ("now", {})]
    if text.endswith("</tool_call>"):
        assert parsed("minimax-m3", f"{text}\n{next_call}", TOOLS) == ("", both)


def test_a_call_without_any_end_does_not_take_the_next() -> None:
    text = f"{_CUT}{_T}<name>a{call(TEXT)}"
    [first, second] = parsed("minimax-m3", text, TOOLS)[1]
    assert first[0] == second[0] == "save"
    assert second[1] == {"text": "b"}


def test_without_schemas_elements_are_objects_and_items_are_lists() -> None:
    text = call(element("a", element("b", "1"), element("c", element("item", "x"))))
    assert parsed("minimax-m3", text, None)[1] == [("save", {"a": {"b": 1, "c": ["x"]}})]


def test_arguments_are_json_wherever_the_answer_ends() -> None:
    deep = element("at", element("k", 'a "b"'), element("deep", element("item", "2")))
    text = call(NAME, deep, element("tags", element("item", "\n")))
    for end in range(len(text)):
        message = get_format("minimax-m3").parse(text[:end], TOOLS)
        for found in message.tool_calls:
            assert json.loads(found.arguments).keys() <= {"name", "at", "tags"}
            assert found.is_complete or message.is_malformed


def test_arguments_arrive_with_their_elements() -> None:
    stream = get_format("minimax-m3").stream(TOOLS)
    deltas = stream.push(_CUT + NAME + f"{_T}<text>so fa")
    assert deltas[0]["tool_calls"][0]["function"]["arguments"] == '{"name": "a", "text": "so fa'


def test_deep_nesting_ends() -> None:
    text = call(*[f"{_T}<x>"] * 500)
    assert parsed("minimax-m3", text, None)[1][0][0] == "save"
