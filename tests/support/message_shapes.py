"""Shapes in which clients send conversations, each with the plain form that means the same.

They come from OpenAI's reference, the packages `openai`, `langchain` and `transformers`, and from
what this package returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from openai.types.chat import ChatCompletionMessage

TOOLS = [
    {"type": "function", "function": {"name": "get_it", "description": "d", "parameters": {
        "type": "object", "properties": {"a": {"type": "string", "description": "x"}},
        "required": ["a"],
    }}}
]  # fmt: skip


class Shape(NamedTuple):
    """A conversation as a client sends it, and its plain form."""

    given: Any
    plain: list[dict[str, Any]]
    has_tools: bool = False


class Role(str, Enum):
    USER = "user"


@dataclass
class Message:
    role: str
    content: str
    name: str | None = None


def text(*texts: str, **more: object) -> list[dict[str, Any]]:
    """Return texts as parts of content."""
    return [{"type": "text", "text": t, **more} for t in texts]


def call(arguments: object, name: str = "get_it", **more: object) -> dict[str, Any]:
    """Return a call, without an id unless one is given."""
    return {**more, "type": "function", "function": {"name": name, "arguments": arguments}}


ID = {"id": "abcdefghi"}
ARGUMENTS = {"a": "Argvalue"}
SYSTEM = {"role": "system", "content": "Systemtext."}
USER = {"role": "user", "content": "Question?"}
AGAIN = {"role": "user", "content": "Another?"}
ANSWER = {"role": "assistant", "content": "Answertext."}
CALL = {"role": "assistant", "content": "", "tool_calls": [call(ARGUMENTS, **ID)]}
RESULT = {"role": "tool", "tool_call_id": ID["id"], "name": "get_it", "content": "Resultvalue"}
THOUGHT = dict.fromkeys(("reasoning_content", "thinking", "reasoning"), "Thoughttext.")
TALK = [USER, ANSWER, AGAIN]
CALLED = [USER, CALL, RESULT]
OPENAI = {"refusal": None, "annotations": [], "audio": None, "function_call": None}


def answered(**changes: object) -> Shape:
    """Return a shape in which the answer has *changes*."""
    return Shape([USER, {**ANSWER, **changes}, AGAIN], TALK)


def called(message: dict[str, Any], **result: object) -> Shape:
    """Return a shape in which *message* calls the tool."""
    return Shape([USER, {"role": "assistant", **message}, {**RESULT, **result}], CALLED, True)


def renamed(call_id: str) -> list[dict[str, Any]]:
    """Return the plain conversation with another id of the call."""
    message = {**CALL, "tool_calls": [call(ARGUMENTS, id=call_id)]}
    return [USER, message, {**RESULT, "tool_call_id": call_id}]


_TWO = [call(ARGUMENTS), call({"b": "Othervalue"}, "other")]
_PLAIN_TWO: list[dict[str, Any]] = [
    USER,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": f"call0000{i + 1}", **c} for i, c in enumerate(_TWO)],
    },
    {"role": "tool", "tool_call_id": "call00001", "name": "get_it", "content": "One"},
    {"role": "tool", "tool_call_id": "call00002", "name": "other", "content": "Two"},
]
_FUNCTION = {"name": "get_it", "arguments": '{"a": "Argvalue"}'}
_NO_ARGUMENTS = [USER, {**CALL, "tool_calls": [call({}, **ID)]}, RESULT]
_REASONED = [USER, {**ANSWER, **THOUGHT}]

SHAPES: dict[str, Shape] = {
    # Roles
    "developer": Shape([{**SYSTEM, "role": "developer"}, USER], [SYSTEM, USER]),
    "developer in parts": Shape(
        [{"role": "developer", "content": text("Systemtext.")}, USER], [SYSTEM, USER]
    ),
    "developer before turns": Shape([{**SYSTEM, "role": "developer"}, *TALK], [SYSTEM, *TALK]),
    "developer late": Shape([*TALK, {**SYSTEM, "role": "developer"}], [*TALK, SYSTEM]),
    "role of an enum": Shape([{**USER, "role": Role.USER}], [USER]),
    "functions": Shape(
        [
            USER,
            {"role": "assistant", "content": None, "function_call": _FUNCTION},
            {"role": "function", "name": "get_it", "content": "Resultvalue"},
        ],
        renamed("call00001"),
        True,
    ),
    # Fields without a value
    "tool_calls empty": answered(tool_calls=[]),
    "tool_calls None": answered(tool_calls=None),
    "function_call None": answered(function_call=None),
    "function_call empty": answered(function_call={}),
    "refusal None": answered(refusal=None),
    "audio None": answered(audio=None),
    "annotations empty": answered(annotations=[]),
    "reasoning None": answered(reasoning_content=None, thinking=None, reasoning=None),
    "reasoning empty": answered(reasoning_content=""),
    "every field of openai": answered(**OPENAI, tool_calls=None),
    "object of openai": Shape(
        [USER, ChatCompletionMessage(role="assistant", content="Answertext."), AGAIN], TALK
    ),
    "name None": Shape([{**USER, "name": None}], [USER]),
    "dataclass": Shape([Message("user", "Question?")], [USER]),
    "tuple": Shape((USER,), [USER]),
    "answer None": Shape(
        [USER, {**ANSWER, "content": None}, AGAIN], [USER, {**ANSWER, "content": ""}, AGAIN]
    ),
    "answer missing": Shape(
        [USER, {"role": "assistant"}, AGAIN], [USER, {**ANSWER, "content": ""}, AGAIN]
    ),
    # Calls
    "content None beside a call": called({**CALL, "content": None}),
    "content missing beside a call": called({"tool_calls": CALL["tool_calls"]}),
    "content in parts beside a call": called({**CALL, "content": text("")}),
    "content without parts beside a call": called({**CALL, "content": []}),
    "arguments as text": called({**CALL, "tool_calls": [call('{"a": "Argvalue"}', **ID)]}),
    "arguments as compact text": called({**CALL, "tool_calls": [call('{"a":"Argvalue"}', **ID)]}),
    "arguments as long text": called(
        {**CALL, "tool_calls": [call('\n{\n  "a": "Argvalue"\n}\n', **ID)]}
    ),
    "what we return": called(
        {"content": None, "tool_calls": [call('{"a": "Argvalue"}', **ID)], **OPENAI}
    ),
    "call of openai": Shape(
        [
            USER,
            ChatCompletionMessage.model_validate(
                {"role": "assistant", "tool_calls": [call('{"a": "Argvalue"}', **ID)]}
            ),
            RESULT,
        ],
        CALLED,
        True,
    ),
    "call from a stream": called(
        {**CALL, "tool_calls": [{"index": 0, **call('{"a": "Argvalue"}', **ID)}]}
    ),
    "call parsed by openai": called(
        {
            "content": None,
            "parsed": None,
            "tool_calls": [
                {**ID, "type": "function", "function": {**_FUNCTION, "parsed_arguments": ARGUMENTS}}
            ],
        }
    ),
    "call without type": called({**CALL, "tool_calls": [{**ID, "function": _FUNCTION}]}),
    "call without function": called({**CALL, "tool_calls": [{**ID, **_FUNCTION}]}),
    "call under both names": called({**CALL, "content": None, "function_call": _FUNCTION}),
    "result without name": called(CALL, name=None),
    "result without id": called(CALL, tool_call_id=None),
    "result in parts": called(CALL, content=text("Resultvalue")),
    "result as str parts": called(CALL, content=["Resultvalue"]),
    "no ids": Shape(
        [
            USER,
            {**CALL, "tool_calls": [call(ARGUMENTS)]},
            {"role": "tool", "content": "Resultvalue"},
        ],
        renamed("call00001"),
        True,
    ),
    "two calls without ids": Shape(
        [
            USER,
            {"role": "assistant", "tool_calls": _TWO},
            {"role": "tool", "content": "One"},
            {"role": "tool", "content": "Two"},
        ],
        _PLAIN_TWO,
        True,
    ),
    "two calls without ids, results by name": Shape(
        [
            USER,
            {"role": "assistant", "tool_calls": _TWO},
            {"role": "tool", "name": "other", "content": "Two"},
            {"role": "tool", "name": "get_it", "content": "One"},
        ],
        [*_PLAIN_TWO[:2], _PLAIN_TWO[3], _PLAIN_TWO[2]],
        True,
    ),
    "arguments None": Shape(
        [USER, {**CALL, "tool_calls": [call(None, **ID)]}, RESULT], _NO_ARGUMENTS, True
    ),
    "arguments empty": Shape(
        [USER, {**CALL, "tool_calls": [call("", **ID)]}, RESULT], _NO_ARGUMENTS, True
    ),
    "arguments null": Shape(
        [USER, {**CALL, "tool_calls": [call("null", **ID)]}, RESULT], _NO_ARGUMENTS, True
    ),
    "arguments missing": Shape(
        [USER, {**CALL, "tool_calls": [{**ID, "function": {"name": "get_it"}}]}, RESULT],
        _NO_ARGUMENTS,
        True,
    ),
    "result None": Shape(
        [USER, CALL, {**RESULT, "content": None}], [USER, CALL, {**RESULT, "content": ""}], True
    ),
    # Parts
    "user in parts": Shape([{**USER, "content": text("Question?")}], [USER]),
    "user as a part": Shape([{**USER, "content": text("Question?")[0]}], [USER]),
    "user as a str part": Shape([{**USER, "content": ["Question?"]}], [USER]),
    "user in a part without type": Shape([{**USER, "content": [{"text": "Question?"}]}], [USER]),
    "user in input_text": Shape(
        [{**USER, "content": [{"type": "input_text", "text": "Question?"}]}], [USER]
    ),
    "user in a part with more": Shape(
        [
            {
                **USER,
                "content": text("Question?", image_url=None, cache_control={"type": "ephemeral"}),
            }
        ],
        [USER],
    ),
    "system in parts": Shape([{**SYSTEM, "content": text("Systemtext.")}, USER], [SYSTEM, USER]),
    "answer in parts": answered(content=text("Answertext.")),
    "answer in output_text": answered(
        content=[{"type": "output_text", "text": "Answertext.", "annotations": []}]
    ),
    "every role in parts": Shape(
        [{**m, "content": text(str(m["content"]))} for m in [SYSTEM, *TALK]], [SYSTEM, *TALK]
    ),
    "refusal": answered(content=None, refusal="Answertext."),
    "refusal as a part": answered(content=[{"type": "refusal", "refusal": "Answertext."}]),
    # Reasoning
    "reasoning": Shape([USER, {**ANSWER, "reasoning": "Thoughttext."}], _REASONED),
    "thinking": Shape([USER, {**ANSWER, "thinking": "Thoughttext."}], _REASONED),
    "reasoning_content": Shape([USER, {**ANSWER, "reasoning_content": "Thoughttext."}], _REASONED),
    "thinking as a part": Shape(
        [
            USER,
            {
                **ANSWER,
                "content": [
                    {"type": "thinking", "thinking": "Thoughttext.", "signature": "x"},
                    *text("Answertext."),
                ],
            },
        ],
        _REASONED,
    ),
    "thinking as a part of parts": Shape(
        [
            USER,
            {
                **ANSWER,
                "content": [
                    {"type": "thinking", "thinking": text("Thoughttext.")},
                    *text("Answertext."),
                ],
            },
        ],
        _REASONED,
    ),
    "reasoning as a part": Shape(
        [
            USER,
            {
                **ANSWER,
                "content": [
                    {"type": "reasoning", "reasoning": "Thoughttext."},
                    *text("Answertext."),
                ],
            },
        ],
        _REASONED,
    ),
}

#: Parts that are not text, as clients send them, and what an error must name.
MEDIA = [
    ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "image_url"),
    ({"type": "image_url", "image_url": "https://example.com/a.png"}, "image_url"),
    ({"type": "input_image", "image_url": "https://example.com/a.png"}, "input_image"),
    ({"type": "image"}, "image"),
    ({"type": "image", "image": "a.png"}, "image"),
    ({"type": "image", "source": {"type": "base64", "data": "AAAA"}}, "image"),
    ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "input_audio"),
    ({"type": "audio", "audio": "a.wav"}, "audio"),
    ({"type": "audio_url", "audio_url": {"url": "https://example.com/a.wav"}}, "audio_url"),
    ({"type": "video", "video": "a.mp4"}, "video"),
    ({"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}, "video_url"),
    ({"type": "file", "file": {"file_id": "x"}}, "file"),
    ({"type": "input_file", "file_id": "x"}, "input_file"),
    ({"type": "document", "source": {"type": "text", "data": "a"}}, "document"),
    ({"image_url": {"url": "https://example.com/a.png"}}, "image_url"),
    ({"image": "a.png"}, "image"),
]
