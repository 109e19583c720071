"""Calls whose name stands before their arguments in JSON, between markers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..reader import Reader, Steps, quoted
from .base import MarkedFormat, Tool, Tools
from .grammar import Json, Maybe, Piece, Text, arguments_schema
from .json_calls import JsonListFormat, read_arguments, read_call
from .message import MessageBuilder

__all__ = [
    "DeepSeekFormat",
    "HeadedFormat",
    "KimiFormat",
    "MistralFormat",
    "SolarFormat",
    "TaggedFunctionFormat",
    "read_code",
]

_NAME = re.compile(r"[\w.-]*")


@dataclass
class HeadedFormat(MarkedFormat):
    """``before name between {...} after``, and perhaps markers around all calls.

    Args:
        name: Of the format.
        marks: What its templates hold.
        before: Texts of which one begins a call; the first is the one for grammars.
        between: Between the name and the arguments.
        after: After the arguments.
        begin: Texts of which one begins all calls; none where each call stands alone.
        end: After all calls.
    """

    name: str
    marks: tuple[str, ...]
    before: tuple[str, ...]
    between: str
    after: str
    begin: tuple[str, ...] = ()
    end: str = ""

    def __post_init__(self) -> None:
        self.triggers = self.begin or self.before

    def _read_calls(
        self, marker: str, reader: Reader, out: MessageBuilder, tools: Tools | None
    ) -> Steps[None]:
        if not self.begin:
            yield from self._read_one(reader, out)
            return
        while True:
            yield from reader.space()
            # The marker of the first call is missing now and then.
            found = yield from reader.literal(*self.before)
            if found is None and out.calls:
                break
            if not (yield from self._read_one(reader, out)):
                break
        yield from reader.space()
        if self.end:
            yield from reader.literal(self.end)

    def _read_one(self, reader: Reader, out: MessageBuilder) -> Steps[bool]:
        """Read a call after its marker; return whether another may follow."""
        head = yield from self._head(reader)
        if head is None:
            return False
        yield from reader.space()
        if (yield from reader.available(1)) != "{":
            return False
        reader.release()
        out.begin_call(*head)
        ended = yield from read_arguments(reader, out)
        out.end_call()
        yield from reader.space()
        yield from reader.literal(self.after)
        return ended

    def _head(self, reader: Reader) -> Steps[tuple[str, str | None] | None]:
        """Read the name up to the arguments, and the id where there is one."""
        name = yield from reader.run(_NAME)
        if not name or not (yield from reader.literal(self.between)):
            return None
        return name, None

    def _around(self) -> tuple[str, str, str]:
        return self.begin[0] if self.begin else "", "", self.end

    def _call(self, tool: Tool) -> Sequence[Piece]:
        head = f"{self.before[0]}{tool['function']['name']}{self.between}"
        return head, Json(arguments_schema(tool)), self.after


class DeepSeekFormat(HeadedFormat):
    """DeepSeek R1 and V3 (a kind before the name, a code fence), V3.1 (neither); reads both."""

    _BEGIN = (
        "<｜tool▁calls▁begin｜>",  # noqa: RUF001 -- the model's own characters
        # What distilled models write instead.
        "<｜tool_calls_begin｜>",  # noqa: RUF001
        "<｜tool calls begin｜>",  # noqa: RUF001
        "<｜tool\\_calls\\_begin｜>",  # noqa: RUF001
        "<｜tool▁calls｜>",  # noqa: RUF001
    )
    _BETWEEN = "<｜tool▁sep｜>"  # noqa: RUF001
    _AFTER = "<｜tool▁call▁end｜>"  # noqa: RUF001

    def __init__(self, name: str, marks: tuple[str, ...], is_fenced: bool) -> None:
        super().__init__(
            name,
            marks,
            before=("<｜tool▁call▁begin｜>",),  # noqa: RUF001
            between=self._BETWEEN,
            after=self._AFTER,
            begin=self._BEGIN,
            end="<｜tool▁calls▁end｜>",  # noqa: RUF001
        )
        self._is_fenced = is_fenced

    def _head(self, reader: Reader) -> Steps[tuple[str, str | None] | None]:
        head = yield from super()._head(reader)
        if head is None or head[0] != "function":
            return head
        name = yield from reader.run(_NAME)
        yield from reader.space()
        fence = yield from reader.literal("```json")
        return (name, None) if name and fence else None

    def _read_one(self, reader: Reader, out: MessageBuilder) -> Steps[bool]:
        ended = yield from super()._read_one(reader, out)
        if (yield from reader.literal("```")):
            yield from reader.space()
            yield from reader.literal(self.after)
        return ended

    def _call(self, tool: Tool) -> Sequence[Piece]:
        if not self._is_fenced:
            return super()._call(tool)
        name = tool["function"]["name"]
        head = f"{self.before[0]}function{self.between}{name}\n```json\n"
        return head, Json(arguments_schema(tool)), f"\n```{self.after}"


class KimiFormat(HeadedFormat):
    """Kimi K2: the name is part of the id, ``functions.name:0``."""

    _HEAD = re.compile(r"[\w.:-]*")

    def _head(self, reader: Reader) -> Steps[tuple[str, str | None] | None]:
        call_id = (yield from reader.run(self._HEAD)).strip()
        name = re.sub(r":\d+$", "", call_id.removeprefix("functions."))
        if not name or not (yield from reader.literal(self.between)):
            return None
        return name, call_id

    def _call(self, tool: Tool) -> Sequence[Piece]:
        head = f"{self.before[0]}functions.{tool['function']['name']}:"
        number = Json({"enum": [*range(100)]})
        return head, number, self.between, Json(arguments_schema(tool)), self.after


class SolarFormat(HeadedFormat):
    """Solar Open: an id, the name and the arguments, each after a marker of its own."""

    reasoning = ("<|think|>", "<|end|>")
    content_head = "<|content|>"
    content_marks = ("<|content|>", "<|begin|>assistant", "<|end|>")
    _NAMED = "<|tool_call:name|>"

    def __init__(self) -> None:
        super().__init__(
            "solar", ("<|tool_calls|>", self._NAMED), before=("<|tool_call:begin|>",),
            between="<|tool_call:args|>", after="<|tool_call:end|>", begin=("<|tool_calls|>",),
        )  # fmt: skip

    def _head(self, reader: Reader) -> Steps[tuple[str, str | None] | None]:
        call_id = yield from reader.run(_NAME)
        if not (yield from reader.literal(self._NAMED)):
            return None
        head = yield from super()._head(reader)
        return None if head is None else (head[0], call_id)

    def _before(self) -> tuple[Piece, ...]:
        return (Maybe(("<|begin|>assistant",)),)

    def _call(self, tool: Tool) -> Sequence[Piece]:
        call_id = Text(self._NAMED, {"pattern": "^[a-z0-9]{10}$"})
        name = f"{self._NAMED}{tool['function']['name']}{self.between}"
        return self.before[0], call_id, name, Json(arguments_schema(tool)), self.after


class MistralFormat(HeadedFormat):
    """Mistral since mid-2025: ``[TOOL_CALLS]name[ARGS]{...}``, an id between for some.

    Reads the older list of JSON objects too.
    """

    reasoning = ("[THINK]", "[/THINK]")

    def __init__(self) -> None:
        super().__init__(
            "mistral", ("[TOOL_CALLS]", "[ARGS]"), ("[TOOL_CALLS]",), between="[ARGS]", after=""
        )
        self._older = JsonListFormat("mistral-nemo", (), self.triggers)

    def _read_calls(
        self, marker: str, reader: Reader, out: MessageBuilder, tools: Tools | None
    ) -> Steps[None]:
        yield from reader.space()
        if (yield from reader.available(1)) in ("[", "{"):
            yield from self._older._read_calls(marker, reader, out, tools)
        else:
            yield from self._read_one(reader, out)

    def _head(self, reader: Reader) -> Steps[tuple[str, str | None] | None]:
        name = yield from reader.run(_NAME)
        call_id = None
        if (yield from reader.literal("[CALL_ID]")):
            call_id = yield from reader.run(_NAME)
        if not name:
            return None
        # Some finetunes leave the second marker out.
        yield from reader.literal(self.between)
        return name, call_id


class TaggedFunctionFormat(HeadedFormat):
    """Functionary v3.1: ``<function=name>{...}</function>``, and code after ``<|python_tag|>``."""

    def __init__(self) -> None:
        super().__init__(
            "functionary-v3.1",
            ("<function=", "</function>", "<|python_tag|>"),
            ("<function=",),
            between=">",
            after="</function>",
        )
        self.triggers = ("<function=", "<|python_tag|>")

    def _read_calls(
        self, marker: str, reader: Reader, out: MessageBuilder, tools: Tools | None
    ) -> Steps[None]:
        if marker == "<function=":
            yield from self._read_one(reader, out)
        elif not (yield from read_call(reader, out)):
            yield from read_code(reader, out, "python")


def read_code(reader: Reader, out: MessageBuilder, name: str, *stops: str) -> Steps[str | None]:
    """Read the text up to one of *stops* as a call whose argument is code.

    Returns:
        The stop, or None at the end of the text.
    """
    out.begin_call(name)
    out.arguments('{"code": "')
    found = yield from reader.until(stops, lambda text: out.arguments(quoted(text)))
    out.arguments('"}')
    out.end_call()
    return found
