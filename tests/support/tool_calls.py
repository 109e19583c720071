"""What is read of an answer with tool calls, whole and in pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llama_cffi.chat.formats import get_format

Call = tuple[str, dict[str, Any]]


def tool(name: str, /, **properties: Any) -> dict[str, Any]:
    """Return the definition of a function, whose parameters are optional."""
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def read(form: str, text: str, tools: Sequence[Any] | None) -> tuple[str, list[Call]]:
    """Return the content and the calls; check that splitting and streaming change nothing."""
    results = [_streamed(form, text, tools, size) for size in (len(text) or 1, 1, 3, 7)]
    assert all(result == results[0] for result in results), results
    content, calls = results[0]
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


def _streamed(
    form: str, text: str, tools: Sequence[Any] | None, size: int
) -> tuple[str, list[tuple[str, str]]]:
    stream = get_format(form).stream(tools)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    deltas = [delta for piece in pieces for delta in stream.push(piece)] + stream.finish()
    names: list[str] = []
    arguments: list[str] = []
    for delta in deltas:
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(names):
                names.append(part["function"]["name"])
                arguments.append("")
            arguments[part["index"]] += part["function"]["arguments"]
    message = stream.message
    built = list(zip(names, arguments, strict=True))
    assert built == [(call.name, call.arguments) for call in message.tool_calls]
    assert "".join(delta.get("content", "") for delta in deltas) == message.content
    return message.content, built
