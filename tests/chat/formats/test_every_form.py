"""In every form that models write: every value comes back, and the text around calls is kept."""

from __future__ import annotations

import json
import re

import pytest
from support.answer_forms import FORMS, TOOLS, VALUES, Form
from support.parsed_answers import Answer, Call, read

from llama_cffi.chat.formats import get_format

FORM = pytest.mark.parametrize(
    "form", FORMS, ids=[f"{i}-{form.format}" for i, form in enumerate(FORMS)]
)
CALLS: list[Call] = [("run", {"cmd": "a b", "n": 3, "at": {"k": [None, 1.5]}}), ("now", {})]


@FORM
def test_every_value_comes_back_however_the_answer_is_split(form: Form) -> None:
    for i in range(0, len(VALUES), 8):
        values = VALUES[i : i + 8]
        calls: list[Call] = [
            ("run", {"tags": values, "at": {"k": {"z": values[::-1]}, "y": [True]}}),
            *(("get-it.x", {"q": value}) for value in values),
            ("run", {"cmd": values[0], "n": -3, "x": None}),
            ("now", {}),
        ]
        assert read(form.format, form.write(calls), TOOLS, sizes=(1,)) == Answer("", calls)


@FORM
def test_text_before_and_after_calls_is_kept(form: Form) -> None:
    if form.is_whole:
        return
    before, after = "Let me see: [1] {x}", "Done. [2] {y} 'z'"
    text = form.write(CALLS)
    assert read(form.format, f"{before}\n{text}", TOOLS) == Answer(before, CALLS)
    assert read(form.format, f"{text}\n\n{after}", TOOLS) == Answer(after, CALLS)
    both = read(form.format, f"{before}\n{text}\n\n{after}", TOOLS)
    assert both == Answer(f"{before}\n{after}", CALLS)


@FORM
def test_arguments_are_an_object_wherever_the_answer_stops(form: Form) -> None:
    text = form.write(CALLS)
    halves = {i for token in re.finditer("<[^<>]*>", text) for i in range(*token.span())}
    halves -= {token.start() for token in re.finditer("<[^<>]*>", text)}
    for end in {*range(len(text))} - halves:  # special tokens arrive whole
        answer = read(form.format, text[:end], TOOLS, sizes=())
        names = [name for name, _ in answer.calls]
        # After Llama's tag, what is not a call yet is source code.
        assert names == ["run", "now"][: len(names)] or "python" in names
        for name, arguments in answer.calls:
            if name == "run":
                # What is there is the beginning of what was written.
                assert "a b".startswith(arguments.get("cmd", ""))
                assert str(arguments.get("n", 3)) in ("3", "-")


@FORM
def test_whole_numbers_are_integers_where_the_schema_asks_for_them(form: Form) -> None:
    written: list[Call] = [("run", {"n": 140.0, "at": {"n": 2.0}})]
    message = get_format(form.format).parse(form.write(written), TOOLS)
    (call,) = message.tool_calls
    assert json.loads(call.arguments) == written[0][1]
    assert type(json.loads(call.arguments)["n"]) is int
    assert type(json.loads(call.arguments)["at"]["n"]) is float
