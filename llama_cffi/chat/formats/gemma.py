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
        name = tool["function"]["name"]
        body = self._pieces(arguments_schema(tool))
        return [f"{self.open}call:{name}", *body, self.close]

    def _pieces(self, schema: Schema) -> tuple[Piece, ...]:
        """Describe a value; without a schema that says its kind, it is a string."""
        values = schema.get("enum")
        if is_text(schema) or (not schema.get("type") and not values):
            if not values:
                return self.quote, Text(self.quote), self.quote
            return (Choice(tuple((f"{self.quote}{value}{self.quote}",) for value in values)),)
        if schema.get("type") == "array":
            return "[", Repeat(self._pieces(schema.get("items") or {}), ","), "]"
        if schema.get("type") == "object":
            return self._object(schema)
        return (Json(schema),)

    def _object(self, schema: Schema) -> tuple[Piece, ...]:
        """Describe an object: the required members first, as commas then stand between them."""
        required = schema.get("required", ())
        properties = schema.get("properties") or {}
        names = sorted(properties, key=lambda name: name not in required)
        pieces: list[Piece] = ["{"]
        if names and names[0] not in required:
            return tuple([*pieces, *self._optional(names, properties), "}"])
        for i, name in enumerate(names):
            comma = "," if i else ""
            member = (f"{comma}{name}:", *self._pieces(properties[name]))
            if name in required:
                pieces += member
            else:
                pieces.append(Maybe(member))
        return tuple([*pieces, "}"])

    def _optional(self, names: list[str], properties: Schema) -> list[Piece]:
        """Describe members of which none is required: one of them comes first, or none."""
        firsts = []
        for i, name in enumerate(names):
            first: list[Piece] = [f"{name}:", *self._pieces(properties[name])]
            first += [
                Maybe((f",{other}:", *self._pieces(properties[other]))) for other in names[i + 1 :]
            ]
            firsts.append(tuple(first))
        return [Maybe((Choice(tuple(firsts)),))]
