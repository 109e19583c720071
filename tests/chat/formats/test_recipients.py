"""GPT-OSS's messages with broken headers, and Functionary's."""

from __future__ import annotations

import pytest
from support.answer_forms import TOOLS
from support.parsed_answers import Answer, read, tool

A = ("run", {"cmd": "a"})
ARGUMENTS = '{"cmd": "a"}'
CALL = "<|channel|>commentary to=functions.run <|constrain|>json<|message|>"


@pytest.mark.parametrize(
    "header",
    [
        CALL,
        "<|channel|>commentary to=functions.run<|message|>",
        "<|channel|>commentary to=functions.run json<|message|>",
        "<|channel|>commentary to=functions.run code<|message|>",
        "<|channel|>commentary to=run<|message|>",
        "<|channel|>commentary to= functions.run<|message|>",
        "<|channel|>analysis to=functions.run<|message|>",
        "<|channel|>functions.run<|message|>",
        " to=functions.run<|channel|>commentary<|message|>",
        " to=functions.run<|channel|>analysis <|constrain|>json<|message|>",
        "<|start|>assistant to=functions.run<|channel|>commentary json<|message|>",
        "<|start|>assistant<|channel|>commentary to=functions.run<|message|>",
        "assistant<|channel|>commentary to=functions.run<|message|>",
        "commentary to=functions.run <|constrain|>json<|message|>",
        "<|channel|>commentary? to=functions.run<|message|>",
        "<|channel|>commentary to=assistant<|channel|>commentary to=functions.run<|message|>",
        "<|channel|>commentary to=functions.run",
        "<|channel|>commentary to=functions.run <|constrain|>json",
        " to=functions.run<|channel|>commentary",
    ],
)
@pytest.mark.parametrize(
    "body",
    [ARGUMENTS, f" {ARGUMENTS} ", f"[{ARGUMENTS}]", f"{ARGUMENTS}}}", f"```json\n{ARGUMENTS}\n```",
     '"{\\"cmd\\": \\"a\\"}"', "{'cmd': 'a'}", "{cmd: 'a'}"],
)  # fmt: skip
def test_headers_and_arguments_of_calls(header: str, body: str) -> None:
    if "<|message|>" not in header and body[0] != "{":
        return
    text = f"{header}{body}<|call|>"
    assert read("harmony", text, TOOLS) == Answer("", [A])
    reasoning = "<|channel|>analysis<|message|>Hm.<|end|>"
    start = (
        "" if header.startswith(("<|start|>", "assistant", "commentary")) else "<|start|>assistant"
    )
    assert read("harmony", f"{reasoning}{start}{text}", TOOLS) == Answer("", [A], "Hm.")
    again = f"{text}{start}{text}<|start|>assistant<|channel|>final<|message|>Ok.<|return|>"
    assert read("harmony", again, TOOLS) == Answer("Ok.", [A, A])


@pytest.mark.parametrize("body", ["", "{}", "null", "[]", '""', " "])
def test_no_arguments(body: str) -> None:
    text = f"<|channel|>commentary to=functions.now<|message|>{body}<|call|>"
    assert read("harmony", text, TOOLS) == Answer("", [("now", {})])


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<|channel|>final<|message|>Hi", "Hi"),
        ("<|channel|>commentary<|message|>Hi<|end|>", "Hi"),
        ("<|channel|>commentary to=user<|message|>Hi", "Hi"),
        ("<|channel|>commentary to=assistant<|message|>Hi", "Hi"),
        ("<|channel|>commentary?commentary?<|message|>Hi", "Hi"),
        ("<|channel|>commentary 2?<|message|>Hi", "Hi"),
        ("<|channel|>thinking<|message|>Hi", "Hi"),
        ("<|message|>Hi<|return|>", "Hi"),
        ("<|start|>assistant<|message|>Hi", "Hi"),
        ("<|channel|>final Hi", "Hi"),
        ("<|channel|>final\nHi", "Hi"),
        ("<|channel|>commentary<|start|>assistant<|channel|>final<|message|>Hi", "Hi"),
        ('<|channel|>final <|constrain|>json<|message|>{"a": 1}', '{"a": 1}'),
        ('<|channel|>commentary json<|message|>{"a": 1}', '{"a": 1}'),
        ("Hi", "Hi"),
        ("final answer: to=functions.run", "final answer: to=functions.run"),
        ("analysis of <b>", "analysis of <b>"),
        ("assistant", "assistant"),
        ("<|channel|>final<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>there",
         "Hi\nthere"),
        ("<|channel|>commentary<|message|>Hi<|end|><|channel|>final<|message|>there", "Hi\nthere"),
    ],
)  # fmt: skip
def test_messages_without_a_function_are_content(text: str, content: str) -> None:
    assert read("harmony", text, TOOLS) == Answer(content, [])


def test_reasoning_with_a_broken_header() -> None:
    final = "<|start|>assistant<|channel|>final<|message|>Hi"
    for header in ("<|channel|>analysis<|message|>", "<|channel|>analysis ", "analysis<|message|>",
                   "<|channel|>analysis?<|message|>"):  # fmt: skip
        assert read("harmony", f"{header}Hm.<|end|>{final}", TOOLS) == Answer("Hi", [], "Hm.")


@pytest.mark.parametrize(
    "text", ["<|channel|>?? ", "<|channel|>", "<|channel|>finally", "<|start|>"]
)
def test_a_header_that_is_none_is_content(text: str) -> None:
    assert read("harmony", text, TOOLS) == Answer(text, [], is_malformed=True)
    after = "<|end|><|start|>assistant<|channel|>analysis<|message|>Hm.<|end|>"
    call = f"<|start|>assistant{CALL}{ARGUMENTS}<|call|>"
    answer = read("harmony", f"{text}{after}{call}", TOOLS)
    assert answer == Answer(text.strip(), [A], "Hm.", True)


@pytest.mark.parametrize("body", ["ls -la", "[1]", "5", '"ls"', '[{"cmd": "a"}, {}]'])
def test_what_is_no_call_is_content_and_spares_its_neighbours(body: str) -> None:
    call = f"<|start|>assistant{CALL}{ARGUMENTS}<|call|>"
    answer = read("harmony", f"{CALL}{body}<|call|>{call}", TOOLS)
    assert answer == Answer(body, [A], is_malformed=True)


def test_a_call_that_breaks_off_keeps_what_it_has() -> None:
    final = "<|start|>assistant<|channel|>final<|message|>Ok."
    for body in ('{"cmd": "a"', '{"cmd": "a", "n"', '{"cmd": "a", "at": {"k": 1'):
        answer = read("harmony", f"{CALL}{body}<|call|>{final}", TOOLS)
        assert answer.calls[0][1]["cmd"] == "a"
        assert (answer.content.endswith("Ok."), answer.is_malformed) == (True, True)


def test_source_code_for_functions_that_take_it() -> None:
    code = "print('x')\n{}"
    for header in ("<|channel|>analysis to=python code<|message|>", " to=python<|message|>"):
        for tools in (TOOLS, None, [tool("python", code={"type": "string"})]):
            answer = read("harmony", f"{header}{code}<|call|>", tools)
            assert answer == Answer("", [("python", {"code": code})])
    assert read("functionary-v3.2", f">>>python\n{code}>>>all\nOk.", TOOLS) == Answer(
        "Ok.", [("python", {"code": code})]
    )


def test_arguments_for_functionary() -> None:
    for body in (ARGUMENTS, "{'cmd': 'a'}", '"{\\"cmd\\": \\"a\\"}"', f"[{ARGUMENTS}]"):
        assert read("functionary-v3.2", f"run\n{body}", TOOLS) == Answer("", [A])
        text = f"all\nHi\n>>>run\n{body}>>>run\n{body}"
        assert read("functionary-v3.2", text, TOOLS) == Answer("Hi", [A, A])
    answer = read("functionary-v3.2", f">>>run\nls>>>run\n{ARGUMENTS}", TOOLS)
    assert answer == Answer(">>>run\nls", [A], is_malformed=True)
