"""Calls that are JSON objects: ``{"name": ..., "arguments": {...}}``, alone or in a list."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..reader import Reader, Steps, loads
from .base import MarkedFormat, Tool, Tools
from .grammar import LINE, Json, Piece, arguments_schema
from .message import MessageBuilder

__all__ = [
    "HermesFormat",
    "JsonListFormat",
    "NameKeyFormat",
    "call_pieces",
    "known_names",
    "read_arguments",
    "read_call",
]

_NAMES = ("name", "tool_name")
_IDS = ("id", "tool_call_id")
_ARGUMENTS = ("arguments", "parameters")
_BARE_KEYS = ("type", "name", "id", *_ARGUMENTS)


def known_names(tools: Tools | None) -> set[str] | None:
    """Return the names of what was offered, or None where that is not known."""
    return None if tools is None else {tool["function"]["name"] for tool in tools}


def read_arguments(reader: Reader, out: MessageBuilder) -> Steps[bool]:
    """Read the arguments of the call that was begun; return whether they ended.

    A string that holds JSON, as OpenAI's own calls have it, is taken out of its quotes.
    """
    first = yield from reader.available(1)
    if first == "{":
        return (yield from reader.json(out.arguments))
    text = yield from reader.json_text()
    out.arguments(_unquoted(text or ""))
    return text is not None


def _unquoted(text: str) -> str:
    value = loads(text)
    return value if isinstance(value, str) else "{}" if text in ("", "null") else text


def read_call(
    reader: Reader, out: MessageBuilder, names: set[str] | None = None, is_bare: bool = False
) -> Steps[bool]:
    """Read one call.

    Args:
        reader: At the place where it may begin.
        out: Gets the call, as soon as its name and the beginning of its arguments are known.
        names: Where the call is bare: those that may be called, None for any.
        is_bare: Nothing marks the JSON as a call: its keys and its name have to.

    Returns:
        Whether a call was begun. If not, *out* was not changed.
    """
    if not (yield from reader.literal("{")):
        return False
    name: str | None = None
    call_id: str | None = None
    held: str | None = None
    begun = ended = False
    while True:
        yield from reader.space()
        if (yield from reader.literal("}")):
            ended = True
            break
        key = loads((yield from _string(reader)) or "")
        yield from reader.space()
        if not isinstance(key, str) or not (yield from reader.literal(":")):
            break
        if is_bare and (key not in _BARE_KEYS):
            return False
        yield from reader.space()
        if key in _ARGUMENTS and name is not None and not begun:
            if (yield from reader.available(1)) == "":
                break
            reader.release()
            out.begin_call(name, call_id)
            begun = True
            if not (yield from read_arguments(reader, out)):
                break
        else:
            text = yield from reader.json_text()
            if text is None:
                break
            if key in _ARGUMENTS:
                held = text
            elif key in (*_NAMES, *_IDS):
                value = loads(text)
                if key in _NAMES:
                    if not isinstance(value, str) or not value:
                        break
                    name = value
                    if is_bare and names is not None and name not in names:
                        return False
                elif value is not None:
                    call_id = str(value)
        yield from reader.space()
        yield from reader.literal(",")
    if not begun and ended and name and not (is_bare and held is None):
        out.begin_call(name, call_id)
        out.arguments(_unquoted(held or ""))
        begun = True
    if begun:
        out.end_call()
    return begun


def _string(reader: Reader) -> Steps[str | None]:
    if (yield from reader.available(1)) != '"':
        return None
    return (yield from reader.json_text())


def call_pieces(tool: Tool, arguments: str = "arguments") -> Sequence[Piece]:
    """Describe a call in JSON, *arguments* being the key for them."""
    name = json.dumps(tool["function"]["name"])
    return f'{{"name": {name}, "{arguments}": ', Json(arguments_schema(tool)), "}"


class HermesFormat(MarkedFormat):
    """Hermes 2 Pro and 3, Qwen 2.5 and 3, and others: each call between tags."""

    name = "hermes"
    marks = ("<tool_call>",)
    triggers = ("<tool_call>",)

    def _read_calls(
        self, marker: str, reader: Reader, out: MessageBuilder, tools: Tools | None
    ) -> Steps[None]:
        yield from reader.space()
        if (yield from read_call(reader, out)):
            yield from reader.space()
            yield from reader.literal("</tool_call>")

    def _around(self) -> tuple[str, str, str]:
        return "", "\n", ""

    def _call(self, tool: Tool) -> Sequence[Piece]:
        return "<tool_call>", LINE, *call_pieces(tool), LINE, "</tool_call>"


class JsonListFormat(MarkedFormat):
    """A marker, a JSON list of calls or a single one, and perhaps a marker that ends it.

    Args:
        name: Of the format.
        marks: What its templates hold.
        triggers: Markers; the first is the one for grammars.
        end: The marker after the list, or nothing.
        brackets: Around the calls.
        separator: Between two calls.
        layout: A call: what is before its name and its arguments, and its end.
        id_key: What is before an id, which stands first, or nothing.
        reasoning: The markers of a thought.
        content: Markers around an answer in words; the first may be empty.
        is_parallel: Whether there may be several calls.
    """

    def __init__(
        self,
        name: str,
        marks: tuple[str, ...],
        triggers: tuple[str, ...],
        end: str = "",
        *,
        brackets: tuple[str, str] = ("[", "]"),
        separator: str = ", ",
        layout: tuple[str, str, str] = ('{"name": ', ', "arguments": ', "}"),
        id_key: str = "",
        reasoning: tuple[str, str] = ("<think>", "</think>"),
        content: tuple[str, ...] = (),
        is_parallel: bool = True,
    ) -> None:
        self.name = name
        self.marks = marks
        self.triggers = triggers
        self.reasoning = reasoning
        self.content_marks = tuple(filter(None, content))
        self.content_head = content[0] if content else ""
        self.is_parallel = is_parallel
        self._end = end
        self._brackets = brackets
        self._separator = separator
        self._layout = layout
        self._id_key = id_key

    def _read_calls(
        self, marker: str, reader: Reader, out: MessageBuilder, tools: Tools | None
    ) -> Steps[None]:
        yield from reader.space()
        is_list = yield from reader.literal("[")
        while True:
            yield from reader.space()
            if not (yield from self._read_one(reader, out)):
                break
            yield from reader.space()
            if is_list and not (yield from reader.literal(",")):
                break
            if not is_list and not self._separator.isspace():
                break
        yield from reader.space()
        yield from reader.literal("]")
        yield from reader.space()
        if self._end:
            yield from reader.literal(self._end)

    def _read_one(self, reader: Reader, out: MessageBuilder) -> Steps[bool]:
        """Read a call."""
        return (yield from read_call(reader, out))

    def _around(self) -> tuple[str, str, str]:
        before, after = self._brackets
        return f"{self.triggers[0]}{before}", self._separator, f"{after}{self._end}"

    def _call(self, tool: Tool) -> Sequence[Piece]:
        before, between, end = self._layout
        name = json.dumps(tool["function"]["name"])
        call = f"{before}{name}{between}", Json(arguments_schema(tool)), end
        if not self._id_key:
            return call
        return self._id_key, Json({"enum": [str(i) for i in range(20)]}), *call


class NameKeyFormat(JsonListFormat):
    """Calls in a list whose only key is the name: ``[{"name": {...}}]``."""

    def _read_one(self, reader: Reader, out: MessageBuilder) -> Steps[bool]:
        if not (yield from reader.literal("{")):
            return False
        yield from reader.space()
        name = loads((yield from _string(reader)) or "")
        yield from reader.space()
        if not isinstance(name, str) or not name or not (yield from reader.literal(":")):
            return False
        yield from reader.space()
        if (yield from reader.available(1)) != "{":
            return False
        reader.release()
        out.begin_call(name)
        ended = yield from read_arguments(reader, out)
        out.end_call()
        yield from reader.space()
        yield from reader.literal("}")
        return ended

    def _call(self, tool: Tool) -> Sequence[Piece]:
        name = json.dumps(tool["function"]["name"])
        return f"{{{name}: ", Json(arguments_schema(tool)), "}"
