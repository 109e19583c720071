"""The result of parsing an answer: a message, its tool calls, and the deltas that build it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from .arguments import ArgumentsWriter
from .syntax import Tools, arguments_schema, function_name

__all__ = ["Delta", "MessageBuilder", "ParsedMessage", "ToolCall"]

#: OpenAI's ``choices[0].delta``: one of ``content``, ``reasoning_content`` and ``tool_calls``.
Delta = dict[str, Any]


@dataclass
class ToolCall:
    """One call.

    Attributes:
        name: Name of the function; not necessarily one that was offered.
        arguments: A JSON object, as the model wrote it as far as that was JSON; see
            `ArgumentsWriter`. While the answer arrives, only its beginning.
        id: The model's own id, else nine hexadecimal digits, the length that Mistral's templates
            require.
        is_complete: Whether the model wrote a whole JSON object.
    """

    name: str
    arguments: str = ""
    id: str = ""
    is_complete: bool = False

    def to_dict(self) -> dict[str, object]:
        """Return the call in OpenAI's shape, as messages for templates have it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass
class ParsedMessage:
    """A whole answer.

    Attributes:
        content: The text, without white space next to calls; a line break stands between text
            before and after a call.
        reasoning_content: The reasoning before it.
        tool_calls: The calls in order.
        is_malformed: Whether a call began that could not be parsed. Its text is part of the
            content, or one of the calls is not complete.
    """

    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    is_malformed: bool = False

    def to_dict(self) -> dict[str, object]:
        """Return OpenAI's message; ``content`` is None if there are calls and no text."""
        message: dict[str, object] = {"role": "assistant", "content": self.content}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["content"] = self.content or None
            message["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        return message


class MessageBuilder:
    """Collects a message and its pending deltas.

    Args:
        tools: The tools that were offered; None: unknown.

    Attributes:
        calls: The calls so far.
        has_content: Whether there is content so far.
        has_reasoning: Whether there is reasoning so far.
    """

    def __init__(self, tools: Tools | None = None) -> None:
        self._schemas = {function_name(tool): arguments_schema(tool) for tool in tools or ()}
        self.calls: list[ToolCall] = []
        self.has_content = False
        self.has_reasoning = False
        # Lists, because a str that grows by each token would be copied for each token.
        self._parts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
        self._arguments: list[str] = []
        self._writer: ArgumentsWriter | None = None  # of the call that has not ended
        self._ids: set[str] = set()
        self._is_malformed = False
        self._deltas: list[Delta] = []
        self._rest: list[str] = []  # of the text of the last delta
        # At the end of the content; dropped unless more content follows. In parts, because a model
        # may write spaces for ever.
        self._space: list[str] = []
        self._after_call = False

    def message(self) -> ParsedMessage:
        """Return the message so far."""
        self._join()
        texts = {key: "".join(parts) for key, parts in self._parts.items()}
        return ParsedMessage(tool_calls=self.calls, is_malformed=self._is_malformed, **texts)

    def take(self) -> list[Delta]:
        """Return the pending deltas; adjacent ones of the same kind are merged."""
        self._settle()
        taken, self._deltas = self._deltas, []
        return taken

    def reasoning(self, text: str) -> None:
        """Append to the reasoning."""
        if text:
            self.has_reasoning = True
            self._text("reasoning_content", text)

    def content(self, text: str) -> None:
        """Append to the content; white space at its end is pending, and dropped next to a call."""
        if self._after_call:
            text = text.lstrip()
        kept = text.rstrip()
        if kept:
            self._after_call = False
            self.has_content = True
            self._text("content", "".join((*self._space, kept)))
            self._space.clear()
        self._space.append(text[len(kept) :])

    def malformed(self, text: str = "") -> None:
        """Record a call that could not be parsed; its text becomes content."""
        self._is_malformed = True
        self.content(text)

    def begin_call(self, name: str, call_id: str | None = None) -> None:
        """Begin a call; it stays a call even if its arguments are not JSON, which are dropped."""
        if not call_id or call_id in self._ids:
            call_id = secrets.token_hex(5)[:9]
        self._ids.add(call_id)
        call = ToolCall(name, id=call_id)
        self._space = ["\n"] if self.has_content else []
        self._after_call = True
        self.calls.append(call)
        function = {"name": name, "arguments": ""}
        self._call({"id": call.id, "type": "function", "function": function})
        self._writer = ArgumentsWriter(self._schemas.get(name))

    def arguments(self, text: str) -> None:
        """Append what the model wrote to the arguments of the last call."""
        if self._writer:
            self._write(self._writer.push(text))

    def end_call(self) -> None:
        """End the last call and complete its arguments."""
        if self._writer:
            self._write(self._writer.close())
            self.calls[-1].is_complete = self._writer.is_complete
            self._is_malformed |= not self._writer.is_complete
            self._writer = None
            self._join()

    def _write(self, text: str) -> None:
        if not text:
            return
        self._arguments.append(text)
        if not self._is_last("tool_calls"):
            self._call({"function": {"arguments": ""}})
        self._rest.append(text)

    def finish(self) -> None:
        """End a call that has not ended, and emit the white space at the end of the content."""
        self.end_call()
        if any(self._space) and not self._after_call:
            self._text("content", "".join(self._space))
            self._space.clear()

    def _join(self) -> None:
        if self._arguments:
            self.calls[-1].arguments += "".join(self._arguments)
            self._arguments.clear()

    def _is_last(self, key: str) -> bool:
        return bool(self._deltas) and key in self._deltas[-1]

    def _text(self, key: str, text: str) -> None:
        self._parts[key].append(text)
        if not self._is_last(key):
            self._settle()
            self._deltas.append({key: ""})
        self._rest.append(text)

    def _call(self, part: Delta) -> None:
        self._settle()
        index = len(self.calls) - 1
        self._deltas.append({"tool_calls": [{"index": index, **part}]})

    def _settle(self) -> None:
        """Complete the text of the last delta."""
        if self._rest:
            delta = self._deltas[-1]
            calls = delta.get("tool_calls")
            texts, key = (
                (calls[0]["function"], "arguments") if calls else (delta, next(iter(delta)))
            )
            texts[key] += "".join(self._rest)
            self._rest.clear()
