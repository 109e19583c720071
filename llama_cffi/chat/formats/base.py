"""A tool format: how a family of models writes calls, and the stream that reads them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ..reader import Reader, Steps
from ..reasoning import ReasoningSplitter
from .grammar import LINE, CallGrammar, GrammarParts, Piece, example
from .message import Delta, MessageBuilder, ParsedMessage

__all__ = ["Tool", "ToolFormat", "ToolStream", "Tools"]

Tool = Mapping[str, Any]
Tools = Sequence[Tool]

_SAMPLE: Tool = {
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
    """How a family writes tool calls and thoughts.

    The text has to hold the model's special tokens as text, but those that end its turn.

    Attributes:
        name: Of the format.
        marks: Texts that a chat template of this family holds, all of them.
        triggers: Texts that begin a call.
        reasoning: The markers around a thought.
        instructions: What the system prompt has to say of calls where the template says nothing;
            None shows a call of the format. See `explain`.
    """

    name: str
    marks: tuple[str, ...]
    triggers: tuple[str, ...]
    reasoning: tuple[str, str] = ("<think>", "</think>")
    instructions: str | None = None
    #: Whether the family writes several calls in one turn.
    is_parallel = True
    #: What the family writes before an answer in words.
    content_head = ""
    #: Markers around an answer in words, which are no part of it.
    content_marks: tuple[str, ...] = ()
    #: Whether `_read` sees the text without the thought.
    _splits_reasoning = True

    def detect(self, template: str) -> bool:
        """Say whether a chat template (its source) is of this family."""
        return bool(self.marks) and all(mark in template for mark in self.marks)

    def stream(
        self,
        tools: Tools | None = None,
        *,
        starts_open: bool = False,
        reasoning: tuple[str, str] | None = None,
    ) -> ToolStream:
        """Begin to read an answer that arrives in pieces.

        Args:
            tools: What was offered: it says which raw values are strings, and, where a format
                marks its calls by nothing, which JSON is a call. None is not known.
            starts_open: The prompt ended inside a thought (`reasoning.opens_thinking`).
            reasoning: The markers of a thought, if not the format's own.
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
        """Read a whole answer; the arguments are those of `stream`.

        What cannot be read is no error: see `ParsedMessage.is_malformed`.
        """
        stream = self.stream(tools, starts_open=starts_open, reasoning=reasoning)
        stream.push(text)
        stream.finish()
        return stream.message

    def grammar_parts(
        self, tools: Tools, parallel: bool = True, required: bool = False
    ) -> GrammarParts:
        """Describe what a call of *tools* looks like, for constrained decoding.

        Args:
            tools: Those that may be called, normalised.
            parallel: Whether more than one call is allowed, where the family writes them.
            required: Whether the answer has to be a call.
        """
        begin, separator, end = self._around()
        calls = tuple(CallGrammar(t["function"]["name"], tuple(self._call(t))) for t in tools)
        triggers = self._grammar_triggers(tools)
        parallel = parallel and self.is_parallel
        before = self._before() if required else ()
        return GrammarParts(begin, calls, separator, end, triggers, parallel, required, before)

    def explain(self, tools: Tools) -> str:
        """Return what to tell a model whose chat template does not show it *tools*."""
        text = self.instructions
        if text is None:
            parts = self.grammar_parts([_SAMPLE])
            call = "".join(map(example, parts.calls[0].pieces))
            text = (
                "You can call functions. To call one, answer in exactly the form of this example:\n"
                f"{parts.begin}{call}{parts.end}\nThe functions, as JSON:"
            )
        return f"{text}\n{json.dumps(list(tools), ensure_ascii=False)}"

    def _before(self) -> tuple[Piece, ...]:
        """Return what may stand before required calls: mostly what follows a thought."""
        return LINE, LINE

    def _around(self) -> tuple[str, str, str]:
        """Return what stands before, between and after calls."""
        return "", "", ""

    def _grammar_triggers(self, tools: Tools) -> tuple[str, ...]:
        """Return the beginnings of what `grammar_parts` allows."""
        return self.triggers[:1]

    @abstractmethod
    def _call(self, tool: Tool) -> Sequence[Piece]:
        """Describe one call."""

    @abstractmethod
    def _read(self, reader: Reader, out: MessageBuilder, tools: Tools | None) -> Steps[None]:
        """Read the whole text."""


class MarkedFormat(ToolFormat):
    """A format whose calls, or lists of calls, begin with a marker anywhere in the text."""

    def _read(self, reader: Reader, out: MessageBuilder, tools: Tools | None) -> Steps[None]:
        while True:
            marker = yield from reader.until((*self.triggers, *self.content_marks), out.content)
            if marker is None:
                return
            if marker in self.content_marks:
                continue
            before = len(out.calls)
            reader.hold()
            yield from self._read_calls(marker, reader, out, tools)
            if len(out.calls) > before:
                reader.release()
            else:
                reader.back()
                out.malformed(marker)

    @abstractmethod
    def _read_calls(
        self, marker: str, reader: Reader, out: MessageBuilder, tools: Tools | None
    ) -> Steps[None]:
        """Read what follows a marker; without a call the marker was content."""


class ToolStream:
    """Reads an answer that arrives in pieces.

    Attributes:
        message: What was read so far; whole after `finish`.
        splitter: Tells the thought from the rest and counts its tokens; None where the format has
            no markers of its own for that.
    """

    def __init__(
        self, form: ToolFormat, tools: Tools | None, splitter: ReasoningSplitter | None
    ) -> None:
        self.splitter = splitter
        self._out = MessageBuilder()
        self._reader = Reader()
        self._steps = form._read(self._reader, self._out, tools)

    @property
    def message(self) -> ParsedMessage:
        """What was read so far; whole after `finish`."""
        return self._out.message()

    def push(self, text: str, n_tokens: int = 1) -> list[Delta]:
        """Take the text of *n_tokens* tokens and return OpenAI's deltas that it settles."""
        if self.splitter is None:
            self._feed(text)
        else:
            for piece in self.splitter.push(text, n_tokens):
                self._add(piece.kind, piece.text)
        return self._out.take()

    def finish(self) -> list[Delta]:
        """Return the last deltas; what was held back is content."""
        for piece in self.splitter.finish() if self.splitter else ():
            self._add(piece.kind, piece.text)
        self._reader.is_final = True
        self._advance()
        self._out.finish()
        return self._out.take()

    def _add(self, kind: str, text: str) -> None:
        if kind == "reasoning":
            self._out.reasoning(text)
        else:
            self._feed(text)

    def _feed(self, text: str) -> None:
        self._reader.feed(text)
        self._advance()

    def _advance(self) -> None:
        next(self._steps, None)
