"""Calls that are JSON objects: ``{"name": ..., "arguments": {...}}``, alone or in a list."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from ..scanner import Parser, Scanner, loads
from .base import MarkedFormat
from .message import MessageBuilder
from .syntax import LINE, Element, Json, Tool, Tools, arguments_schema, call_schema, function_name
from .values import ValueReader, normalised

__all__ = [
    "HermesFormat",
    "JsonListFormat",
    "NameKeyFormat",
    "call_elements",
    "known_names",
    "offered_name",
    "parse_arguments",
    "parse_call",
    "parse_calls",
    "parse_end",
]

_NAMES = ("name", "tool_name", "function")
_IDS = ("id", "tool_call_id")
_ARGUMENTS = ("arguments", "parameters")
_BARE_KEYS = ("type", "name", "id", "function", *_ARGUMENTS)
_WORD = re.compile(r"\w*")
_EXTRA = re.compile(r"[\s}\]]*")
_FENCES = ("```json", "```")


def known_names(tools: Tools | None) -> set[str] | None:
    """Return the names of the tools that were offered; None if unknown."""
    return None if tools is None else {function_name(tool) for tool in tools}


def offered_name(name: str, tools: Tools | None) -> str:
    """Return the name of the function that a model means by *name*.

    Models add or omit namespaces (`functions.f`, `server:f`) and numbers (`f:0`). If no offered
    name fits, *name* stays as it is.
    """
    names = known_names(tools) or ()
    bare = re.sub(r"[:.]\d+$", "", name)
    without_prefix = re.sub(r"^functions[.:_]?", "", bare)
    shorter = (bare, without_prefix, bare.rpartition(":")[2], bare.rpartition(".")[2])
    return next((known for known in (name, *shorter) if known in names), name)


def parse_arguments(
    scanner: Scanner,
    out: MessageBuilder,
    name: str,
    call_id: str | None = None,
    tools: Tools | None = None,
    ends: Sequence[str] = (),
) -> Parser[bool]:
    """Parse the arguments of a call; with their beginning, the call begins.

    Besides an object, they may be nothing, null, an object in a list, or JSON in a string, as in
    OpenAI's own calls.

    Args:
        scanner: At the position of the arguments.
        out: Receives the call.
        name: Name of the function.
        call_id: The model's own id.
        tools: The tools that were offered; None: unknown.
        ends: The markers that end the call.

    Returns:
        Whether they are arguments. If not, *out* is unchanged.
    """
    name = offered_name(name, tools)
    schema = call_schema(name, tools)
    if (yield from scanner.available(1)) == "{":
        scanner.commit()
        out.begin_call(name, call_id)
        reader = ValueReader(scanner, out.arguments, schema, ends=ends)
        yield from reader.value()
        out.end_call()
        return True
    text = "{}"
    if not (yield from scanner.literal("null", "None")):
        is_missing = yield from scanner.peek(scanner.literal("}", ",", *ends))
        text = "{}" if is_missing else (yield from _value(scanner, ends)) or ""
    arguments = _as_object(text)
    if arguments is None:
        return False
    scanner.commit()
    out.begin_call(name, call_id)
    out.arguments(arguments)
    out.end_call()
    return True


def _as_object(text: str) -> str | None:
    """Return the object that arguments, given as JSON, stand for; None if there is none."""
    value = loads(text)
    if text == "null":
        return "{}"
    if isinstance(value, str):
        inner = value.strip()
        if inner[:1] not in ("{", "[", '"'):
            return None if inner else "{}"
        return _as_object(normalised(inner) or "")
    if isinstance(value, list) and len(value) < 2:
        value = value[0] if value else {}
        text = json.dumps(value, ensure_ascii=False)
    return text if isinstance(value, dict) else None


def _value(scanner: Scanner, ends: Sequence[str] = ()) -> Parser[str | None]:
    """Return a value as JSON; None if it does not end."""
    parts: list[str] = []
    ended = yield from ValueReader(scanner, parts.append, ends=ends).value()
    return "".join(parts) if ended else None


def parse_call(
    scanner: Scanner,
    out: MessageBuilder,
    tools: Tools | None = None,
    ends: Sequence[str] = (),
    is_bare: bool = False,
) -> Parser[bool]:
    """Parse one call.

    Args:
        scanner: At the position where a call may begin.
        out: Receives the call as soon as its name and the beginning of its arguments are known.
        tools: The tools that were offered; None: unknown.
        ends: The markers that end the call.
        is_bare: Whether no marker precedes the JSON, so that its keys and its name, which must be
            that of an offered tool, identify it.

    Returns:
        Whether a call began. If not, *out* is unchanged.
    """
    if not (yield from scanner.literal("{")):
        return False
    name: str | None = None
    call_id: str | None = None
    arguments: str | None = None  # those that precede the name
    others: dict[str, object] = {}
    ended = False
    while True:
        yield from scanner.space()
        if (yield from scanner.literal("}")):
            ended = True
            break
        key = yield from _key(scanner)
        if key is None or (is_bare and key not in _BARE_KEYS):
            break
        if key in _ARGUMENTS and name:
            is_call = yield from parse_arguments(scanner, out, name, call_id, tools, ends)
            if is_call:
                yield from _skip_members(scanner, ends)
            return is_call
        text = yield from _value(scanner, ends)
        if text is None:
            break
        value = loads(text)
        if key == "function" and isinstance(value, dict):  # as in OpenAI's own calls
            text = next((json.dumps(value[k]) for k in _ARGUMENTS if k in value), "{}")
            key, arguments, value = "name", text, value.get("name")
        if key in _NAMES:
            if not isinstance(value, str) or not value:
                return False
            if is_bare and tools is not None and not call_schema(offered_name(value, tools), tools):
                return False
            name = value
        elif key in _ARGUMENTS:
            arguments = text
        elif key in _IDS and value is not None:
            call_id = str(value)
        elif key != "type":
            others[key] = value
        yield from scanner.space()
        yield from scanner.literal(",")
    if not name or not (arguments or (ended and not is_bare)):
        return False
    name = offered_name(name, tools)
    if others and arguments is None:
        # Some models write the arguments beside the name.
        if not others.keys() <= (call_schema(name, tools).get("properties") or {}).keys():
            return False
        arguments = json.dumps(others, ensure_ascii=False)
    given = _as_object(arguments or "{}")
    if given is None:
        return False
    scanner.commit()
    out.begin_call(name, call_id)
    out.arguments(given)
    out.end_call()
    return True


def _key(scanner: Scanner) -> Parser[str | None]:
    """Return a key and consume the colon after it; None if there is no key."""
    quote = yield from scanner.literal('"', "'")
    if quote:
        key, _ = yield from scanner.text_until(quote)
    else:
        key = yield from scanner.match(_WORD)
    yield from scanner.space()
    if not (yield from scanner.literal(":")):
        return None
    yield from scanner.space()
    return key


def _skip_members(scanner: Scanner, ends: Sequence[str]) -> Parser[None]:
    """Consume the rest of the object of a call whose arguments were parsed."""
    while (yield from scanner.trial(_skip_member(scanner, ends))):
        pass
    yield from scanner.space()
    yield from scanner.literal("}")


def _skip_member(scanner: Scanner, ends: Sequence[str]) -> Parser[str | None]:
    yield from scanner.space()
    yield from scanner.literal(",")
    yield from scanner.space()
    return None if (yield from _key(scanner)) is None else (yield from _value(scanner, ends))


def parse_calls(
    scanner: Scanner,
    out: MessageBuilder,
    parse_one: Callable[[], Parser[bool]],
    *ends: str,
    skip: Callable[[Scanner], Parser[str | None]] | None = None,
) -> Parser[None]:
    """Parse one call or a list of calls, also in a code fence, and the marker after them.

    An item of the list that is not a call becomes content.

    Args:
        scanner: At the position where the calls may begin.
        out: Receives the calls.
        parse_one: Parses a call; returns whether one began.
        ends: The markers after the calls.
        skip: Consumes an item that is not a call and returns its text; None: an object.
    """
    skip = skip or _skip_object
    before = len(out.calls)
    yield from scanner.space()
    is_fenced = bool((yield from scanner.literal(*_FENCES)))
    yield from scanner.space()
    is_list = bool((yield from scanner.literal("[")))
    others: list[str] = []
    while True:
        yield from scanner.space()
        if not (yield from scanner.trial(parse_one())):
            other = (yield from scanner.trial(skip(scanner))) if is_list else None
            if other is None:
                break
            others.append(other)
        yield from scanner.space()
        yield from scanner.literal(",")
    if len(out.calls) > before:
        for closer in ["]"] * is_list + ["```"] * is_fenced:
            yield from scanner.space()
            yield from scanner.literal(closer)
        yield from parse_end(scanner, *ends)
        for other in others:
            out.malformed(other)


def _skip_object(scanner: Scanner) -> Parser[str | None]:
    """Consume an object; return its text, or None if none begins or it does not end."""
    is_object = (yield from scanner.available(1)) == "{"
    return (yield from scanner.json_text()) if is_object else None


def parse_end(scanner: Scanner, *ends: str) -> Parser[None]:
    """Consume the marker after a call, with brackets and code fences before it."""
    if ends:
        yield from scanner.attempt(_end(scanner, ends))


def _end(scanner: Scanner, ends: Sequence[str]) -> Parser[str | None]:
    yield from scanner.match(_EXTRA)
    if "```" not in ends and (yield from scanner.literal("```")):
        yield from scanner.space()
    found = yield from scanner.literal(*ends)
    # Surplus brackets at the end of the answer are not content.
    return found if found or (yield from scanner.available(1)) else ""


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
        end = "</tool_call>"
        yield from parse_calls(scanner, out, lambda: parse_call(scanner, out, tools, [end]), end)

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
        other_ends: End markers that models write instead.
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
        other_ends: tuple[str, ...] = (),
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
        self._ends = tuple(filter(None, (end, *other_ends)))
        self._brackets = brackets
        self._separator = separator
        self._layout = layout
        self._id_key = id_key

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        yield from parse_calls(
            scanner, out, lambda: self._parse_one(scanner, out, tools), *self._ends
        )

    def _parse_one(
        self, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[bool]:
        """Parse one call; return whether one began."""
        return (yield from parse_call(scanner, out, tools, self._ends))

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

    def _parse_one(
        self, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[bool]:
        if not (yield from scanner.literal("{")):
            return False
        yield from scanner.space()
        name = yield from _key(scanner)
        if not name or (yield from scanner.available(1)) != "{":
            return False
        is_call = yield from parse_arguments(scanner, out, name, None, tools, self._ends)
        yield from scanner.space()
        yield from scanner.literal("}")
        return is_call

    def _call(self, tool: Tool) -> Sequence[Element]:
        name = json.dumps(function_name(tool))
        return f"{{{name}: ", Json(arguments_schema(tool)), "}"
