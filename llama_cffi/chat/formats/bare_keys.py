"""Calls written ``call:name{key:value}``: JSON with bare keys and a special token as quote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..scanner import Parser, Scanner, quoted
from .base import MarkedFormat
from .message import MessageBuilder
from .syntax import (
    Alternatives,
    Element,
    Json,
    Maybe,
    Repeat,
    Schema,
    Text,
    Tool,
    Tools,
    arguments_schema,
    function_name,
    is_string,
    shared_definitions,
)

__all__ = ["BareKeysFormat"]

_NAME = re.compile(r"[\w.-]*")
_KEY = re.compile(r"[^:,{}\[\]<\"\s]*")
_SCALAR = re.compile(r"[\w.+-]*")
_MAX_DEPTH = 40  # levels of objects and lists
# Schema keywords that a grammar in this notation can enforce or ignore.
_ANNOTATIONS = {"type", "description", "title", "default", "$defs", "definitions", "$schema"}
_ARRAY = {*_ANNOTATIONS, "items"}
_OBJECT = {*_ANNOTATIONS, "properties", "required", "additionalProperties"}


@dataclass
class BareKeysFormat(MarkedFormat):
    """Gemma 4 and FunctionGemma: ``open call:name{key:value,...} close``.

    Args:
        name: Name of the format.
        template_markers: See `ToolFormat`.
        open: The marker before a call.
        close: The marker after a call.
        quote: The token around a string.
        reasoning: The markers before and after reasoning.
    """

    name: str
    template_markers: tuple[str, ...]
    open: str
    close: str
    quote: str
    reasoning: tuple[str, str] = ("<|channel>thought", "<channel|>")

    def __post_init__(self) -> None:
        self.triggers = (self.open,)

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        yield from scanner.space()
        if not (yield from scanner.literal("call:")):
            return
        name = yield from scanner.match(_NAME)
        if not name or (yield from scanner.available(1)) != "{":
            return
        scanner.commit()
        out.begin_call(name)
        yield from self._value(scanner, out, 0)
        out.end_call()
        yield from scanner.space()
        yield from scanner.literal(self.close)

    def _value(self, scanner: Scanner, out: MessageBuilder, depth: int) -> Parser[bool]:
        """Parse a value and emit it as JSON; return whether it ended properly."""
        yield from scanner.space()
        opened = yield from scanner.literal("{", "[", self.quote, '"')
        if opened is None:
            scalar = yield from scanner.match(_SCALAR)
            out.arguments(scalar)
            return bool(scalar)
        if opened in ("{", "["):
            if depth == _MAX_DEPTH:
                return False
            out.arguments(opened)
            return (yield from self._members(scanner, out, "}" if opened == "{" else "]", depth))
        out.arguments('"')
        if opened == '"':
            return (yield from scanner.string(out.arguments))
        ended = yield from scanner.until([opened], lambda text: out.arguments(quoted(text)))
        out.arguments('"' if ended else "")
        return ended is not None

    def _members(self, scanner: Scanner, out: MessageBuilder, end: str, depth: int) -> Parser[bool]:
        separator = ""
        while True:
            yield from scanner.space()
            if (yield from scanner.literal(end)):
                out.arguments(end)
                return True
            if separator and not (yield from scanner.literal(",")):
                return False
            out.arguments(separator)
            separator = ", "
            yield from scanner.space()
            if end == "}":
                quote = yield from scanner.literal(self.quote, '"')
                if quote:
                    key, _ = yield from scanner.text_until(quote)
                else:
                    key = yield from scanner.match(_KEY)
                yield from scanner.space()
                if not key or not (yield from scanner.literal(":")):
                    return False
                out.arguments(f'"{quoted(key)}": ')
            if not (yield from self._value(scanner, out, depth + 1)):
                return False

    def _call(self, tool: Tool) -> Sequence[Element]:
        name, schema = function_name(tool), arguments_schema(tool)
        shared = shared_definitions(schema)
        return [f"{self.open}call:{name}", *self._elements(schema, shared), self.close]

    def _elements(self, schema: Schema, shared: Schema) -> tuple[Element, ...]:
        """Return the syntax of a value; JSON for what the notation cannot express."""
        values = schema.get("enum")
        if is_string(schema) and values:
            return (Alternatives(tuple((f"{self.quote}{value}{self.quote}",) for value in values)),)
        if is_string(schema) or not schema:
            return self.quote, Text(self.quote, schema), self.quote
        if schema.get("type") == "array" and not schema.keys() - _ARRAY:
            return "[", Repeat(self._elements(schema.get("items") or {}, shared), ","), "]"
        if schema.get("type") == "object" and not schema.keys() - _OBJECT:
            return self._object(schema, shared)
        return (Json({**shared, **schema}),)

    def _object(self, schema: Schema, shared: Schema) -> tuple[Element, ...]:
        """Return the syntax of an object; required members come first, so that commas fit."""
        required = schema.get("required", ())
        properties = schema.get("properties") or {}
        names = sorted(properties, key=lambda name: name not in required)
        members = {name: self._elements(properties[name], shared) for name in names}
        if names and names[0] not in required:
            return "{", self._optional(members), "}"
        elements: list[Element] = ["{"]
        for i, name in enumerate(names):
            comma = "," if i else ""
            member = (f"{comma}{name}:", *members[name])
            if name in required:
                elements += member
            else:
                elements.append(Maybe(member))
        return tuple([*elements, "}"])

    def _optional(self, members: dict[str, tuple[Element, ...]]) -> Element:
        """Return the syntax of optional members: any of them may come first."""
        names = list(members)
        firsts = []
        for i, name in enumerate(names):
            others = (Maybe((f",{other}:", *members[other])) for other in names[i + 1 :])
            firsts.append((f"{name}:", *members[name], *others))
        return Maybe((Alternatives(tuple(firsts)),))
