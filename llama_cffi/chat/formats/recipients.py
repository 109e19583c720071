"""Muse Glimmer: each message of an answer says to whom it goes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..reader import Reader, Steps
from .base import Tool, Tools
from .grammar import Choice, Maybe, Piece, Text
from .message import MessageBuilder
from .tagged_values import TaggedValuesFormat

__all__ = ["RecipientsFormat"]

_NAME = re.compile(r"[\w.-]*")
_START, _TO, _HEAD_END = "<|start|>assistant", " to=", "<|message|>"
_NEXT = "<|eom|>"
_ENDS = (_NEXT, "<|eot|>")
_NO_MARKER = r"^([^<]|<+[^<|])*$"


class RecipientsFormat(TaggedValuesFormat):
    """``to=self`` is the thought, ``to=user`` the content, any other a call."""

    _splits_reasoning = False

    def __init__(self) -> None:
        super().__init__(
            "muse", ("<atem:function_calls>",), "<atem:function_calls>", '<atem:invoke name="',
            '">', ('<atem:parameter name="', '">'), ("", "</atem:parameter>"), "</atem:invoke>",
            "</atem:function_calls>", reasoning=(f"{_TO}self{_HEAD_END}", _NEXT),
        )  # fmt: skip
        self.content_head = f"{_TO}user{_HEAD_END}"

    def _read(self, reader: Reader, out: MessageBuilder, tools: Tools | None) -> Steps[None]:
        # The prompt ends inside the first header.
        while True:
            yield from reader.literal(_START)
            name = ""
            reader.hold()
            if (yield from reader.literal(_TO)):
                name = yield from reader.run(_NAME)
            if (yield from reader.literal(_HEAD_END)):
                reader.release()
            else:
                reader.back()
                name = ""
            if name == "self":
                mark = yield from reader.until(_ENDS, out.reasoning)
            else:
                mark = yield from reader.until((self.open, *_ENDS), out.content)
            if mark == self.open:
                before = len(out.calls)
                reader.hold()
                yield from self._read_calls(mark, reader, out, tools)
                if len(out.calls) > before:
                    reader.release()
                else:
                    reader.back()
                    out.malformed(mark)
                mark = yield from reader.until(_ENDS, out.content)
            if mark is None:
                return

    def _around(self) -> tuple[str, str, str]:
        return "", f"{_NEXT}{_START}", ""

    def _grammar_triggers(self, tools: Tools) -> tuple[str, ...]:
        return tuple(f"{_TO}{tool['function']['name']}{_HEAD_END}" for tool in tools)

    def _before(self) -> tuple[Piece, ...]:
        begin, end = self.reasoning
        thought = (begin, Text(end, {"pattern": _NO_MARKER}), end, _START)
        return (Maybe((Choice((thought, (_START,))),)),)

    def _call(self, tool: Tool) -> Sequence[Piece]:
        return f"{_TO}{tool['function']['name']}{_HEAD_END}", *super()._call(tool)
