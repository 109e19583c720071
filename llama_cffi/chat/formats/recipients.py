"""Answers made of messages, each of which names its recipient; calls are messages to functions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..scanner import Parser, Scanner
from .base import ToolFormat
from .json_calls import offered_name, parse_arguments
from .message import MessageBuilder
from .name_then_json import parse_code, takes_code
from .syntax import (
    Alternatives,
    Element,
    Json,
    Maybe,
    Text,
    Tool,
    Tools,
    arguments_schema,
    function_name,
)
from .tagged_arguments import TaggedArgumentsFormat

__all__ = ["FunctionaryV32Format", "HarmonyFormat", "MuseFormat"]

_NAME = re.compile(r"[\w.-]*")
_NO_SPECIAL_TOKEN = r"^([^<]|<+[^<|])*$"


class HarmonyFormat(ToolFormat):
    """OpenAI's harmony format (GPT-OSS).

    A header is ``<|start|>assistant<|channel|>name to=recipient<|message|>``, in several orders.
    Channel `analysis` is reasoning, `final` and `commentary` are content, messages with a recipient
    are calls. The prompt ends with the first ``<|start|>assistant``.
    """

    name = "harmony"
    template_markers = ("<|channel|>", "<|message|>")
    triggers = ("<|channel|>commentary to=functions.", " to=functions.")
    reasoning = ("<|channel|>analysis<|message|>", "<|end|>")
    is_parallel = False
    content_head = "<|channel|>final<|message|>"
    _splits_reasoning = False

    _RECIPIENT = re.compile(r"\bto=\s*([\w.-]+)|\b(functions\.[\w.-]+)")
    _CHANNEL = re.compile(r"(?:<\|channel\|>\W*|^)(analysis|commentary|final)")
    _CHANNEL_WORD = re.compile(r"(analysis|commentary|final)(?![a-z0-9_])")
    _HEADER_TEXT = re.compile(r"[^<\n]*")
    _EXTRA = re.compile(r"[\s}\]`]*")
    _MAX_HEADER = 200  # characters
    _STARTS = ("<|start|>", "<|channel|>", "<|message|>", " to=", "to=")
    _ROLES = ("assistant", "analysis", "commentary", "final")
    _IN_HEADER = ("<|channel|>", "<|constrain|>", "<|message|>")
    _BOUNDARIES = ("<|start|>", "<|channel|>", "<|end|>", "<|call|>", "<|return|>")
    _NO_FUNCTIONS = ("assistant", "user", "all", "functions")

    def _parse(self, scanner: Scanner, out: MessageBuilder, tools: Tools | None) -> Parser[None]:
        stop: str | None = ""  # the prompt ends inside the first header
        while stop is not None:
            header = None
            for parse_header in (self._header, self._short_header):
                if header is None:
                    header = yield from scanner.attempt(parse_header(stop, scanner))
            if header is None:
                if stop in self._STARTS:
                    out.malformed(stop)
                stop = yield from scanner.until(self._BOUNDARIES, out.content)
            else:
                stop = yield from self._body(header, scanner, out, tools)

    def _header(self, start: str, scanner: Scanner) -> Parser[str | None]:
        """Parse a header up to ``<|message|>``, with whatever is in it; return all of it."""
        header = start
        if start not in self._STARTS:
            header = (yield from scanner.literal(*self._STARTS, *self._ROLES)) or ""
            if header in self._ROLES:
                header += yield from scanner.space()
                header += (yield from scanner.literal(*self._IN_HEADER, "to=")) or ""
            if not header or header.strip() in self._ROLES:
                return None
        while not header.endswith("<|message|>"):
            header += yield from scanner.match(self._HEADER_TEXT)
            found = yield from scanner.literal(*self._IN_HEADER)
            if found is None or len(header) > self._MAX_HEADER:
                return None
            header += found
        return header

    def _short_header(self, start: str, scanner: Scanner) -> Parser[str | None]:
        """Parse a header without ``<|message|>``: a channel, perhaps with a recipient."""
        header = start
        for words in (("<|start|>",), ("assistant",), (" to=", "to="), ("<|channel|>",)):
            if words[0] != start:
                header += (yield from scanner.literal(*words)) or ""
            if header.endswith("to="):
                header += yield from scanner.match(_NAME)
        word = yield from scanner.literal(*self._ROLES[1:])
        following = yield from scanner.available(1)
        if not header.endswith("<|channel|>") or not word or following.islower():
            return None
        header += word + (yield from scanner.space())
        if (yield from scanner.literal("to=")):
            header += "to=" + (yield from scanner.match(_NAME))
        yield from scanner.space()
        if (yield from scanner.literal("<|constrain|>")):
            yield from scanner.match(_NAME)
        return header

    def _body(
        self, header: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[str | None]:
        """Parse a message; return the marker after it."""
        channels = self._CHANNEL.findall(header)
        recipients = ["assistant", *map("".join, self._RECIPIENT.findall(header))]
        name = recipients[-1].strip(".")
        if name not in self._NO_FUNCTIONS:
            name = offered_name(name.removeprefix("functions."), tools)
            if takes_code(name, tools) and (yield from scanner.peek(self._is_code(scanner))):
                return (yield from parse_code(scanner, out, name, *self._BOUNDARIES))
            if (yield from scanner.trial(self._arguments(name, scanner, out, tools))):
                yield from scanner.match(self._EXTRA)
                return (yield from scanner.until(self._BOUNDARIES, out.content))
            out.malformed()
        elif channels[-1:] == ["analysis"]:
            out.reasoning("\n" if out.has_reasoning else "")
            return (yield from scanner.until(self._BOUNDARIES, out.reasoning))
        out.content("\n" if out.has_content else "")
        return (yield from scanner.until(self._BOUNDARIES, out.content))

    def _arguments(
        self, name: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[bool]:
        yield from self._open_fence(scanner)
        return (yield from parse_arguments(scanner, out, name, None, tools, self._BOUNDARIES))

    def _is_code(self, scanner: Scanner) -> Parser[bool]:
        """Return whether source code follows, not JSON."""
        yield from self._open_fence(scanner)
        return (yield from scanner.available(1)) not in ("{", "<", "")

    def _open_fence(self, scanner: Scanner) -> Parser[None]:
        yield from scanner.space()
        yield from scanner.literal("```json", "```")
        yield from scanner.space()

    def _before(self) -> tuple[Element, ...]:
        start, (begin, end) = "<|start|>assistant", self.reasoning
        reasoning = (begin, Text(end, {"pattern": _NO_SPECIAL_TOKEN}), end, start)
        # If reasoning came before the grammar, only the start of the next message is left.
        return (Maybe((Alternatives((reasoning, (start,))),)),)

    def _call(self, tool: Tool) -> Sequence[Element]:
        head = f"{self.triggers[0]}{function_name(tool)} <|constrain|>json<|message|>"
        return head, Json(arguments_schema(tool))


class FunctionaryV32Format(ToolFormat):
    """Functionary v3.2: ``>>>recipient`` and a line break before each message.

    Messages to `all` are content, all others are calls. The prompt ends with the first ``>>>``.
    """

    name = "functionary-v3.2"
    template_markers = (">>>all",)
    triggers = (">>>",)
    content_head = "all\n"

    _MARKER = ">>>"

    def _parse(self, scanner: Scanner, out: MessageBuilder, tools: Tools | None) -> Parser[None]:
        found: str | None = (yield from scanner.literal(self._MARKER)) or ""
        while found is not None:
            marker, found = found, None
            name = yield from scanner.attempt(self._recipient(scanner, tools))
            if name is None:
                out.content(marker)
            elif name != "all":
                found = yield from self._parse_call(name, scanner, out, tools)
            found = found or (yield from scanner.until([self._MARKER], out.content))

    def _recipient(self, scanner: Scanner, tools: Tools | None) -> Parser[str | None]:
        """Parse a header after its marker; return the name, None if it is none."""
        name = yield from scanner.match(_NAME)
        if not name or not (yield from scanner.literal("\n")):
            return None
        names = {"all", "python", *map(function_name, tools or ())}
        return name if tools is None or name in names else None

    def _parse_call(
        self, name: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[str | None]:
        """Parse a call from its arguments on; return the next marker if it was consumed."""
        yield from scanner.space()
        if takes_code(name, tools) and (yield from scanner.available(1)) != "{":
            return (yield from parse_code(scanner, out, name, self._MARKER))
        arguments = parse_arguments(scanner, out, name, None, tools, [self._MARKER])
        if not (yield from scanner.trial(arguments)):
            out.malformed(f"{self._MARKER}{name}\n")
        return None

    def _before(self) -> tuple[Element, ...]:
        return ()

    def _around(self) -> tuple[str, str, str]:
        return "", self._MARKER, ""

    def _grammar_triggers(self, tools: Tools) -> tuple[str, ...]:
        # The prompt has the first marker, so a call begins with its name.
        return tuple(f"{function_name(tool)}\n" for tool in tools)

    def _call(self, tool: Tool) -> Sequence[Element]:
        return f"{function_name(tool)}\n", Json(arguments_schema(tool))


class MuseFormat(TaggedArgumentsFormat):
    """Muse Glimmer: ``to=self`` is reasoning, ``to=user`` content, any other recipient a call."""

    _splits_reasoning = False

    _START, _TO, _HEADER_END = "<|start|>assistant", " to=", "<|message|>"
    _NEXT = "<|eom|>"
    _ENDS = (_NEXT, "<|eot|>")

    def __init__(self) -> None:
        super().__init__(
            "muse", ("<atem:function_calls>",), "<atem:function_calls>", '<atem:invoke name="',
            '">', ('<atem:parameter name="', '">'), ("", "</atem:parameter>"), "</atem:invoke>",
            "</atem:function_calls>",
            reasoning=(f"{self._TO}self{self._HEADER_END}", self._NEXT),
        )  # fmt: skip
        self.content_head = f"{self._TO}user{self._HEADER_END}"

    def _parse(self, scanner: Scanner, out: MessageBuilder, tools: Tools | None) -> Parser[None]:
        # The prompt ends inside the first header.
        while True:
            yield from scanner.literal(self._START)
            if (yield from scanner.attempt(self._recipient(scanner))) == "self":
                marker = yield from scanner.until(self._ENDS, out.reasoning)
            else:
                marker = yield from scanner.until((self.open, *self._ENDS), out.content)
            if marker == self.open:
                yield from self._parse_marked(self.open, scanner, out, tools)
                marker = yield from scanner.until(self._ENDS, out.content)
            if marker is None:
                return

    def _recipient(self, scanner: Scanner) -> Parser[str | None]:
        """Parse the rest of a header; return the name in it, None if it is none."""
        name = ""
        if (yield from scanner.literal(self._TO)):
            name = yield from scanner.match(_NAME)
        return name if (yield from scanner.literal(self._HEADER_END)) else None

    def _around(self) -> tuple[str, str, str]:
        return "", f"{self._NEXT}{self._START}", ""

    def _grammar_triggers(self, tools: Tools) -> tuple[str, ...]:
        return tuple(f"{self._TO}{function_name(tool)}{self._HEADER_END}" for tool in tools)

    def _before(self) -> tuple[Element, ...]:
        begin, end = self.reasoning
        reasoning = (begin, Text(end, {"pattern": _NO_SPECIAL_TOKEN}), end, self._START)
        return (Maybe((Alternatives((reasoning, (self._START,))),)),)

    def _call(self, tool: Tool) -> Sequence[Element]:
        return f"{self._TO}{function_name(tool)}{self._HEADER_END}", *super()._call(tool)
