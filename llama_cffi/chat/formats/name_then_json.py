"""Calls with markers around the function's name and the arguments, which are a JSON object."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..scanner import Parser, Scanner, quoted
from .base import MarkedFormat
from .json_calls import JsonListFormat, parse_arguments, parse_call
from .message import MessageBuilder
from .syntax import Element, Json, Maybe, Text, Tool, Tools, arguments_schema, function_name

__all__ = [
    "DeepSeekFormat",
    "FunctionaryV31Format",
    "KimiFormat",
    "MistralFormat",
    "NameThenJsonFormat",
    "SolarFormat",
    "parse_code",
]

_NAME = re.compile(r"[\w.-]*")


@dataclass
class NameThenJsonFormat(MarkedFormat):
    """``before name between {...} after``, optionally with markers around all calls.

    Args:
        name: Name of the format.
        template_markers: See `ToolFormat`.
        before: Alternative markers before a call; grammars use the first.
        between: The marker between name and arguments.
        after: The marker after the arguments.
        begin: Alternative markers before all calls; empty if each call stands alone.
        end: The marker after all calls.
    """

    name: str
    template_markers: tuple[str, ...]
    before: tuple[str, ...]
    between: str
    after: str
    begin: tuple[str, ...] = ()
    end: str = ""

    def __post_init__(self) -> None:
        self.triggers = self.begin or self.before

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        if not self.begin:
            yield from self._parse_one(scanner, out)
            return
        while True:
            yield from scanner.space()
            # Models sometimes omit the marker of the first call.
            found = yield from scanner.literal(*self.before)
            if found is None and out.calls:
                break
            if not (yield from self._parse_one(scanner, out)):
                break
        yield from scanner.space()
        if self.end:
            yield from scanner.literal(self.end)

    def _parse_one(self, scanner: Scanner, out: MessageBuilder) -> Parser[bool]:
        """Parse a call after its marker; return whether another may follow."""
        header = yield from self._header(scanner)
        if header is None:
            return False
        yield from scanner.space()
        if (yield from scanner.available(1)) != "{":
            return False
        scanner.commit()
        out.begin_call(*header)
        ended = yield from parse_arguments(scanner, out)
        out.end_call()
        yield from scanner.space()
        yield from scanner.literal(self.after)
        return ended

    def _header(self, scanner: Scanner) -> Parser[tuple[str, str | None] | None]:
        """Parse the header up to the arguments; return the name and the id, if there is one."""
        name = yield from scanner.match(_NAME)
        if not name or not (yield from scanner.literal(self.between)):
            return None
        return name, None

    def _around(self) -> tuple[str, str, str]:
        return self.begin[0] if self.begin else "", "", self.end

    def _call(self, tool: Tool) -> Sequence[Element]:
        head = f"{self.before[0]}{function_name(tool)}{self.between}"
        return head, Json(arguments_schema(tool)), self.after


class DeepSeekFormat(NameThenJsonFormat):
    """DeepSeek R1 and V3 (a type before the name, a code fence) and V3.1 (neither); parses both."""

    _BEGIN = (
        "<｜tool▁calls▁begin｜>",  # noqa: RUF001 -- the model's own characters
        # Variants that distilled models write.
        "<｜tool_calls_begin｜>",  # noqa: RUF001
        "<｜tool calls begin｜>",  # noqa: RUF001
        "<｜tool\\_calls\\_begin｜>",  # noqa: RUF001
        "<｜tool▁calls｜>",  # noqa: RUF001
    )
    _BETWEEN = "<｜tool▁sep｜>"  # noqa: RUF001
    _AFTER = "<｜tool▁call▁end｜>"  # noqa: RUF001

    def __init__(self, name: str, template_markers: tuple[str, ...], is_fenced: bool) -> None:
        super().__init__(
            name,
            template_markers,
            before=("<｜tool▁call▁begin｜>",),  # noqa: RUF001
            between=self._BETWEEN,
            after=self._AFTER,
            begin=self._BEGIN,
            end="<｜tool▁calls▁end｜>",  # noqa: RUF001
        )
        self._is_fenced = is_fenced

    def _header(self, scanner: Scanner) -> Parser[tuple[str, str | None] | None]:
        head = yield from super()._header(scanner)
        if head is None or head[0] != "function":
            return head
        name = yield from scanner.match(_NAME)
        yield from scanner.space()
        fence = yield from scanner.literal("```json")
        return (name, None) if name and fence else None

    def _parse_one(self, scanner: Scanner, out: MessageBuilder) -> Parser[bool]:
        ended = yield from super()._parse_one(scanner, out)
        if (yield from scanner.literal("```")):
            yield from scanner.space()
            yield from scanner.literal(self.after)
        return ended

    def _call(self, tool: Tool) -> Sequence[Element]:
        if not self._is_fenced:
            return super()._call(tool)
        name = function_name(tool)
        head = f"{self.before[0]}function{self.between}{name}\n```json\n"
        return head, Json(arguments_schema(tool)), f"\n```{self.after}"


class KimiFormat(NameThenJsonFormat):
    """Kimi K2: the name is part of the id, ``functions.name:0``."""

    _ID = re.compile(r"[\w.:-]*")

    def _header(self, scanner: Scanner) -> Parser[tuple[str, str | None] | None]:
        call_id = (yield from scanner.match(self._ID)).strip()
        name = re.sub(r":\d+$", "", call_id.removeprefix("functions."))
        if not name or not (yield from scanner.literal(self.between)):
            return None
        return name, call_id

    def _call(self, tool: Tool) -> Sequence[Element]:
        head = f"{self.before[0]}functions.{function_name(tool)}:"
        number = Json({"enum": [*range(100)]})
        return head, number, self.between, Json(arguments_schema(tool)), self.after


class SolarFormat(NameThenJsonFormat):
    """Solar Open: an id, the name and the arguments, each after its own marker."""

    reasoning = ("<|think|>", "<|end|>")
    content_head = "<|content|>"
    content_markers = ("<|content|>", "<|begin|>assistant", "<|end|>")
    _NAMED = "<|tool_call:name|>"

    def __init__(self) -> None:
        super().__init__(
            "solar", ("<|tool_calls|>", self._NAMED), before=("<|tool_call:begin|>",),
            between="<|tool_call:args|>", after="<|tool_call:end|>", begin=("<|tool_calls|>",),
        )  # fmt: skip

    def _header(self, scanner: Scanner) -> Parser[tuple[str, str | None] | None]:
        call_id = yield from scanner.match(_NAME)
        if not (yield from scanner.literal(self._NAMED)):
            return None
        head = yield from super()._header(scanner)
        return None if head is None else (head[0], call_id)

    def _before(self) -> tuple[Element, ...]:
        return (Maybe(("<|begin|>assistant",)),)

    def _call(self, tool: Tool) -> Sequence[Element]:
        call_id = Text(self._NAMED, {"pattern": "^[a-z0-9]{10}$"})
        name = f"{self._NAMED}{function_name(tool)}{self.between}"
        return self.before[0], call_id, name, Json(arguments_schema(tool)), self.after


class MistralFormat(NameThenJsonFormat):
    """Mistral since mid-2025: ``[TOOL_CALLS]name[ARGS]{...}``, with an id between for some.

    Also parses the older list of JSON objects.
    """

    reasoning = ("[THINK]", "[/THINK]")

    def __init__(self) -> None:
        super().__init__(
            "mistral", ("[TOOL_CALLS]", "[ARGS]"), ("[TOOL_CALLS]",), between="[ARGS]", after=""
        )
        self._older = JsonListFormat("mistral-nemo", (), self.triggers)

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        yield from scanner.space()
        if (yield from scanner.available(1)) in ("[", "{"):
            yield from self._older._parse_calls(marker, scanner, out, tools)
        else:
            yield from self._parse_one(scanner, out)

    def _header(self, scanner: Scanner) -> Parser[tuple[str, str | None] | None]:
        name = yield from scanner.match(_NAME)
        call_id = None
        if (yield from scanner.literal("[CALL_ID]")):
            call_id = yield from scanner.match(_NAME)
        if not name:
            return None
        # Some fine-tuned models omit the second marker.
        yield from scanner.literal(self.between)
        return name, call_id


class FunctionaryV31Format(NameThenJsonFormat):
    """Functionary v3.1: ``<function=name>{...}</function>``, or code after ``<|python_tag|>``."""

    def __init__(self) -> None:
        super().__init__(
            "functionary-v3.1",
            ("<function=", "</function>", "<|python_tag|>"),
            ("<function=",),
            between=">",
            after="</function>",
        )
        self.triggers = ("<function=", "<|python_tag|>")

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        if marker == "<function=":
            yield from self._parse_one(scanner, out)
        elif not (yield from parse_call(scanner, out)):
            yield from parse_code(scanner, out, "python")


def parse_code(scanner: Scanner, out: MessageBuilder, name: str, *stops: str) -> Parser[str | None]:
    """Parse the text up to one of *stops* as a call whose argument is source code.

    Returns:
        The stop string, or None at the end of the text.
    """
    out.begin_call(name)
    out.arguments('{"code": "')
    found = yield from scanner.until(stops, lambda text: out.arguments(quoted(text)))
    out.arguments('"}')
    out.end_call()
    return found
