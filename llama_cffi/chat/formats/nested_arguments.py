"""Calls whose arguments are nested XML-like elements."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..scanner import Parser, Scanner, loads
from .base import MarkedFormat
from .message import MessageBuilder
from .syntax import (
    LINE,
    Element,
    Maybe,
    Repeat,
    Schema,
    Tool,
    Tools,
    arguments_schema,
    function_name,
    is_string,
    shared_definitions,
)
from .tagged_arguments import raw_value

__all__ = ["MiniMaxM3Format"]

_NAME = re.compile(r"[\w.-]*")
_TAG = "]<]minimax[>["
_MAX_DEPTH = 40  # levels of elements
_ANNOTATIONS = {"type", "description", "title", "default", "$defs", "definitions", "$schema"}


class MiniMaxM3Format(MarkedFormat):
    """MiniMax M3: a special token before each tag; keys are element names, list items are `item`.

    Arguments are emitted when the call ends.
    """

    name = "minimax-m3"
    template_markers = (_TAG, "<invoke name=")
    triggers = (f"{_TAG}<tool_call>",)
    reasoning = ("<mm:think>", "</mm:think>")

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        while True:
            yield from scanner.space()
            if not (yield from scanner.literal(f'{_TAG}<invoke name="')):
                break
            name = yield from scanner.match(_NAME)
            if not name or not (yield from scanner.literal('">')):
                break
            scanner.commit()
            out.begin_call(name)
            schemas = [arguments_schema(t) for t in tools or () if function_name(t) == name]
            value = yield from self._value(scanner, schemas[0] if schemas else {}, "invoke", 0)
            if value is None:
                out.end_call()
                break
            out.arguments(json.dumps(value if isinstance(value, dict) else {}, ensure_ascii=False))
            out.end_call()
        yield from scanner.space()
        yield from scanner.literal(f"{_TAG}</tool_call>")

    def _value(self, scanner: Scanner, schema: Schema, tag: str, depth: int) -> Parser[Any]:
        """Parse the content of an element and its end tag; return None if the end is missing."""
        text, found = yield from scanner.text_until(_TAG)
        items: list[Any] = []
        members: dict[str, Any] = {}
        while found:
            if (yield from scanner.literal(f"</{tag}>")):
                if members or items:
                    return members or items
                return _text_value(text, schema)
            if depth == _MAX_DEPTH or not (yield from scanner.literal("<")):
                return None
            key = yield from scanner.match(_NAME)
            if not key or not (yield from scanner.literal(">")):
                return None
            is_item = key == "item" and schema.get("type") != "object"
            inner = schema.get("items") if is_item else (schema.get("properties") or {}).get(key)
            inner = inner if isinstance(inner, Mapping) else {}
            value = yield from self._value(scanner, inner, key, depth + 1)
            if is_item:
                items.append(value)
            else:
                members[key] = value
            _, found = yield from scanner.text_until(_TAG)
        return None

    def _around(self) -> tuple[str, str, str]:
        return self.triggers[0], "", f"{_TAG}</tool_call>"

    def _call(self, tool: Tool) -> Sequence[Element]:
        schema = arguments_schema(tool)
        shared = shared_definitions(schema)
        head = f'{_TAG}<invoke name="{function_name(tool)}">'
        return LINE, head, *_members(schema, shared), f"{_TAG}</invoke>", LINE


def _text_value(text: str, schema: Schema) -> Any:
    """Parse a value without nested elements."""
    empty: dict[str, Any] = {"array": [], "object": {}}
    if is_string(schema):
        return text
    if not text.strip() and schema.get("type") in empty:
        return empty[schema["type"]]
    value = loads(text.strip())
    return text if value is None and text.strip() != "null" else value


def _members(schema: Schema, shared: Schema) -> list[Element]:
    elements: list[Element] = []
    for key, part in (schema.get("properties") or {}).items():
        element = _element(key, part, shared)
        elements += element if key in schema.get("required", ()) else [Maybe(element)]
    return elements


def _element(key: str, schema: Schema, shared: Schema) -> tuple[Element, ...]:
    return f"{_TAG}<{key}>", *_value(schema, shared, f"{_TAG}</{key}>")


def _value(schema: Schema, shared: Schema, end: str) -> list[Element]:
    """Return the syntax of a value and its end; JSON for what elements cannot express."""
    if schema.get("type") == "array" and not schema.keys() - {*_ANNOTATIONS, "items"}:
        item = _element("item", schema.get("items") or {}, shared)
        return [Repeat(item, ""), end]
    known = {*_ANNOTATIONS, "properties", "required", "additionalProperties"}
    if schema.get("type") == "object" and not schema.keys() - known:
        return [*_members(schema, shared), end]
    return [*raw_value({**shared, **schema}, end)]
