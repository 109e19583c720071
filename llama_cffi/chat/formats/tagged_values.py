"""Calls whose arguments stand between tags one by one, strings without quotes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..reader import Reader, Steps, loads, quoted
from .base import MarkedFormat, Tool, Tools
from .grammar import LINE, Choice, Json, Maybe, Piece, Schema, Text, is_text, parameter_schemas
from .json_calls import read_call
from .message import MessageBuilder

__all__ = ["KimiK3Format", "TaggedValuesFormat"]

_NAME = re.compile(r"[\w.-]*")
_KEY = re.compile(r"[^<>\"\n]*")
_KINDS = {"integer": "number", "number": "number", "boolean": "boolean", "null": "null",
          "array": "array", "object": "object"}  # fmt: skip


@dataclass
class TaggedValuesFormat(MarkedFormat):
    """``open before name after_name (key value)* after close``.

    Qwen3-Coder and Qwen3.5, Nemotron 3, Seed-OSS, MiniMax M2, MiniCPM 5, GLM 4.5 and later,
    DeepSeek V3.2, Hunyuan 3.

    Args:
        name: Of the format.
        marks: What its templates hold.
        open: Begins one call or several; may be empty.
        before: Before the name; may be empty.
        after_name: After the name.
        key: Before and after a key. Where it says the kind of the value: what is after the key of
            a text, and then of any other value.
        value: Before and after a value.
        after: Ends a call.
        close: Ends what `open` began; may be empty.
        is_shared: Whether all calls stand between one `open` and `close`.
        frame: White space that belongs to the tags around a value.
        raw: Around a text that has special characters, or nothing.
        reasoning: The markers of a thought.
        content: Markers around an answer in words.
    """

    name: str
    marks: tuple[str, ...]
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
        # The outer tag is left out now and then.
        self.triggers = tuple(filter(None, (self.open, self.before)))
        self.content_marks = self.content
        self.content_head = self.content[0] if self.content else ""

    def _read_calls(
        self, marker: str, reader: Reader, out: MessageBuilder, tools: Tools | None
    ) -> Steps[None]:
        is_inside = marker != self.open
        while True:
            yield from reader.space()
            if not is_inside and self.before and not (yield from reader.literal(self.before)):
                # Finetunes write Hermes calls under these templates.
                if not out.calls:
                    yield from read_call(reader, out)
                break
            if not (yield from self._read_one(reader, out, tools)):
                break
            yield from reader.space()
            if is_inside or not self.before:
                break
        yield from reader.space()
        if self.close:
            yield from reader.literal(self.close)

    def _read_one(self, reader: Reader, out: MessageBuilder, tools: Tools | None) -> Steps[bool]:
        """Read a call from its name on; return whether it ended."""
        name = yield from reader.run(_NAME)
        if not name or not (yield from self._after_name(reader)):
            return False
        schemas = _schemas(name, tools)
        reader.release()
        out.begin_call(name)
        out.arguments("{")
        separator = ""
        while True:
            yield from reader.space()
            if not (yield from reader.literal(self.key[0])):
                break
            key = (yield from reader.run(_KEY)).strip()
            after_key = yield from reader.literal(*self.key[1:])
            if after_key is None:
                break
            schema = schemas.get(key)
            if len(self.key) > 2:  # the key tells, whatever the schema says
                schema = {"type": "string"} if after_key == self.key[1] else {}
            if self.value[0]:
                yield from reader.space()
                if not (yield from reader.literal(self.value[0])):
                    break
            out.arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            if not (yield from self._read_value(reader, out, schema)):
                break
            separator = ", "
        ended = bool((yield from reader.literal(*filter(None, (self.after, self.close)))))
        if ended:
            out.arguments("}")
        out.end_call()
        return ended

    def _after_name(self, reader: Reader) -> Steps[bool]:
        if self.after_name:
            return bool((yield from reader.literal(self.after_name)))
        # The name ends with its line, or where the first key or the end of the call follows.
        yield from reader.space()
        following = yield from reader.available(1)
        return following == "<"

    def _read_value(
        self, reader: Reader, out: MessageBuilder, schema: Schema | None
    ) -> Steps[bool]:
        """Read a value up to its end tag: a string as it comes, any other when it is whole."""
        if self.frame:
            yield from reader.literal(self.frame)
        ends = tuple(dict.fromkeys((self.frame + self.value[1], self.value[1])))
        if schema is not None and is_text(schema):
            raw = bool(self.raw[0]) and (yield from reader.literal(self.raw[0]))
            out.arguments('"')
            for end in ((self.raw[1],), ends) if raw else (ends,):
                found = yield from reader.until(end, lambda text: out.arguments(quoted(text)))
                if found is None:
                    return False
            out.arguments('"')
            return True
        # An end tag inside of a JSON string is part of that.
        reader.hold()
        yield from reader.space()
        value = yield from reader.json_text()
        if value is not None and _is_json(value):
            yield from reader.space()
            if (yield from reader.literal(*ends)):
                reader.release()
                out.arguments(value)
                return True
        reader.back()
        text, found = yield from reader.text_until(*ends)
        if found is None:
            return False
        out.arguments(_as_json(text, schema))
        return True

    def _around(self) -> tuple[str, str, str]:
        if self.is_shared:
            return self.open, "", self.close
        return "", "\n" if self.frame else "", ""

    def _call(self, tool: Tool) -> Sequence[Piece]:
        # Some templates of a family have lines, others have none.
        opened, closed = ("", "") if self.is_shared else (self.open, self.close)
        pieces: list[Piece] = [opened, LINE] if self.open and self.before else [opened]
        pieces += self._head(tool["function"]["name"])
        for key, schema, is_required in parameter_schemas(tool):
            parameter = self._parameter(key, schema)
            pieces += parameter if is_required else [Maybe(parameter)]
        end: list[Piece] = [LINE, closed] if self.close else []
        return [*pieces, self.after, *end]

    def _head(self, name: str) -> list[Piece]:
        return [f"{self.before}{name}{self.after_name}", LINE]

    def _parameter(self, key: str, schema: Schema) -> tuple[Piece, ...]:
        end = f"{self.frame}{self.value[1]}"
        tag: list[Piece] = [f"{self.key[0]}{key}", self._after_key(schema)]
        if self.value[0]:
            tag += [LINE, self.value[0]]
        return *tag, self.frame, raw_value(schema, end), end, LINE

    def _after_key(self, schema: Schema) -> Piece:
        if is_text(schema) or len(self.key) == 2:
            return self.key[1]
        kind = _KINDS.get(str(schema.get("type")))
        said = tuple((after,) for after in self.key[2:] if f'"{kind}"' in after)
        return Choice(said or tuple((after,) for after in self.key[2:]))


class KimiK3Format(TaggedValuesFormat):
    """Kimi K3: each tag has an attribute for what it is, calls are numbered."""

    def __init__(self) -> None:
        kinds = ("string", "number", "boolean", "null", "array", "object")
        super().__init__(
            "kimi-k3", ("<|open|>", "<|close|>", "<|end_of_msg|>"), "<|open|>tools<|sep|>",
            '<|open|>call tool="', '"',
            ('<|open|>argument key="', *(f'" type="{kind}"<|sep|>' for kind in kinds)),
            ("", "<|close|>argument<|sep|>"), "<|close|>call<|sep|>", "<|close|>tools<|sep|>",
            is_shared=True,
            reasoning=("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
            content=(
                "<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>",
                "<|end_of_msg|>",
            ),
        )  # fmt: skip

    def _after_name(self, reader: Reader) -> Steps[bool]:
        _, found = yield from reader.text_until("<|sep|>")
        return found is not None

    def _head(self, name: str) -> list[Piece]:
        return [f'{self.before}{name}" index="', Json({"enum": [*range(1, 100)]}), '"<|sep|>']

    def _before(self) -> tuple[Piece, ...]:
        # The prompt may have opened the answer in words.
        opened, closed = self.content[:2]
        return (Maybe((Maybe((opened,)), closed)),)


def _is_json(value: str) -> bool:
    return value == "null" or loads(value) is not None


def _as_json(text: str, schema: Schema | None) -> str:
    """Write a value as JSON that is none yet: a string, or, as some templates do, Python."""
    value: Any = text
    if schema is not None:
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            value = ast.literal_eval(text.strip())
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # a set, bytes, infinity
        return json.dumps(text, ensure_ascii=False)


def raw_value(schema: Schema, stop: str) -> Piece:
    """Describe a value: a string without quotes, up to *stop*, or JSON."""
    if not is_text(schema):
        return Json(schema)
    values: Sequence[str] | None = schema.get("enum")
    if values is None and "const" in schema:
        values = [schema["const"]]
    return Text(stop, schema) if values is None else Choice(tuple((value,) for value in values))


def _schemas(name: str, tools: Tools | None) -> dict[str, Any]:
    for tool in tools or ():
        if tool["function"]["name"] == name:
            return {key: schema for key, schema, _ in parameter_schemas(tool)}
    return {}
