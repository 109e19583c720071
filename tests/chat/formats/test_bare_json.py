"""Calls without markers: Llama 3 and 4, and models without a format of their own."""

from __future__ import annotations

import json

import pytest
from support.answer_forms import TOOLS
from support.parsed_answers import Answer, read

from llama_cffi.chat.families import identify
from llama_cffi.chat.formats import detect_format

LS = ("run", {"cmd": "ls }"})
JSON = json.dumps({"name": "run", "parameters": LS[1]})
TYPED = json.dumps({"type": "function", "name": "run", "parameters": LS[1]})
OPENAI = json.dumps({"type": "function", "function": {"name": "run", "parameters": LS[1]}})
TEXT = json.dumps({"name": "run", "parameters": json.dumps(LS[1])})
KEYED = json.dumps({"function": "run", "parameters": LS[1]})
FORMS = pytest.mark.parametrize("call", [JSON, TYPED, OPENAI, TEXT, KEYED, f"[{JSON}]"])

# What identifies Meta's templates, in other words.
LLAMA4 = (
    "{{ bos_token }}{% for m in messages %}<|header_start|>{{ m.role }}<|header_end|>\n\n"
    "{% if tools %}Respond with a dictionary of argument name and its value.{% endif %}"
    "{% if m.tool_calls %}<|python_start|>{{ m.content }}<|python_end|>{% endif %}<|eot|>"
    "{% endfor %}"
)


def test_llama_4_is_recognised() -> None:
    assert detect_format(LLAMA4).name == "llama4"
    assert detect_format(LLAMA4.replace("python_", "")).name == "llama4"
    assert detect_format("<|header_start|>{{ messages }}").name == "generic"
    for name in ("Llama-4-Scout-17B-16E-Instruct-Q4_K_M.gguf", "llama4-maverick.gguf"):
        assert identify({}, name, None).tool_format.name == "llama4"
        assert identify({}, name, LLAMA4).tool_format.name == "llama4"


@FORMS
@pytest.mark.parametrize("name", ["llama3", "llama4"])
def test_json_at_the_beginning_of_a_line(name: str, call: str) -> None:
    assert read(name, call, TOOLS) == Answer("", [LS])
    assert read(name, f"\n {call} ", TOOLS) == Answer("", [LS])
    for sep in ("\n", "; ", ", ", ""):
        assert read(name, f"{call}{sep}{call}", TOOLS) == Answer("", [LS, LS])
    text = f"I will look.\n\n{call}\nThen I go on."
    assert read(name, text, TOOLS) == Answer("I will look.\nThen I go on.", [LS])
    for text in (f"Write {call}", f"```json\n{call}\n```", f"> {call}"):
        assert read(name, text, TOOLS) == Answer(text, [])


@pytest.mark.parametrize("name", ["llama3", "llama4", "generic"])
@pytest.mark.parametrize(
    "text",
    ['{"name": "John", "parameters": {}}', '{"name": "run"}', '{"name": "run", "age": 3}',
     '{"age": 3}', "{}", "[]", "[1, 2]", '["a"]', "[run]", "[walk(a=1)]", "{", "[",
     '{"name": "run", "parameters": 3}', '[{"name": "walk", "parameters": {}}]'],
)  # fmt: skip
def test_other_json_is_content(name: str, text: str) -> None:
    answer = read(name, text, TOOLS)
    assert (answer.content, answer.calls) == (text, [])


@FORMS
def test_calls_between_the_markers_of_llama_4(call: str) -> None:
    wrapped = f"<|python_start|>{call}<|python_end|>"
    for text in (wrapped, f"<|python_start|> {call} <|python_end|>", f"<|python_start|>{call}"):
        assert read("llama4", text, TOOLS) == Answer("", [LS])
        assert read("llama4", text) == Answer("", [LS])
    assert read("llama4", f"Ok. {wrapped}{wrapped} Done.", TOOLS) == Answer("Ok.\nDone.", [LS, LS])
    # As the template renders a call with content.
    text = f"<|python_start|>I look.<|python_end|>{call}"
    assert read("llama4", text, TOOLS) == Answer("I look.", [LS])
    text = f"<|python_start|>I look.<|python_end|>\n{call}"
    assert read("llama4", text, TOOLS) == Answer("I look.", [LS])


def test_calls_in_python() -> None:
    calls = [("run", {"cmd": "it's"}), ("now", {})]
    code = """[run(cmd="it's"), now()]"""
    for name in ("llama3", "llama4"):
        assert read(name, code, TOOLS) == Answer("", calls)
        assert read(name, f"Sure.\n\n{code}", TOOLS) == Answer("Sure.", calls)
    for body in (code, code[1:-1], code[:-1], code.replace(", ", "\n")):
        text = f"<|python_start|>{body}<|python_end|>"
        assert read("llama4", text, TOOLS) == Answer("", calls)
    text = "<|python_start|>x = 1\nprint(x)<|python_end|>"
    assert read("llama4", text, TOOLS).content == "x = 1\nprint(x)"


def test_after_the_tag_of_llama_3() -> None:
    tag = "<|python_tag|>"
    assert read("llama3", f"{tag}{JSON}", TOOLS) == Answer("", [LS])
    assert read("llama3", f"{tag}[{JSON}]") == Answer("", [LS])
    search = ("search", {"query": "a, b)", "n": 3})
    assert read("llama3", f'{tag}search.call(query="a, b)", n=3)') == Answer("", [search])
    for code in ("import os\nprint(1)", "x.call(a=f(1))", "x.call(1", '{"a": 1}', "f(a=1)"):
        assert read("llama3", f"{tag}{code}") == Answer("", [("python", {"code": code})])


@pytest.mark.parametrize("frame", ["{}", "```json\n{}\n```", " {} ", "```\n{}```"])
def test_models_without_a_format(frame: str) -> None:
    call = '{"name": "run", "arguments": {"cmd": "ls }"}}'
    for text in (
        call, f"[{call}]", f'{{"tool_calls": [{call}]}}', f'{{"tool_call": {call}}}', f"[{JSON}]",
        f'{{ "tool_calls" : [ {call} ] }}', call.replace('"run"', '"functions.run"'),
    ):  # fmt: skip
        assert read("generic", frame.replace("{}", text), TOOLS) == Answer("", [LS])
    text = f"[{call}, {{}}, {call}]"
    assert read("generic", text, TOOLS) == Answer("{}", [LS, LS], is_malformed=True)
    for text in (f"Use {call}", f"```python\n{call}\n```"):
        assert read("generic", text, TOOLS) == Answer(text, [])
