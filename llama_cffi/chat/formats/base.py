"""The base classes of tool formats, and the stream that parses an answer."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ..reasoning import ReasoningSplitter
from ..scanner import Parser, Scanner
from .message import Delta, MessageBuilder, ParsedMessage
from .syntax import (
    LINE,
    CallGrammar,
    Element,
    GrammarParts,
    Tool,
    Tools,
    example,
    function_name,
)

__all__ = ["MarkedFormat", "ToolFormat", "ToolStream"]

_EXAMPLE_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "example_function",
        "parameters": {
            "type": "object",
            "properties": {"example_parameter": {"type": "string"}},
            "required": ["example_parameter"],
        },
    },
}


class ToolFormat(ABC):
    """How a family of models writes tool calls and reasoning.

    Answers are parsed from text that includes the model's special tokens, except for the one that
    ends its turn.

    Attributes:
        name: Name of the format.
        template_markers: Strings by which a chat template is recognised; all must occur in it.
        triggers: Strings that begin a call.
        reasoning: The markers before and after reasoning.
        instructions: System prompt for models whose chat template does not support tools; None:
            an example of a call. See `explain`.
        is_parallel: Whether the family writes several calls in one turn.
        content_head: Text that precedes a text answer.
        content_markers: Markers around a text answer, which are not part of it.
    """

    name: str
    template_markers: tuple[str, ...]
    triggers: tuple[str, ...]
    reasoning: tuple[str, str] = ("<think>", "</think>")
    instructions: str | None = None
    is_parallel = True
    content_head = ""
    content_markers: tuple[str, ...] = ()
    #: Whether reasoning is split off before `_parse` gets the text.
    _splits_reasoning = True

    def detect(self, template: str) -> bool:
        """Return whether a chat template, given as its source, uses this format."""
        return bool(self.template_markers) and all(m in template for m in self.template_markers)

    def stream(
        self,
        tools: Tools | None = None,
        *,
        starts_open: bool = False,
        reasoning: tuple[str, str] | None = None,
    ) -> ToolStream:
        """Return a parser for an answer that arrives in chunks.

        Args:
            tools: The tools that were offered, normalised; None: unknown. Their schemas say which
                unquoted values are strings; their names say which unmarked JSON is a call.
            starts_open: Whether the prompt ended inside reasoning; see `reasoning.opens_thinking`.
            reasoning: The markers of reasoning; None: the format's own.
        """
        splitter = None
        if self._splits_reasoning:
            splitter = ReasoningSplitter(*(reasoning or self.reasoning), starts_open=starts_open)
        return ToolStream(self, tools, splitter)

    def parse(
        self,
        text: str,
        tools: Tools | None = None,
        *,
        starts_open: bool = False,
        reasoning: tuple[str, str] | None = None,
    ) -> ParsedMessage:
        """Parse a whole answer.

        A call that cannot be parsed is not an error: see `ParsedMessage.is_malformed`.

        Args:
            text: The answer.
            tools: As for `stream`.
            starts_open: As for `stream`.
            reasoning: As for `stream`.
        """
        stream = self.stream(tools, starts_open=starts_open, reasoning=reasoning)
        stream.push(text)
        stream.finish()
        return stream.message

    def grammar_parts(
        self, tools: Tools, parallel: bool = True, required: bool = False
    ) -> GrammarParts:
        """Return the syntax of calls of *tools*, for constrained decoding.

        Args:
            tools: The tools that may be called, normalised.
            parallel: Whether to allow more than one call, if the family writes several.
            required: Whether the answer must be a call.
        """
        begin, separator, end = self._around()
        calls = tuple(CallGrammar(function_name(t), tuple(self._call(t))) for t in tools)
        triggers = self._grammar_triggers(tools)
        parallel = parallel and self.is_parallel
        before = self._before() if required else ()
        return GrammarParts(begin, calls, separator, end, triggers, parallel, required, before)

    def explain(self, tools: Tools) -> str:
        """Return a system prompt with *tools*, for chat templates that do not support tools."""
        text = self.instructions
        if text is None:
            parts = self.grammar_parts([_EXAMPLE_TOOL])
            call = "".join(map(example, parts.calls[0].elements))
            text = (
                "You can call functions. To call one, answer in exactly the form of this example:\n"
                f"{parts.begin}{call}{parts.end}\nThe functions, as JSON:"
            )
        return f"{text}\n{json.dumps(list(tools), ensure_ascii=False)}"

    def write(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Return calls as the model writes them, for chat templates that do not show calls.

        Args:
            calls: In the plain form of `messages.plain_messages`.
        """
        parts = self.grammar_parts([_only(call["function"]) for call in calls])
        written = ["".join(map(example, call.elements)) for call in parts.calls]
        return f"{parts.begin}{parts.separator.join(written)}{parts.end}"

    def _before(self) -> tuple[Element, ...]:
        """Return what may precede required calls, usually white space after reasoning."""
        return LINE, LINE

    def _around(self) -> tuple[str, str, str]:
        """Return the text before, between and after calls."""
        return "", "", ""

    def _grammar_triggers(self, tools: Tools) -> tuple[str, ...]:
        """Return prefixes of what `grammar_parts` allows."""
        return self.triggers[:1]

    @abstractmethod
    def _call(self, tool: Tool) -> Sequence[Element]:
        """Return the syntax of one call."""

    @abstractmethod
    def _parse(self, scanner: Scanner, out: MessageBuilder, tools: Tools | None) -> Parser[None]:
        """Parse the whole text."""


def _only(function: Mapping[str, Any]) -> Tool:
    """Return a tool that can be called with these arguments only; its example is that call."""
    arguments = function["arguments"]
    if not isinstance(arguments, dict):  # what a model wrote is not JSON
        arguments = {"arguments": arguments}
    properties = {name: {"enum": [value]} for name, value in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": [*arguments]}
    return {"type": "function", "function": {"name": function["name"], "parameters": parameters}}


class MarkedFormat(ToolFormat):
    """A format in which a marker, anywhere in the text, begins a call or a list of calls."""

    def _parse(self, scanner: Scanner, out: MessageBuilder, tools: Tools | None) -> Parser[None]:
        while True:
            marker = yield from scanner.until((*self.triggers, *self.content_markers), out.content)
            if marker is None:
                return
            if marker not in self.content_markers:
                yield from self._parse_marked(marker, scanner, out, tools)

    def _parse_marked(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        """Parse the calls after a marker; without any, the marker is content."""
        if not (yield from scanner.trial(self._has_calls(marker, scanner, out, tools))):
            out.malformed(marker)

    def _has_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[bool]:
        before = len(out.calls)
        yield from self._parse_calls(marker, scanner, out, tools)
        return len(out.calls) > before

    @abstractmethod
    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        """Parse what follows a marker."""


class ToolStream:
    """Parses an answer that arrives in chunks.

    Attributes:
        splitter: Splits off the reasoning and counts its tokens; None for formats that parse
            reasoning themselves.
    """

    def __init__(
        self, form: ToolFormat, tools: Tools | None, splitter: ReasoningSplitter | None
    ) -> None:
        self.splitter = splitter
        self._out = MessageBuilder(tools)
        self._scanner = Scanner()
        self._parser = form._parse(self._scanner, self._out, tools)

    @property
    def message(self) -> ParsedMessage:
        """The message so far; complete after `finish`."""
        return self._out.message()

    def push(self, text: str, n_tokens: int = 1) -> list[Delta]:
        """Add the text of *n_tokens* tokens; return the OpenAI deltas that are certain now."""
        if self.splitter is None:
            self._feed(text)
        else:
            for part in self.splitter.push(text, n_tokens):
                self._add(part.kind, part.text)
        return self._out.take()

    def finish(self) -> list[Delta]:
        """End the text and return the last deltas."""
        for part in self.splitter.finish() if self.splitter else ():
            self._add(part.kind, part.text)
        self._scanner.is_final = True
        self._advance()
        self._out.finish()
        return self._out.take()

    def _add(self, kind: str, text: str) -> None:
        if kind == "reasoning":
            self._out.reasoning(text)
        else:
            self._feed(text)

    def _feed(self, text: str) -> None:
        self._scanner.feed(text)
        self._advance()

    def _advance(self) -> None:
        next(self._parser, None)
