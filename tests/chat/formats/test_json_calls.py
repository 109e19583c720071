"""Calls in JSON: Hermes and the list formats, and what models write in their place."""

from __future__ import annotations

import pytest
from support.answer_forms import TOOLS
from support.parsed_answers import Answer, read

from llama_cffi.chat.formats.json_calls import offered_name

LS = ("run", {"cmd": "ls"})
GOOD = '{"name": "run", "arguments": {"cmd": "ls"}}'


def hermes(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


@pytest.mark.parametrize(
    "arguments",
    ['""', '" "', "null", "None", "{}", "[]", '"{}"', "[{}]", '"null"'[1:-1], ""],
)
def test_arguments_that_are_nothing(arguments: str) -> None:
    for body in (f'{{"name": "now", "arguments": {arguments}}}', '{"name": "now"}'):
        assert read("hermes", hermes(body), TOOLS) == Answer("", [("now", {})])
    if arguments:
        body = f'{{"arguments": {arguments}, "name": "now"}}'
        assert read("hermes", hermes(body), TOOLS) == Answer("", [("now", {})])


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "run", "parameters": {"cmd": "ls"}}',
        '{"name": "run", "arguments": "{\\"cmd\\": \\"ls\\"}"}',
        '{"name": "run", "arguments": "{\'cmd\': \'ls\'}"}',
        '{"name": "run", "arguments": [{"cmd": "ls"}]}',
        '{"arguments": {"cmd": "ls"}, "name": "run"}',
        '{"id": 7, "type": "function", "name": "run", "arguments": {"cmd": "ls"}, "x": [1]}',
        '{"type": "function", "function": {"name": "run", "arguments": {"cmd": "ls"}}}',
        '{"function": "run", "arguments": {"cmd": "ls"}}',
        '{"name": "run", "cmd": "ls"}',
        "{'name': 'run', 'arguments': {'cmd': 'ls'}}",
        '{"name": "functions.run", "arguments": {"cmd": "ls"}}',
        '{"name": "run:0", "arguments": {"cmd": "ls"}}',
        '{"name": "run", "arguments": {"cmd": "ls",},}',
        f"{GOOD}}}}}",  # brackets too many
        GOOD[:-1],  # and too few
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        f"[{GOOD}]",
    ],
)
def test_what_models_write_for_a_call(body: str) -> None:
    assert read("hermes", hermes(body), TOOLS) == Answer("", [LS])
    assert read("nemotron", f"<TOOLCALL>{body}</TOOLCALL>", TOOLS).calls == [LS]


def test_several_calls_between_one_pair_of_tags() -> None:
    for body in (f"{GOOD}\n{GOOD}", f"{GOOD}, {GOOD}", f"[{GOOD}, {GOOD}]", f"{GOOD}{GOOD}"):
        assert read("hermes", hermes(body), TOOLS) == Answer("", [LS, LS])
    assert read("hermes", f"<tool_call>{GOOD}<tool_call>{GOOD}", TOOLS).calls == [LS, LS]


@pytest.mark.parametrize(
    "body",
    ["{oops}", "run", '{"name": 3, "arguments": {}}', '{"name": "run", "arguments": "ls -la"}',
     '{"name": "run", "arguments": [1]}', '{"name": "run", "arguments": 5}', "", "[]", "[[]]",
     '{"name": "", "arguments": {}}', '{"name": "run", "flags": 1}'],
)  # fmt: skip
def test_what_is_no_call_is_content_and_spares_its_neighbours(body: str) -> None:
    broken = hermes(body)
    assert read("hermes", broken, TOOLS) == Answer(broken, [], is_malformed=True)
    text = f"{hermes(GOOD)} {broken} {hermes(GOOD)}"
    assert read("hermes", text, TOOLS) == Answer(broken, [LS, LS], is_malformed=True)


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "run", "arguments": {"cmd": "ls"', {"cmd": "ls"}),
        ('{"name": "run", "arguments": {"at": {"k": [1, 2', {"at": {"k": [1, 2]}}),
        ('{"name": "run", "arguments": {"cmd": "ls", "n"', {"cmd": "ls"}),
        ('{"name": "run", "arguments": {"cmd": "ls", "n": ', {"cmd": "ls"}),
    ],
)
def test_a_call_that_breaks_off_keeps_what_it_has(body: str, arguments: object) -> None:
    whole = read("hermes", f"<tool_call>{body}", TOOLS)
    assert (whole.calls, whole.is_malformed) == ([("run", arguments)], True)
    ended = read("hermes", f"<tool_call>{body}</tool_call>\n{hermes(GOOD)}", TOOLS)
    assert ended.calls[-1] == LS
    assert ended.calls[0] == ("run", arguments)


def test_items_of_a_list_that_are_no_calls_are_content() -> None:
    text = f'<TOOLCALL>[{GOOD}, {{"nam": 1}}, {GOOD}]</TOOLCALL> Done.'
    answer = read("nemotron", text, TOOLS)
    assert answer == Answer('{"nam": 1} Done.', [LS, LS], is_malformed=True)
    text = '<|tools_prefix|>[{"x": 1}, {"run": {"cmd": "ls"}}, {"now": {}}]<|tools_suffix|>'
    answer = read("apertus", text, TOOLS)
    assert answer == Answer('{"x": 1}', [LS, ("now", {})], is_malformed=True)


def test_json_in_an_answer_is_no_call() -> None:
    for text in (f"```json\n{GOOD}\n```", f"Send {GOOD}.", GOOD):
        assert read("hermes", text, TOOLS) == Answer(text, [])


def test_names() -> None:
    meant = {
        "run": "run", "functions.run": "run", "functions.run:0": "run", "run:12": "run",
        "functions:run": "run", "functions_run": "run", "run.0": "run", "server:run": "run",
        "get-it.x": "get-it.x", "server:get-it.x": "get-it.x", "a.b.now": "now",
        "walk": "walk", "functions.walk": "functions.walk", "": "",
    }  # fmt: skip
    assert {name: offered_name(name, TOOLS) for name in meant} == meant
    assert offered_name("functions.run", None) == "functions.run"


def test_arguments_before_the_name_may_have_any_escape() -> None:
    body = r'{"arguments": {"cmd": "\d+\w \u00e9"}, "name": "run"}'
    assert read("hermes", hermes(body), TOOLS) == Answer("", [("run", {"cmd": r"\d+\w é"})])
