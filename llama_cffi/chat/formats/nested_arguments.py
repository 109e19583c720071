"""Calls whose arguments are nested XML-like elements."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ...schema import ANY_TYPE, types_within
from ..scanner import Emit, Parser, Scanner, quoted
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
    shared_definitions,
)
from .tagged_arguments import raw_value
from .unquoted import is_text, read_unquoted

__all__ = ["MiniMaxM3Format"]

_NAME = re.compile(r"[\w.-]*")
_KEY = re.compile(r"[^<>\n]*")
_TAG = "]<]minimax[>["
_CALL = f'{_TAG}<invoke name="'
_END = f"{_TAG}</tool_call>"
_MAX_DEPTH = 40  # levels of elements
_ANNOTATIONS = {"type", "description", "title", "default", "$defs", "definitions", "$schema"}


class MiniMaxM3Format(MarkedFormat):
    """MiniMax M3: a special token before each tag; keys are element names, list items are `item`.

    An end tag ends a text if another tag, or the end of the answer, follows; else it is part of the
    text. If it is missing, the text ends before the next parameter or the end of the call.
    """

    name = "minimax-m3"
    template_markers = (_TAG, "<invoke name=")
    triggers = (f"{_TAG}<tool_call>", _CALL)
    reasoning = ("<mm:think>", "</mm:think>")

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        is_inside = marker == _CALL
        while True:
            yield from scanner.space()
            name = yield from scanner.attempt(_head(scanner, is_inside))
            if name is None:
                break
            scanner.commit()
            out.begin_call(name)
            schemas = [arguments_schema(t) for t in tools or () if function_name(t) == name]
            arguments = _Arguments(scanner, out, schemas[0] if schemas else None)
            is_inside = not (yield from arguments.members("invoke", []))
            out.end_call()
            if is_inside or marker == _CALL:
                break
        yield from scanner.space()
        yield from scanner.literal(_END)

    def _around(self) -> tuple[str, str, str]:
        return self.triggers[0], "", _END

    def _call(self, tool: Tool) -> Sequence[Element]:
        schema = arguments_schema(tool)
        shared = shared_definitions(schema)
        head = f'{_TAG}<invoke name="{function_name(tool)}">'
        return LINE, head, *_members(schema, shared), f"{_TAG}</invoke>", LINE


def _head(scanner: Scanner, is_inside: bool) -> Parser[str | None]:
    """Return the name of the call that begins here; None: none does."""
    if not is_inside and not (yield from scanner.literal(_CALL)):
        return None
    name = yield from scanner.match(_NAME)
    return name if name and (yield from scanner.literal('">')) else None


class _Arguments:
    """Writes the arguments of a call as they arrive."""

    def __init__(self, scanner: Scanner, out: MessageBuilder, schema: Schema | None) -> None:
        self._scanner = scanner
        self._out = out
        self._schema = schema
        self._open: list[str] = []  # the end tags of the elements around this one
        self._given: set[str] = set()

    def members(self, tag: str, path: list[str | None]) -> Parser[bool]:
        """Write the elements in an element, and consume its end tag; return whether it ended."""
        scanner, write = self._scanner, self._out.arguments
        is_list, separator, ended = False, "", False
        self._open.append(f"{_TAG}</{tag}>")
        while True:
            yield from scanner.space()
            ends = (*self._open, _END, _CALL)
            found = yield from scanner.peek(scanner.literal(*ends, f"{_TAG}</", _TAG))
            if found in ends:
                ended = found == self._open[-1]
                scanner.take(len(found) if ended else 0)
                break
            key = None
            if found == _TAG:
                key = yield from scanner.attempt(self._key(path))
            if key is None:
                # A broken element ends where the next one begins.
                scanner.take(1)
                if (yield from scanner.peek(scanner.before((_TAG,)))) is None:
                    break
                yield from scanner.before((_TAG,))
                self._out.malformed()
                continue
            if not separator:
                is_list = key == "item" and bool(path) and "array" in self._types(path)
                write("[" if is_list else "{")
            write(separator + ("" if is_list else f"{json.dumps(key, ensure_ascii=False)}: "))
            separator = ", "
            if not path:
                self._given.add(key)
            yield from self._value(key, [*path, None if is_list else key])
        self._open.pop()
        write("" if separator else "{")
        if ended or path:
            write("]" if is_list else "}")
        return ended

    def _key(self, path: list[str | None]) -> Parser[str | None]:
        """Return the name of the element that begins here; None: none does."""
        scanner = self._scanner
        if (yield from scanner.literal(f"{_TAG}<")):
            name = yield from scanner.match(_KEY)
            return name if name and (yield from scanner.literal(">")) else None
        # Some models forget the name in the first tag.
        yield from scanner.literal(_TAG)
        key = yield from scanner.peek(self._key_at_end())
        return key if key and types_within(self._schema, [*path, key]) != ANY_TYPE else None

    def _key_at_end(self) -> Parser[str | None]:
        yield from self._scanner.until((f"{_TAG}</",))
        key = yield from self._scanner.match(_KEY)
        return key if (yield from self._scanner.literal(">")) else None

    def _value(self, key: str, path: list[str | None]) -> Parser[None]:
        """Write the value of an element, and consume its end tag."""
        scanner, write = self._scanner, self._out.arguments
        types = self._types(path)
        end = f"{_TAG}</{key}>"
        if is_text(types) and "null" not in types:
            write('"')
            ended = yield from self._text(end, lambda text: write(quoted(text)))
            write('"' if ended else "")
            return
        can_nest = not is_text(types) and len(self._open) < _MAX_DEPTH
        if can_nest and (yield from scanner.peek(self._is_nested())):
            yield from self.members(key, path)
            return
        parts: list[str] = []
        yield from self._text(end, parts.append)
        write(_leaf("".join(parts), types))

    def _is_nested(self) -> Parser[bool]:
        yield from self._scanner.space()
        return (yield from self._scanner.literal(f"{_TAG}</", f"{_TAG}<")) == f"{_TAG}<"

    def _text(self, end: str, emit: Emit) -> Parser[bool]:
        """Emit a text and consume its end tag; return False if the answer ends before."""
        scanner = self._scanner
        while (yield from scanner.before((_TAG,), emit)):
            length = yield from scanner.peek(self._nested_length(end))
            if length:
                emit(scanner.take(length))
                continue
            is_end = yield from scanner.peek(self._is_end(end))
            if is_end is not False:
                scanner.take(len(end) if is_end else 0)
                return True
            emit(scanner.take(len(_TAG)))
        return False

    def _nested_length(self, end: str) -> Parser[int]:
        """Return the length of a whole call that is part of a text; 0: there is none."""
        start = self._scanner.position
        if not (yield from self._scanner.literal(_CALL)):
            return 0
        yield from self._scanner.until((f"{_TAG}</invoke>",))
        length = self._scanner.position - start
        return length if (yield from self._scanner.before((end,))) else 0

    def _is_end(self, end: str) -> Parser[bool | None]:
        """Return whether the end tag follows, and ends a text; None: it is missing before a tag."""
        scanner = self._scanner
        found = yield from scanner.literal(end, self._open[-1], _END, _CALL, f"{_TAG}<")
        if found is None:
            return False
        if found == _CALL:
            return None if (yield from _head(scanner, is_inside=True)) else False
        if found == f"{_TAG}<":
            name = yield from scanner.match(_KEY)
            is_next = len(self._open) == 1 and name not in self._given
            is_known = types_within(self._schema, [name]) != ANY_TYPE
            return None if is_next and is_known and (yield from scanner.literal(">")) else False
        yield from scanner.space()
        is_last = not (yield from scanner.available(1))
        if not is_last and not (yield from scanner.peek(scanner.literal(_TAG))):
            return False
        if found == end:
            return True
        later = yield from scanner.before((end, _CALL))
        return False if later == end else None

    def _types(self, path: list[str | None]) -> frozenset[str]:
        return types_within(self._schema, path)


def _leaf(text: str, types: frozenset[str]) -> str:
    """Return the JSON of a value without nested elements."""
    if not text.strip() and "string" not in types:
        empty = {"array": "[]", "object": "{}", "null": "null"}
        return next((written for name, written in empty.items() if name in types), '""')
    return read_unquoted(text, types)


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
