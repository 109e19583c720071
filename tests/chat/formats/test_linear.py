"""Reading what a model writes costs work in proportion to its length, in every format.

Work is counted, not timed: calls, and the characters of the texts that they return.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

import pytest

from llama_cffi.chat.formats import FORMATS, get_format
from llama_cffi.chat.formats.arguments import ArgumentsWriter
from llama_cffi.chat.formats.message import MessageBuilder
from llama_cffi.schema import types_within

_STRIPS = ("strip", "lstrip", "rstrip")
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "string"},
                    "b": {"type": "object"},
                    "code": {"type": "string"},
                },
            },
        },
    }
]


def work(read: Callable[[], object]) -> int:
    """Return the calls that *read* makes, and the characters that they return or strip."""
    steps = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal steps
        steps += 1
        if event == "return" and isinstance(arg, str):
            steps += len(arg)
        elif event == "c_call" and getattr(arg, "__name__", "") in _STRIPS:
            steps += len(getattr(arg, "__self__", ""))

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        read()
    finally:
        sys.setprofile(before)
    return steps


def stream(form: str, text: str, size: int = 1) -> str:
    parser = get_format(form).stream(_TOOLS)
    for start in range(0, len(text), size):
        parser.push(text[start : start + size])
    parser.finish()
    return parser.message.content or ""


def growth(
    form: str, size: int, before: str, unit: str, after: str = "", length: int = 1_000
) -> float:
    """Return how many times the work is for *unit* eight times as often."""
    costs = []
    for n in (length, 8 * length):
        text = before + (unit * (n // len(unit) + 1))[:n] + after
        costs.append(work(partial(stream, form, text, size or len(text))))
    return costs[1] / costs[0]


@pytest.mark.parametrize("form", FORMATS)
def test_calls_that_do_not_end_cost_the_same_at_every_length(form: str) -> None:
    marker = (*get_format(form).triggers, "")[0]
    for unit in ('{"name": "f", "arguments": {"a": "x', "[{"):
        assert growth(form, 0, "", marker + unit) <= 12, unit


@pytest.mark.parametrize("form", FORMATS)
def test_spaces_and_beginnings_of_markers_cost_the_same_each(form: str) -> None:
    marker = (*get_format(form).triggers, "<tool_call>")[0]
    for unit in (" ", marker[:-1]):
        assert growth(form, 1, "x", unit, "y", length=250) <= 12, unit
    text = "x" + " " * 500 + "y"
    assert stream(form, text) == text


_QWEN = "<tool_call>\n<function=f>\n<parameter=a>\nx"
_M3 = "]<]minimax[>["
_M3_CALL = f'{_M3}<tool_call>{_M3}<invoke name="f">'
_VAIN = {
    "a call that is none in the end": ("gemma-tool-code", "", '```tool_code\nf(a="x', '", b=+)'),
    "items that are no calls": ("lfm2", "<|tool_call_start|>[", 'f(a="x"y), ', ""),
    "lists on lines": ("lfm2", "", '\n[f(a="x', '", b=+)'),
    "objects without a name": ("hermes", "", '<tool_call>{"x": "a', '"}.'),
    "objects that do not end": ("hermes", "", "<tool_call>[{!", ""),
    "more members": ("mistral", "", '[TOOL_CALLS]{"name": "f", "arguments": {}, "x": [', ""),
    "messages": ("harmony", "", '<|channel|>commentary to=functions.f<|message|>"x', ""),
    "recipients": ("functionary-v3.2", "", '>>>f\n"x', ""),
    "tags": ("llama3", "", '<|python_tag|>{"x": "a<|eom_id|>', ""),
    "values that begin like JSON": (
        "qwen3-coder",
        "",
        "<tool_call>\n<function=f>\n<parameter=b>\n{\n</parameter>\n</function>\n</tool_call>\n",
        "",
    ),
    "keys without ends": ("qwen3-coder", _QWEN, "\n<parameter=code>", ""),
    "the tag of a key": ("qwen3-coder", _QWEN, "<parameter=", ""),
    "calls in a text": ("minimax-m3", f"{_M3_CALL}{_M3}<a>x", f'{_M3}<invoke name="f">', ""),
    "ends in a text": ("minimax-m3", f"{_M3_CALL}{_M3}<a>x", f"{_M3}</invoke>", f"{_M3}</a>"),
    "tags without names": ("minimax-m3", _M3_CALL, f"{_M3}x", ""),
    "numbers in lists": ("hermes", '<tool_call>{"name": "f", "arguments": {"b": [', "1,", ""),
}


@pytest.mark.parametrize("size", [0, 3], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", _VAIN)
def test_what_is_read_in_vain_costs_the_same_at_every_length(
    monkeypatch: pytest.MonkeyPatch, case: str, size: int
) -> None:
    # Fewer, so that short texts show that it is bounded.
    monkeypatch.setattr("llama_cffi.chat.scanner._MAX_REREAD", 4)
    form, before, unit, after = _VAIN[case]
    assert growth(form, size, before, unit, after) <= 12


def test_a_call_after_others_that_do_not_end_is_found() -> None:
    call = '<tool_call>{"name": "f", "arguments": {"a": "x"}}</tool_call>'
    text = "<tool_call>[{!" * 20 + call
    assert [found.name for found in get_format("hermes").parse(text).tool_calls] == ["f"]
    assert stream("hermes", text) == "<tool_call>[{!" * 20


def test_deltas_are_joined_once() -> None:
    def build(n: int) -> None:
        out = MessageBuilder()
        for _ in range(n):
            out.content("text")
        out.begin_call("f")
        for _ in range(n):
            out.arguments("[1, ")
        assert len(out.take()) == 2

    assert work(lambda: build(800)) <= 12 * work(lambda: build(100))


def test_brackets_are_written_in_the_same_work_at_every_depth() -> None:
    def write(depth: int) -> None:
        writer = ArgumentsWriter()
        writer.push('{"a": ' + "[" * depth)
        for _ in range(500):
            writer.push("1,")

    assert work(lambda: write(180)) <= 2 * work(lambda: write(1))


def test_types_within_a_schema_that_names_itself_twice() -> None:
    items = {"items": {"$ref": "#/$defs/a"}}
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"}, items, items]}}}
    cost = work(lambda: types_within(schema, [None] * 10))
    assert work(lambda: types_within(schema, [None] * 80)) <= 12 * cost
