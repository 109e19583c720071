"""Answers of models, parsed whole and in pieces, as a client of the stream sees them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from llama_cffi.chat.formats import get_format

#: A call: the function's name and its arguments.
Call = tuple[str, dict[str, Any]]


class Answer(NamedTuple):
    """A parsed answer.

    Attributes:
        content: The text.
        calls: The calls in order.
        reasoning: The reasoning.
        is_malformed: Whether a call could not be parsed.
    """

    content: str
    calls: list[Call]
    reasoning: str = ""
    is_malformed: bool = False


def tool(name: str, /, **properties: Any) -> dict[str, Any]:
    """Return the definition of a tool with *properties*, none of them required."""
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def read(form: str, text: str, tools: Any = None, sizes: Iterable[int] = (1, 2, 3, 7)) -> Answer:
    """Parse *text* whole and in pieces of *sizes* characters; all must give the same answer.

    The deltas alone must build the message, and the arguments of every call must be an object.
    """
    answers = [_read(form, [text], tools)]
    for size in sizes:
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        answers.append(_read(form, pieces, tools))
    assert all(answer == answers[0] for answer in answers), (text, answers)
    return answers[0]


def _read(form: str, pieces: Iterable[str], tools: Any) -> Answer:
    stream = get_format(form).stream(tools)
    deltas = [delta for piece in pieces for delta in stream.push(piece)] + stream.finish()
    message = stream.message
    texts = {"content": "", "reasoning_content": ""}
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for key in texts:
            texts[key] += delta.get(key, "")
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                calls.append({"id": part["id"], **part["function"]})
            else:
                assert part["index"] == len(calls) - 1
                calls[-1]["arguments"] += part["function"]["arguments"]
    assert texts == {
        "content": message.content,
        "reasoning_content": message.reasoning_content,
    }
    assert calls == [
        {"id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    ]
    assert len({call["id"] for call in calls}) == len(calls)
    parsed = [(call["name"], json.loads(call["arguments"])) for call in calls]
    assert all(isinstance(arguments, dict) for _, arguments in parsed)
    return Answer(message.content, parsed, message.reasoning_content, message.is_malformed)
