"""MiniMax M3: arguments as elements within elements, each tag after a token of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..reader import Reader, Steps, loads
from .base import MarkedFormat, Tool, Tools
from .grammar import LINE, Maybe, Piece, Repeat, Schema, arguments_schema, is_text
from .message import MessageBuilder
from .tagged_values import raw_value

__all__ = ["NestedValuesFormat"]

_NAME = re.compile(r"[\w.-]*")
_MARK = "]<]minimax[>["
_DEEPEST = 40  # levels of elements
_NOTES = {"type", "description", "title", "default", "$defs", "definitions", "$schema"}


class NestedValuesFormat(MarkedFormat):
    """Keys are names of elements, items of a list are elements `item`; read when a call ends."""

    name = "minimax-m3"
    marks = (_MARK, "<invoke name=")
    triggers = (f"{_MARK}<tool_call>",)
    reasoning = ("<mm:think>", "</mm:think>")

    def _read_calls(
        self, marker: str, reader: Reader, out: MessageBuilder, tools: Tools | None
    ) -> Steps[None]:
        while True:
            yield from reader.space()
            if not (yield from reader.literal(f'{_MARK}<invoke name="')):
                break
            name = yield from reader.run(_NAME)
            if not name or not (yield from reader.literal('">')):
                break
            reader.release()
            out.begin_call(name)
            schemas = [arguments_schema(t) for t in tools or () if t["function"]["name"] == name]
            value = yield from self._value(reader, schemas[0] if schemas else {}, "invoke", 0)
            if value is None:
                out.end_call()
                break
            out.arguments(json.dumps(value if isinstance(value, dict) else {}, ensure_ascii=False))
            out.end_call()
        yield from reader.space()
        yield from reader.literal(f"{_MARK}</tool_call>")

    def _value(self, reader: Reader, schema: Schema, tag: str, depth: int) -> Steps[Any]:
        """Read what an element holds, and its end; None where that does not come."""
        text, found = yield from reader.text_until(_MARK)
        items: list[Any] = []
        members: dict[str, Any] = {}
        while found:
            if (yield from reader.literal(f"</{tag}>")):
                if members or items:
                    return members or items
                return _of_text(text, schema)
            if depth == _DEEPEST or not (yield from reader.literal("<")):
                return None
            key = yield from reader.run(_NAME)
            if not key or not (yield from reader.literal(">")):
                return None
            is_item = key == "item" and schema.get("type") != "object"
            inner = schema.get("items") if is_item else (schema.get("properties") or {}).get(key)
            inner = inner if isinstance(inner, Mapping) else {}
            value = yield from self._value(reader, inner, key, depth + 1)
            if is_item:
                items.append(value)
            else:
                members[key] = value
            _, found = yield from reader.text_until(_MARK)
        return None

    def _around(self) -> tuple[str, str, str]:
        return self.triggers[0], "", f"{_MARK}</tool_call>"

    def _call(self, tool: Tool) -> Sequence[Piece]:
        schema = arguments_schema(tool)
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        head = f'{_MARK}<invoke name="{tool["function"]["name"]}">'
        return LINE, head, *_members(schema, shared), f"{_MARK}</invoke>", LINE


def _of_text(text: str, schema: Schema) -> Any:
    """Read a value that holds no elements."""
    empty: dict[str, Any] = {"array": [], "object": {}}
    if is_text(schema):
        return text
    if not text.strip() and schema.get("type") in empty:
        return empty[schema["type"]]
    value = loads(text.strip())
    return text if value is None and text.strip() != "null" else value


def _members(schema: Schema, shared: Schema) -> list[Piece]:
    pieces: list[Piece] = []
    for key, part in (schema.get("properties") or {}).items():
        element = (f"{_MARK}<{key}>", *_pieces(part, shared), f"{_MARK}</{key}>")
        pieces += element if key in schema.get("required", ()) else [Maybe(element)]
    return pieces


def _pieces(schema: Schema, shared: Schema) -> list[Piece]:
    """Describe a value; what elements have no words for is JSON, which is read too."""
    if schema.get("type") == "array" and not schema.keys() - {*_NOTES, "items"}:
        item = (f"{_MARK}<item>", *_pieces(schema.get("items") or {}, shared), f"{_MARK}</item>")
        return [Repeat(item, "")]
    known = {*_NOTES, "properties", "required", "additionalProperties"}
    if schema.get("type") == "object" and not schema.keys() - known:
        return _members(schema, shared)
    return [raw_value({**shared, **schema}, _MARK)]
