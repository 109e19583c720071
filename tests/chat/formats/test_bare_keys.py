"""Gemma 4's and FunctionGemma's calls, and what these models write in their place."""

from __future__ import annotations

import pytest
from support.answer_forms import TOOLS
from support.parsed_answers import Answer, read

Q = '<|"|>'


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ("", {}),
        ("x:None", {"x": None}),
        (f"x:{Q}null{Q}", {"x": "null"}),
        ("cmd:celsius,n:3", {"cmd": "celsius", "n": 3}),
        ("cmd:90210,x:true", {"cmd": "90210", "x": "true"}),
        ("cmd:'it is',tags:['x','y, z']", {"cmd": "it is", "tags": ["x", "y, z"]}),
        ('cmd="a", n=3', {"cmd": "a", "n": 3}),
        ('"cmd": "a", "at": {"k": [1, true, null]}', {"cmd": "a", "at": {"k": [1, True, None]}}),
        (f"{Q}cmd{Q}:{Q}a{Q}", {"cmd": "a"}),
        (f"cmd:Paris, France{Q},n:5", {"cmd": "Paris, France", "n": 5}),
        (f"cmd:{Q}code }}],x:{Q}a.txt{Q}", {"cmd": "code }]", "x": "a.txt"}),
        (f"cmd:{Q}look{Q}n:90", {"cmd": "look", "n": 90}),
        (f"x:':\\s*\\w+'{Q}", {"x": ":\\s*\\w+"}),
        (f'cmd:{Q}a, {{b}} [c] "d"{Q}', {"cmd": 'a, {b} [c] "d"'}),
        ("cmd:\n\n# T `x`\n\n- a: b, c\n", {"cmd": "# T `x`\n\n- a: b, c"}),
        ("n:140.0,tags:[a,b c]", {"n": 140, "tags": ["a", "b c"]}),
    ],
)
def test_arguments(body: str, arguments: object) -> None:
    for text in (
        f"<|tool_call>call:run{{{body}}}<tool_call|>",
        f"<|tool_call>:call:run{{{body}}}<tool_call|><tool_call|>",
        f"<|tool_call> call: server:run {{{body}}} <tool_call|>",
        f"<|tool_call>call:run{{{body}}}",
        f"call:run{{{body}}}",
    ):
        assert read("gemma4", text, TOOLS) == Answer("", [("run", arguments)])


def test_other_brackets() -> None:
    for body in ("now()", "now", "now{}", "now({})", "now {}"):
        text = f"<|tool_call>call:{body}<tool_call|>"
        assert read("gemma4", text, TOOLS) == Answer("", [("now", {})])
    text = '<|tool_call>{"name": "run", "arguments": {"cmd": "a"}}<tool_call|>'
    assert read("gemma4", text, TOOLS) == Answer("", [("run", {"cmd": "a"})])


def test_calls_that_break_off_keep_what_they_have() -> None:
    for body in (
        f"cmd:{Q}a{Q},at:{{files:[{{p:{Q}b{Q},n:1}}]",
        f"cmd:{Q}a{Q},at:{{files:[{{p:b,n:1",
    ):
        answer = read("gemma4", f"<|tool_call>call:run{{{body}<tool_call|> Ok.", TOOLS)
        assert answer == Answer(
            "Ok.", [("run", {"cmd": "a", "at": {"files": [{"p": "b", "n": 1}]}})], is_malformed=True
        )


def test_what_is_no_call_is_content_and_spares_its_neighbours() -> None:
    for body in ("run{}", "call:{}", "", "what?"):
        broken = f"<|tool_call>{body}<tool_call|>"
        text = f"{broken} <|tool_call>call:now{{}}<tool_call|>"
        assert read("gemma4", text, TOOLS) == Answer(broken, [("now", {})], is_malformed=True)
    broken = f"cmd {Q}a{Q}}}<tool_call|>"
    text = f"<|tool_call>call:run{{{broken}\n<|tool_call>call:now{{}}<tool_call|>"
    answer = read("gemma4", text, TOOLS)
    assert answer == Answer(broken, [("run", {}), ("now", {})], is_malformed=True)


def test_calls_without_a_marker_begin_a_line_and_name_an_offered_function() -> None:
    call = f"call:run{{cmd:{Q}a{Q}}}"
    found = [("run", {"cmd": "a"})]
    assert read("gemma4", f"<|channel>thought\nHm.\n<channel|>{call}", TOOLS) == Answer(
        "", found, "Hm."
    )
    assert read("gemma4", f"Ok.\n{call}\nDone.", TOOLS) == Answer("Ok.\nDone.", found)
    for text in (f"Say {call}", "call:walk{}", "call:me", f"```\n{call}\n```"):
        assert read("gemma4", text, TOOLS) == Answer(text, [])


def test_a_whole_call_in_a_string_is_text() -> None:
    inner = f"<|tool_call>call:now{{tags:[{Q}x{Q},{Q}y{Q}],s:{Q}z{Q}}}<tool_call|>"
    for value in (inner, f"See: {inner}\n", f"<|tool_call> {Q} <tool_call|>", f"a{Q}", Q):
        text = f"<|tool_call>call:run{{n:7,cmd:{Q}{value}{Q}}}<tool_call|> Ok."
        assert read("gemma4", text, TOOLS) == Answer("Ok.", [("run", {"n": 7, "cmd": value})])
