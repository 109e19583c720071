"""Builds a grammar of tool calls for constrained decoding."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from ..chat.formats import Alternatives, Element, GrammarParts, Json, Maybe, Repeat, Text
from ..grammars import LlamaGrammar
from ..grammars.enforceable import enforceable
from ..grammars.integers import written
from ..grammars.patterns import whole
from ..schema import close_objects

__all__ = ["call_grammar"]


def call_grammar(parts: GrammarParts, special: Mapping[str, int]) -> LlamaGrammar:
    """Return the grammar of an answer that consists of tool calls.

    Args:
        parts: The syntax of the calls.
        special: The model's control tokens by text; the grammar refers to them by id.
    """
    writer = _Writer(special)
    calls = " | ".join(writer.sequence(call.elements) for call in parts.calls)
    separator = writer.literal(parts.separator)
    if parts.separator.isspace():
        separator += "?"
    more = f"({separator} call)*" if parts.is_parallel else ""
    before = writer.sequence(parts.before)
    begin, end = writer.literal(parts.begin), writer.literal(parts.end)
    start = f"start: {before} {begin} call {more} {end}"
    return LlamaGrammar.from_lark("\n".join([start, f"call: {calls}", *writer.rules]))


class _Writer:
    """Writes elements as Lark.

    Attributes:
        rules: The terminals that the written elements refer to.
    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self.rules: list[str] = []
        names = sorted(special, key=len, reverse=True)
        self._ids = special
        self._special = re.compile("(" + "|".join(map(re.escape, names)) + ")")
        self._has_special = bool(names)

    def literal(self, text: str) -> str:
        parts = self._special.split(text) if self._has_special else [text]
        return " ".join(
            f"<[{self._ids[part]}]>" if i % 2 else json.dumps(part, ensure_ascii=False)
            for i, part in enumerate(parts)
            if part
        )

    def _is_control(self, stop: str) -> bool:
        """Return whether *stop* begins with a control token, which text cannot contain."""
        return self._has_special and bool(self._special.match(stop))

    def sequence(self, elements: Sequence[Element]) -> str:
        written, rest = [], list(elements)
        while rest:
            element = rest.pop(0)
            stop = element.stop if isinstance(element, Text) else ""
            if stop and not self._is_control(stop) and rest and isinstance(rest[0], str):
                # A lexer would match the beginning of the stop as text, so both form one terminal.
                rest[0] = rest[0].removeprefix(stop)
            written.append(self.piece(element))
        return " ".join(filter(None, written)) or '""'

    def text(self, piece: Text) -> str:
        """Write text and, unless it begins with a control token, its stop string."""
        name = f"TEXT_{len(self.rules)}"
        stop = "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in piece.stop)
        least, most = piece.schema.get("minLength", 0), piece.schema.get("maxLength", "")
        text = f"/(?s:.{{{least},{most}}})/"
        if not self._is_control(piece.stop):
            text += f" & ~/(?s:.*){stop}(?s:.*)/"
        if pattern := piece.schema.get("pattern"):
            text += f" & /{whole(pattern)}/"
        if self._is_control(piece.stop):
            self.rules.append(f"{name}: {text}")
            return name
        self.rules.append(f"{name}: ({text}) /{stop}/")
        return name

    def piece(self, piece: Element) -> str:
        if isinstance(piece, str):
            return self.literal(piece)
        if isinstance(piece, Json):
            return written(enforceable(close_objects(piece.schema)), self.rules)
        if isinstance(piece, Text):
            return self.text(piece)
        if isinstance(piece, Maybe):
            return f"({self.sequence(piece.elements)})?"
        if isinstance(piece, Alternatives):
            return "(" + " | ".join(map(self.sequence, piece.options)) + ")"
        assert isinstance(piece, Repeat)
        inner = self.sequence(piece.elements)
        return f"({inner} ({self.literal(piece.separator)} {inner})*)?"
