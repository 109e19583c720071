"""Answers of the demo model: calls, reasoning and text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_cffi import Engine
from llama_cffi.chat.families import identify
from llama_cffi.chat.formats import ParsedMessage, get_format
from llama_cffi.demo import model_path, recorded_path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tools.train_demo import conversations, evaluate, template

FORM = identify({"general.name": "llama_cffi demo"}, "", template.CHAT_TEMPLATE).tool_format


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(model_path(), n_ctx=evaluate.N_CTX, n_threads=1, n_gpu_layers=0) as opened:
        yield opened


def answered(engine: Engine, question: conversations.Conversation) -> ParsedMessage:
    """Generate an answer and parse it, token by token as a stream does, and as a whole."""
    text = evaluate.answer(engine, question)
    tokens = engine.tokenize(text, add_special=False, parse_special=True)
    stream = FORM.stream(question.tools)
    for token in tokens:
        stream.push(engine.detokenize([token]))
    stream.finish()
    whole = FORM.parse(text, question.tools)
    for call, same in zip(whole.tool_calls, stream.message.tool_calls, strict=True):
        same.id = call.id
    assert stream.message == whole
    return whole


def test_family() -> None:
    family = identify({"general.name": "llama_cffi demo"}, "x.gguf", template.CHAT_TEMPLATE)
    assert (family.name, family.tool_format) == ("demo", get_format("hermes"))
    assert (family.tag(True), family.tag(False), family.tag()) == ("/think", "", "")


@pytest.mark.parametrize("kind", ["tool_call", "tool_choice"])
def test_held_out_requests_are_calls(engine: Engine, kind: str) -> None:
    right = 0
    questions = evaluate.questions(kind, 20, seed=11)
    for question in questions:
        expected = FORM.parse(question.answers[0]).tool_calls
        message = answered(engine, question)
        found = [(call.name, json.loads(call.arguments)) for call in message.tool_calls]
        right += found == [(call.name, json.loads(call.arguments)) for call in expected]
        assert message.content == ""
        assert not message.is_malformed
    assert right >= 0.95 * len(questions)


def test_questions_that_need_no_tool_get_a_text_answer(engine: Engine) -> None:
    for question in evaluate.questions("tool_plain", 5, seed=11):
        message = answered(engine, question)
        assert message.content
        assert message.tool_calls == []


def test_reasoning(engine: Engine) -> None:
    for question in evaluate.questions("think", 5, seed=11):
        message = answered(engine, question)
        assert message.reasoning_content.endswith(message.content)
        assert "<" not in message.reasoning_content + message.content


def test_the_recorded_answer_is_content() -> None:
    text = json.loads(recorded_path().read_text(encoding="utf-8"))["text"]
    assert FORM.parse(text).content == text
