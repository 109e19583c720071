"""Calls with markers around the function's name and the arguments, which are a JSON object."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..scanner import Parser, Scanner, quoted
from .base import MarkedFormat
from .json_calls import JsonListFormat, parse_arguments, parse_call, parse_end
from .message import MessageBuilder
from .syntax import (
    Element,
    Json,
    Maybe,
    Text,
    Tool,
    Tools,
    arguments_schema,
    call_schema,
    function_name,
)

__all__ = [
    "DeepSeekFormat",
    "FunctionaryV31Format",
    "KimiFormat",
    "MistralFormat",
    "NameThenJsonFormat",
    "SolarFormat",
    "parse_code",
    "takes_code",
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
        end: Alternative markers after all calls.
    """

    name: str
    template_markers: tuple[str, ...]
    before: tuple[str, ...]
    between: str
    after: str
    begin: tuple[str, ...] = ()
    end: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Models sometimes omit the marker before all calls.
        self.triggers = (*self.begin, *self.before)

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        has_marker = marker in self.before
        is_first = True
        while True:
            yield from scanner.space()
            call = self._parse_next(scanner, out, tools, has_marker, is_first)
            if not (yield from scanner.trial(call)):
                break
            has_marker = is_first = False
        if self.end:
            yield from scanner.literal(*self.end)

    def _parse_next(
        self,
        scanner: Scanner,
        out: MessageBuilder,
        tools: Tools | None,
        has_marker: bool,
        is_first: bool,
    ) -> Parser[bool]:
        """Parse a call, and its marker unless it *has_marker*; return whether it is one."""
        has_marker = has_marker or bool((yield from scanner.literal(*self.before)))
        # Models sometimes omit the marker of the first call.
        return (has_marker or is_first) and (yield from self._parse_one(scanner, out, tools))

    def _parse_one(
        self, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[bool]:
        """Parse a call after its marker; return whether it is one."""
        yield from scanner.space()
        header = yield from self._header(scanner)
        if header is None:
            return False
        yield from scanner.space()
        yield from scanner.literal("```json", "```")
        yield from scanner.space()
        ends = tuple(filter(None, (self.after, *self.before, *self.end, "```")))
        if not (yield from parse_arguments(scanner, out, *header, tools, ends)):
            return False
        yield from parse_end(scanner, *filter(None, [self.after]))
        return True

    def _header(self, scanner: Scanner) -> Parser[tuple[str, str | None] | None]:
        """Parse the header up to the arguments; return the name and the id, if there is one."""
        name = yield from scanner.match(_NAME)
        return (name, None) if (yield from self._ends_header(name, scanner)) else None

    def _ends_header(self, name: str, scanner: Scanner) -> Parser[bool]:
        """Parse the marker after a name; some models omit it."""
        yield from scanner.space()
        found = yield from scanner.literal(self.between)
        return bool(name) and (bool(found) or (yield from scanner.available(1)) == "{")

    def _around(self) -> tuple[str, str, str]:
        return "".join(self.begin[:1]), "", "".join(self.end[:1])

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
            end=("<｜tool▁calls▁end｜>",),  # noqa: RUF001
        )
        self._is_fenced = is_fenced

    def _header(self, scanner: Scanner) -> Parser[tuple[str, str | None] | None]:
        head = yield from super()._header(scanner)
        if head is None or head[0] != "function":
            return head
        name = yield from scanner.match(_NAME)
        return name or "function", None

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
        call_id = yield from scanner.match(self._ID)
        name = re.sub(r"[:.]\d+$", "", call_id.removeprefix("functions."))
        return (name, call_id) if (yield from self._ends_header(name, scanner)) else None

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
            yield from super()._parse_calls(marker, scanner, out, tools)

    def _header(self, scanner: Scanner) -> Parser[tuple[str, str | None] | None]:
        name = yield from scanner.match(_NAME)
        call_id = None
        if (yield from scanner.literal("[CALL_ID]")):
            call_id = yield from scanner.match(_NAME)
        return (name, call_id) if (yield from self._ends_header(name, scanner)) else None


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
            yield from super()._parse_calls(marker, scanner, out, tools)
            return
        if not (yield from scanner.trial(parse_call(scanner, out, tools))):
            yield from parse_code(scanner, out, "python")


def takes_code(name: str, tools: Tools | None) -> bool:
    """Return whether source code can be the argument of a function; a built-in tool takes it."""
    schema = call_schema(name, tools)
    return not schema or "code" in (schema.get("properties") or {})


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
