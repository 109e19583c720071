"""Calls written ``call:name{key:value}``: JSON with bare keys and a special token as quote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..scanner import Parser, Scanner
from .base import MarkedFormat
from .json_calls import offered_name, parse_call, parse_calls, parse_end
from .lines import parse_lines
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
    call_schema,
    function_name,
    is_string,
    shared_definitions,
)
from .values import ValueReader

__all__ = ["BareKeysFormat"]

_NAME = re.compile(r"[\w.:-]*")
_START = "call:"
_BEFORE = re.compile(r"[\s:]*")
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

    def _parse(self, scanner: Scanner, out: MessageBuilder, tools: Tools | None) -> Parser[None]:
        bare = partial(self._parse_one, scanner, out, tools, is_bare=True)
        while (yield from parse_lines(scanner, out, bare, [_START], self.triggers)):
            yield from self._parse_marked(self.open, scanner, out, tools)

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        yield from scanner.match(_BEFORE)
        if (yield from scanner.available(1)) == "{":  # JSON
            ends = (self.close,)
            yield from parse_calls(
                scanner, out, partial(parse_call, scanner, out, tools, ends), *ends
            )
        else:
            yield from self._parse_one(scanner, out, tools)

    def _parse_one(
        self, scanner: Scanner, out: MessageBuilder, tools: Tools | None, is_bare: bool = False
    ) -> Parser[bool]:
        """Parse a call and the markers after it; return whether it is one."""
        if not (yield from scanner.literal(_START)):
            return False
        yield from scanner.space()
        name = offered_name((yield from scanner.match(_NAME)), tools)
        schema = call_schema(name, tools)
        yield from scanner.space()
        opened = yield from scanner.literal("({", "{", "(")
        is_empty = not opened and bool((yield from scanner.peek(scanner.literal(self.close))))
        if not name or not (opened or is_empty) or (is_bare and not schema):
            return False
        scanner.commit()
        out.begin_call(name)
        reader = ValueReader(scanner, out.arguments, schema, ends=[self.close], quote=self.quote)
        if is_empty:
            out.arguments("{}")
        else:
            yield from reader.call((), ")" if opened == "(" else "}")
        out.end_call()
        if opened == "({":
            yield from scanner.literal(")")
        yield from parse_end(scanner, self.close)
        while (yield from scanner.literal(self.close)):
            pass  # some models repeat it
        return True

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
