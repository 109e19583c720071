"""Gemma 4 and FunctionGemma: ``call:name{key:value}`` with a token of its own as quote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..reader import Reader, Steps, quoted
from .base import MarkedFormat, Tool, Tools
from .grammar import Choice, Json, Maybe, Piece, Repeat, Schema, Text, arguments_schema, is_text
from .message import MessageBuilder

__all__ = ["GemmaFormat"]

_NAME = re.compile(r"[\w.-]*")
_KEY = re.compile(r"[^:,{}\[\]<\"\s]*")
_SCALAR = re.compile(r"[\w.+-]*")
_DEEPEST = 40  # levels of objects and lists
# Keywords that a grammar in the family's own notation honours.
_NOTES = {"type", "description", "title", "default", "$defs", "definitions", "$schema"}
_ARRAY = {*_NOTES, "items"}
_OBJECT = {*_NOTES, "properties", "required", "additionalProperties"}


@dataclass
class GemmaFormat(MarkedFormat):
    """``open call:name{key:value,...} close``; objects have bare keys, strings a token as quote.

    Args:
        name: Of the format.
        marks: What its templates hold.
        open: Begins a call.
        close: Ends it.
        quote: Begins and ends a string.
        reasoning: The markers of a thought.
    """

    name: str
    marks: tuple[str, ...]
    open: str
    close: str
    quote: str
    reasoning: tuple[str, str] = ("<|channel>thought", "<channel|>")

    def __post_init__(self) -> None:
        self.triggers = (self.open,)

    def _read_calls(
        self, marker: str, reader: Reader, out: MessageBuilder, tools: Tools | None
    ) -> Steps[None]:
        yield from reader.space()
        if not (yield from reader.literal("call:")):
            return
        name = yield from reader.run(_NAME)
        if not name or (yield from reader.available(1)) != "{":
            return
        reader.release()
        out.begin_call(name)
        yield from self._value(reader, out, 0)
        out.end_call()
        yield from reader.space()
        yield from reader.literal(self.close)

    def _value(self, reader: Reader, out: MessageBuilder, depth: int) -> Steps[bool]:
        """Read a value and write it as JSON; return whether it ended as it should."""
        yield from reader.space()
        opened = yield from reader.literal("{", "[", self.quote, '"')
        if opened is None:
            scalar = yield from reader.run(_SCALAR)
            out.arguments(scalar)
            return bool(scalar)
        if opened in ("{", "["):
            if depth == _DEEPEST:
                return False
            out.arguments(opened)
            return (yield from self._members(reader, out, "}" if opened == "{" else "]", depth))
        out.arguments('"')
        if opened == '"':
            return (yield from reader.string(out.arguments))
        ended = yield from reader.until([opened], lambda text: out.arguments(quoted(text)))
        out.arguments('"' if ended else "")
        return ended is not None

    def _members(self, reader: Reader, out: MessageBuilder, end: str, depth: int) -> Steps[bool]:
        separator = ""
        while True:
            yield from reader.space()
            if (yield from reader.literal(end)):
                out.arguments(end)
                return True
            if separator and not (yield from reader.literal(",")):
                return False
            out.arguments(separator)
            separator = ", "
            yield from reader.space()
            if end == "}":
                quote = yield from reader.literal(self.quote, '"')
                if quote:
                    key, _ = yield from reader.text_until(quote)
                else:
                    key = yield from reader.run(_KEY)
                yield from reader.space()
                if not key or not (yield from reader.literal(":")):
                    return False
                out.arguments(f'"{quoted(key)}": ')
            if not (yield from self._value(reader, out, depth + 1)):
                return False

    def _call(self, tool: Tool) -> Sequence[Piece]:
        name, schema = tool["function"]["name"], arguments_schema(tool)
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        return [f"{self.open}call:{name}", *self._pieces(schema, shared), self.close]

    def _pieces(self, schema: Schema, shared: Schema) -> tuple[Piece, ...]:
        """Describe a value; what the notation has no words for is JSON, which is read too."""
        values = schema.get("enum")
        if is_text(schema) and values:
            return (Choice(tuple((f"{self.quote}{value}{self.quote}",) for value in values)),)
        if is_text(schema) or not schema:
            return self.quote, Text(self.quote, schema), self.quote
        if schema.get("type") == "array" and not schema.keys() - _ARRAY:
            return "[", Repeat(self._pieces(schema.get("items") or {}, shared), ","), "]"
        if schema.get("type") == "object" and not schema.keys() - _OBJECT:
            return self._object(schema, shared)
        return (Json({**shared, **schema}),)

    def _object(self, schema: Schema, shared: Schema) -> tuple[Piece, ...]:
        """Describe an object: the required members first, as commas then stand between them."""
        required = schema.get("required", ())
        properties = schema.get("properties") or {}
        names = sorted(properties, key=lambda name: name not in required)
        members = {name: self._pieces(properties[name], shared) for name in names}
        if names and names[0] not in required:
            return "{", self._optional(members), "}"
        pieces: list[Piece] = ["{"]
        for i, name in enumerate(names):
            comma = "," if i else ""
            member = (f"{comma}{name}:", *members[name])
            if name in required:
                pieces += member
            else:
                pieces.append(Maybe(member))
        return tuple([*pieces, "}"])

    def _optional(self, members: dict[str, tuple[Piece, ...]]) -> Piece:
        """Describe members of which none is required: one of them comes first, or none."""
        names = list(members)
        firsts = []
        for i, name in enumerate(names):
            others = (Maybe((f",{other}:", *members[other])) for other in names[i + 1 :])
            firsts.append((f"{name}:", *members[name], *others))
        return Maybe((Choice(tuple(firsts)),))
