"""Calls with a pair of tags around each argument, and strings without quotes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..scanner import Parser, Scanner, loads, quoted
from .base import MarkedFormat
from .json_calls import parse_call
from .message import MessageBuilder
from .syntax import (
    LINE,
    Alternatives,
    Element,
    Json,
    Maybe,
    Schema,
    Text,
    Tool,
    Tools,
    function_name,
    is_string,
    parameter_schemas,
)

__all__ = ["KimiK3Format", "TaggedArgumentsFormat"]

_NAME = re.compile(r"[\w.-]*")
_KEY = re.compile(r"[^<>\"\n]*")
_TYPES = {"integer": "number", "number": "number", "boolean": "boolean", "null": "null",
          "array": "array", "object": "object"}  # fmt: skip


@dataclass
class TaggedArgumentsFormat(MarkedFormat):
    """``open before name after_name (key value)* after close``.

    Qwen3-Coder and Qwen3.5, Nemotron 3, Seed-OSS, MiniMax M2, MiniCPM 5, GLM 4.5 and later,
    DeepSeek V3.2, Hunyuan 3.

    Args:
        name: Name of the format.
        template_markers: See `ToolFormat`.
        open: The marker before one call or several; may be empty.
        before: The text before the name; may be empty.
        after_name: The text after the name.
        key: The text before and after a key. If the text after a key gives the type of the value:
            first the one for strings, then those for other types.
        value: The text before and after a value.
        after: The text after a call.
        close: The marker that closes `open`; may be empty.
        is_shared: Whether one `open` and `close` enclose all calls.
        frame: White space around a value that belongs to its tags.
        raw: The text around a string that contains special characters; may be empty.
        reasoning: The markers before and after reasoning.
        content: Markers around a text answer.
    """

    name: str
    template_markers: tuple[str, ...]
    open: str
    before: str
    after_name: str
    key: tuple[str, ...]
    value: tuple[str, str]
    after: str
    close: str
    is_shared: bool = False
    frame: str = ""
    raw: tuple[str, str] = ("", "")
    reasoning: tuple[str, str] = ("<think>", "</think>")
    content: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Models sometimes omit the outer tag.
        self.triggers = tuple(filter(None, (self.open, self.before)))
        self.content_markers = self.content
        self.content_head = self.content[0] if self.content else ""

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        is_inside = marker != self.open
        while True:
            yield from scanner.space()
            if not is_inside and self.before and not (yield from scanner.literal(self.before)):
                # Fine-tuned models write Hermes calls with these templates.
                if not out.calls:
                    yield from parse_call(scanner, out)
                break
            if not (yield from self._parse_one(scanner, out, tools)):
                break
            yield from scanner.space()
            if is_inside or not self.before:
                break
        yield from scanner.space()
        if self.close:
            yield from scanner.literal(self.close)

    def _parse_one(
        self, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[bool]:
        """Parse a call from its name on; return whether it ended."""
        name = yield from scanner.match(_NAME)
        if not name or not (yield from self._after_name(scanner)):
            return False
        schemas = _schemas(name, tools)
        scanner.commit()
        out.begin_call(name)
        out.arguments("{")
        separator = ""
        before_key, *after_keys = self.key
        while True:
            yield from scanner.space()
            if not (yield from scanner.literal(before_key)):
                break
            key = (yield from scanner.match(_KEY)).strip()
            after_key = yield from scanner.literal(*after_keys)
            if after_key is None:
                break
            schema = schemas.get(key)
            if len(after_keys) > 1:  # the tag gives the type, whatever the schema says
                schema = {"type": "string"} if after_key == after_keys[0] else {}
            if self.value[0]:
                yield from scanner.space()
                if not (yield from scanner.literal(self.value[0])):
                    break
            out.arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            if not (yield from self._parse_value(scanner, out, schema)):
                break
            separator = ", "
        ended = bool((yield from scanner.literal(*filter(None, (self.after, self.close)))))
        if ended:
            out.arguments("}")
        out.end_call()
        return ended

    def _after_name(self, scanner: Scanner) -> Parser[bool]:
        if self.after_name:
            return bool((yield from scanner.literal(self.after_name)))
        # The name ends with its line, or before the first key or the end of the call.
        yield from scanner.space()
        following = yield from scanner.available(1)
        return following == "<"

    def _parse_value(
        self, scanner: Scanner, out: MessageBuilder, schema: Schema | None
    ) -> Parser[bool]:
        """Parse a value and its end tag; emit strings as they arrive, others when complete."""
        if self.frame:
            yield from scanner.literal(self.frame)
        ends = tuple(dict.fromkeys((self.frame + self.value[1], self.value[1])))
        if schema is not None and is_string(schema):
            raw = bool(self.raw[0]) and (yield from scanner.literal(self.raw[0]))
            out.arguments('"')
            for end in ((self.raw[1],), ends) if raw else (ends,):
                found = yield from scanner.until(end, lambda text: out.arguments(quoted(text)))
                if found is None:
                    return False
            out.arguments('"')
            return True
        # An end tag inside a JSON string is part of the string.
        scanner.checkpoint()
        yield from scanner.space()
        value = yield from scanner.json_text()
        if value is not None and _is_json(value):
            yield from scanner.space()
            if (yield from scanner.literal(*ends)):
                scanner.commit()
                out.arguments(value)
                return True
        scanner.rollback()
        text, found = yield from scanner.text_until(*ends)
        if found is None:
            return False
        out.arguments(_as_json(text, schema))
        return True

    def _around(self) -> tuple[str, str, str]:
        if self.is_shared:
            return self.open, "", self.close
        return "", "\n" if self.frame else "", ""

    def _call(self, tool: Tool) -> Sequence[Element]:
        # Some templates of a family write line breaks, others do not.
        opened, closed = ("", "") if self.is_shared else (self.open, self.close)
        elements: list[Element] = [opened, LINE] if self.open and self.before else [opened]
        elements += self._header(function_name(tool))
        for key, schema, is_required in parameter_schemas(tool):
            parameter = self._parameter(key, schema)
            elements += parameter if is_required else [Maybe(parameter)]
        end: list[Element] = [LINE, closed] if self.close else []
        return [*elements, self.after, *end]

    def _header(self, name: str) -> list[Element]:
        return [f"{self.before}{name}{self.after_name}", LINE]

    def _parameter(self, key: str, schema: Schema) -> tuple[Element, ...]:
        end = f"{self.frame}{self.value[1]}"
        tag: list[Element] = [f"{self.key[0]}{key}", self._after_key(schema)]
        if self.value[0]:
            tag += [LINE, self.value[0]]
        return *tag, self.frame, raw_value(schema, end), end, LINE

    def _after_key(self, schema: Schema) -> Element:
        if is_string(schema) or len(self.key) == 2:
            return self.key[1]
        value_type = _TYPES.get(str(schema.get("type")))
        known = tuple((after,) for after in self.key[2:] if f'"{value_type}"' in after)
        return Alternatives(known or tuple((after,) for after in self.key[2:]))


class KimiK3Format(TaggedArgumentsFormat):
    """Kimi K3: tags have attributes, and calls are numbered."""

    def __init__(self) -> None:
        types = ("string", "number", "boolean", "null", "array", "object")
        super().__init__(
            "kimi-k3", ("<|open|>", "<|close|>", "<|end_of_msg|>"), "<|open|>tools<|sep|>",
            '<|open|>call tool="', '"',
            ('<|open|>argument key="', *(f'" type="{value_type}"<|sep|>' for value_type in types)),
            ("", "<|close|>argument<|sep|>"), "<|close|>call<|sep|>", "<|close|>tools<|sep|>",
            is_shared=True,
            reasoning=("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
            content=(
                "<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>",
                "<|end_of_msg|>",
            ),
        )  # fmt: skip

    def _after_name(self, scanner: Scanner) -> Parser[bool]:
        _, found = yield from scanner.text_until("<|sep|>")
        return found is not None

    def _header(self, name: str) -> list[Element]:
        return [f'{self.before}{name}" index="', Json({"enum": [*range(1, 100)]}), '"<|sep|>']

    def _before(self) -> tuple[Element, ...]:
        # The prompt may have opened a text answer.
        opened, closed = self.content[:2]
        return (Maybe((Maybe((opened,)), closed)),)


def _is_json(value: str) -> bool:
    return value == "null" or loads(value) is not None


def _as_json(text: str, schema: Schema | None) -> str:
    """Convert a value that is not JSON: to a string, or from a Python literal, as some write."""
    value: Any = text
    if schema is not None:
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            value = ast.literal_eval(text.strip())
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # a set, bytes, infinity
        return json.dumps(text, ensure_ascii=False)


def raw_value(schema: Schema, stop: str) -> Element:
    """Return the syntax of a value: a string without quotes that ends before *stop*, or JSON."""
    if not is_string(schema):
        return Json(schema)
    values: Sequence[str] | None = schema.get("enum")
    if values is None and "const" in schema:
        values = [schema["const"]]
    return (
        Text(stop, schema) if values is None else Alternatives(tuple((value,) for value in values))
    )


def _schemas(name: str, tools: Tools | None) -> dict[str, Any]:
    for tool in tools or ():
        if function_name(tool) == name:
            return {key: schema for key, schema, _ in parameter_schemas(tool)}
    return {}
