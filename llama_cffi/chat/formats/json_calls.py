"""Calls that are JSON objects: ``{"name": ..., "arguments": {...}}``, alone or in a list."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..scanner import Parser, Scanner, loads
from .base import MarkedFormat
from .message import MessageBuilder
from .syntax import LINE, Element, Json, Tool, Tools, arguments_schema, function_name

__all__ = [
    "HermesFormat",
    "JsonListFormat",
    "NameKeyFormat",
    "call_elements",
    "known_names",
    "parse_arguments",
    "parse_call",
]

_NAMES = ("name", "tool_name")
_IDS = ("id", "tool_call_id")
_ARGUMENTS = ("arguments", "parameters")
_BARE_KEYS = ("type", "name", "id", *_ARGUMENTS)


def known_names(tools: Tools | None) -> set[str] | None:
    """Return the names of the tools that were offered; None if unknown."""
    return None if tools is None else {function_name(tool) for tool in tools}


def parse_arguments(scanner: Scanner, out: MessageBuilder) -> Parser[bool]:
    """Parse the arguments of the current call; return whether they ended.

    JSON inside a string, as in OpenAI's own calls, is unquoted.
    """
    first = yield from scanner.available(1)
    if first == "{":
        return (yield from scanner.json(out.arguments))
    text = yield from scanner.json_text()
    out.arguments(_unquoted(text or ""))
    return text is not None


def _unquoted(text: str) -> str:
    value = loads(text)
    return value if isinstance(value, str) else "{}" if text in ("", "null") else text


def parse_call(
    scanner: Scanner, out: MessageBuilder, names: set[str] | None = None, is_bare: bool = False
) -> Parser[bool]:
    """Parse one call.

    Args:
        scanner: At the position where a call may begin.
        out: Receives the call as soon as its name and the beginning of its arguments are known.
        names: The functions that a bare call may name; None: any.
        is_bare: Whether no marker precedes the JSON, so that its keys and name must identify it.

    Returns:
        Whether a call began. If not, *out* is unchanged.
    """
    if not (yield from scanner.literal("{")):
        return False
    name: str | None = None
    call_id: str | None = None
    arguments: str | None = None  # those that precede the name
    begun = ended = False
    while True:
        yield from scanner.space()
        if (yield from scanner.literal("}")):
            ended = True
            break
        key = loads((yield from _string(scanner)) or "")
        yield from scanner.space()
        if not isinstance(key, str) or not (yield from scanner.literal(":")):
            break
        if is_bare and (key not in _BARE_KEYS):
            return False
        yield from scanner.space()
        if key in _ARGUMENTS and name is not None and not begun:
            if (yield from scanner.available(1)) == "":
                break
            scanner.commit()
            out.begin_call(name, call_id)
            begun = True
            if not (yield from parse_arguments(scanner, out)):
                break
        else:
            text = yield from scanner.json_text()
            if text is None:
                break
            if key in _ARGUMENTS:
                arguments = text
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
        yield from scanner.space()
        yield from scanner.literal(",")
    if not begun and ended and name and not (is_bare and arguments is None):
        out.begin_call(name, call_id)
        out.arguments(_unquoted(arguments or ""))
        begun = True
    if begun:
        out.end_call()
    return begun


def _string(scanner: Scanner) -> Parser[str | None]:
    if (yield from scanner.available(1)) != '"':
        return None
    return (yield from scanner.json_text())


def call_elements(tool: Tool, arguments: str = "arguments") -> Sequence[Element]:
    """Return the syntax of a call in JSON, with *arguments* as the key of the arguments."""
    name = json.dumps(function_name(tool))
    return f'{{"name": {name}, "{arguments}": ', Json(arguments_schema(tool)), "}"


class HermesFormat(MarkedFormat):
    """Hermes 2 Pro and 3, Qwen 2.5 and 3, and others: a pair of tags around each call."""

    name = "hermes"
    template_markers = ("<tool_call>",)
    triggers = ("<tool_call>",)

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        yield from scanner.space()
        if (yield from parse_call(scanner, out)):
            yield from scanner.space()
            yield from scanner.literal("</tool_call>")

    def _around(self) -> tuple[str, str, str]:
        return "", "\n", ""

    def _call(self, tool: Tool) -> Sequence[Element]:
        return "<tool_call>", LINE, *call_elements(tool), LINE, "</tool_call>"


class JsonListFormat(MarkedFormat):
    """A marker, then one call or a JSON list of calls, then optionally an end marker.

    Args:
        name: Name of the format.
        template_markers: See `ToolFormat`.
        triggers: The markers; grammars use the first.
        end: The end marker, or "".
        brackets: The text before and after the list.
        separator: The text between two calls.
        layout: The text of a call before its name, between name and arguments, and at its end.
        id_key: The text before an id, which then comes first, or "".
        reasoning: The markers before and after reasoning.
        content: Markers around a text answer; the first may be empty.
        is_parallel: Whether there may be several calls.
    """

    def __init__(
        self,
        name: str,
        template_markers: tuple[str, ...],
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
        self.template_markers = template_markers
        self.triggers = triggers
        self.reasoning = reasoning
        self.content_markers = tuple(filter(None, content))
        self.content_head = content[0] if content else ""
        self.is_parallel = is_parallel
        self._end = end
        self._brackets = brackets
        self._separator = separator
        self._layout = layout
        self._id_key = id_key

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        yield from scanner.space()
        is_list = yield from scanner.literal("[")
        while True:
            yield from scanner.space()
            if not (yield from self._parse_one(scanner, out)):
                break
            yield from scanner.space()
            if is_list and not (yield from scanner.literal(",")):
                break
            if not is_list and not self._separator.isspace():
                break
        yield from scanner.space()
        yield from scanner.literal("]")
        yield from scanner.space()
        if self._end:
            yield from scanner.literal(self._end)

    def _parse_one(self, scanner: Scanner, out: MessageBuilder) -> Parser[bool]:
        """Parse one call; return whether one began."""
        return (yield from parse_call(scanner, out))

    def _around(self) -> tuple[str, str, str]:
        before, after = self._brackets
        return f"{self.triggers[0]}{before}", self._separator, f"{after}{self._end}"

    def _call(self, tool: Tool) -> Sequence[Element]:
        before, between, end = self._layout
        name = json.dumps(function_name(tool))
        call = f"{before}{name}{between}", Json(arguments_schema(tool)), end
        if not self._id_key:
            return call
        return self._id_key, Json({"enum": [str(i) for i in range(20)]}), *call


class NameKeyFormat(JsonListFormat):
    """A list of calls whose only key is the function's name: ``[{"name": {...}}]``."""

    def _parse_one(self, scanner: Scanner, out: MessageBuilder) -> Parser[bool]:
        if not (yield from scanner.literal("{")):
            return False
        yield from scanner.space()
        name = loads((yield from _string(scanner)) or "")
        yield from scanner.space()
        if not isinstance(name, str) or not name or not (yield from scanner.literal(":")):
            return False
        yield from scanner.space()
        if (yield from scanner.available(1)) != "{":
            return False
        scanner.commit()
        out.begin_call(name)
        ended = yield from parse_arguments(scanner, out)
        out.end_call()
        yield from scanner.space()
        yield from scanner.literal("}")
        return ended

    def _call(self, tool: Tool) -> Sequence[Element]:
        name = json.dumps(function_name(tool))
        return f"{{{name}: ", Json(arguments_schema(tool)), "}"
