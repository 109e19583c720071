"""GPT-OSS: messages in channels (harmony)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..reader import Reader, Steps
from .base import Tool, ToolFormat, Tools
from .grammar import Choice, Json, Maybe, Piece, Text, arguments_schema
from .headed import read_code
from .json_calls import read_arguments
from .message import MessageBuilder

__all__ = ["HarmonyFormat"]

_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_WORDS = re.compile(r"[\w .,:;=/-]*")
_THOUGHT = r"^([^<]|<+[^<|])*$"  # without markers
_BEGINS = ("<|start|>", "<|channel|>")
_MARKS = (*_BEGINS, "<|end|>", "<|call|>", "<|return|>")


class HarmonyFormat(ToolFormat):
    """Channel `analysis` is the thought, `final` and `commentary` are content, recipients calls.

    A header is ``<|start|>assistant<|channel|>name to=recipient<|message|>``, in several orders;
    the prompt ends with the first ``<|start|>assistant``.
    """

    name = "harmony"
    marks = ("<|channel|>", "<|message|>")
    triggers = ("<|channel|>commentary to=functions.", " to=functions.")
    reasoning = ("<|channel|>analysis<|message|>", "<|end|>")
    is_parallel = False
    content_head = "<|channel|>final<|message|>"
    _splits_reasoning = False

    def _read(self, reader: Reader, out: MessageBuilder, tools: Tools | None) -> Steps[None]:
        # The prompt ends inside the first header.
        mark = yield from reader.literal(*_BEGINS, " to=")
        if mark is None:
            mark = yield from reader.until(_MARKS, out.content)
        while mark is not None:
            header = None
            if mark in (*_BEGINS, " to="):
                reader.hold()
                header = yield from self._header(mark, reader)
                if header is None:
                    reader.back()
                    out.malformed(mark)
            if header is None:
                mark = yield from reader.until(_MARKS, out.content)
            else:
                reader.release()
                mark = yield from self._body(header, reader, out)

    def _header(self, header: str, reader: Reader) -> Steps[str | None]:
        """Read the rest of a header, or None if it is none."""
        while True:
            header += yield from reader.run(_WORDS)
            mark = yield from reader.literal(*_BEGINS, "<|constrain|>", "<|message|>")
            if mark is None or mark in header:
                return None
            if mark == "<|message|>":
                return header
            header += mark

    def _body(self, header: str, reader: Reader, out: MessageBuilder) -> Steps[str | None]:
        """Read a message; return the marker after it."""
        recipient = _RECIPIENT.search(header)
        channel = _CHANNEL.search(header)
        if recipient and recipient[1] != "assistant":
            name = recipient[1].removeprefix("functions.")
            if (yield from reader.available(1)) != "{":
                return (yield from read_code(reader, out, name, *_MARKS))
            out.begin_call(name)
            yield from read_arguments(reader, out)
            out.end_call()
            return (yield from reader.until(_MARKS, lambda _: None))
        if channel and channel[1] == "analysis":
            out.reasoning("\n" if out.has_reasoning else "")
            return (yield from reader.until(_MARKS, out.reasoning))
        out.content("\n" if out.has_content else "")
        return (yield from reader.until(_MARKS, out.content))

    def _before(self) -> tuple[Piece, ...]:
        start, (begin, end) = "<|start|>assistant", self.reasoning
        thought = (begin, Text(end, {"pattern": _THOUGHT}), end, start)
        # Where the thought was not part of the grammar, what begins the next message is.
        return (Maybe((Choice((thought, (start,))),)),)

    def _call(self, tool: Tool) -> Sequence[Piece]:
        head = f"{self.triggers[0]}{tool['function']['name']} <|constrain|>json<|message|>"
        return head, Json(arguments_schema(tool))
