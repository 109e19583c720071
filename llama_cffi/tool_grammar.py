"""The grammar of tool calls, for constrained decoding."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from .chat.formats import Choice, GrammarParts, Json, Maybe, Piece, Repeat, Text
from .structured import LlamaGrammar

__all__ = ["call_grammar"]


def call_grammar(parts: GrammarParts, special: Mapping[str, int]) -> LlamaGrammar:
    """Return the grammar of an answer that is calls and nothing else.

    Args:
        parts: What the calls look like.
        special: The model's control tokens by name, which a grammar has to name as such.
    """
    writer = _Writer(special)
    calls = " | ".join(writer.sequence(call.pieces) for call in parts.calls)
    more = f"({writer.literal(parts.separator)} call)*" if parts.is_parallel else ""
    start = f"start: {writer.literal(parts.begin)} call {more} {writer.literal(parts.end)}"
    return LlamaGrammar.from_lark("\n".join([start, f"call: {calls}", *writer.rules]))


class _Writer:
    """Writes pieces as Lark.

    Attributes:
        rules: Terminals that they need.
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

    def sequence(self, pieces: Sequence[Piece]) -> str:
        written, left = [], list(pieces)
        while left:
            piece = left.pop(0)
            if isinstance(piece, Text) and left and isinstance(left[0], str):
                # A lexer would take the beginning of the stop as text: both are one terminal.
                left[0] = left[0].removeprefix(piece.stop)
            written.append(self.piece(piece))
        return " ".join(filter(None, written)) or '""'

    def piece(self, piece: Piece) -> str:
        if isinstance(piece, str):
            return self.literal(piece)
        if isinstance(piece, Json):
            return f"%json {json.dumps(piece.schema)}"
        if isinstance(piece, Text):
            name = f"TEXT_{len(self.rules)}"
            stop = "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in piece.stop)
            text = rf"/(?s:.*)/ & ~/(?s:.*){stop}(?s:.*)/"
            self.rules.append(f"{name}: ({text}) /{stop}/")
            return name
        if isinstance(piece, Maybe):
            return f"({self.sequence(piece.pieces)})?"
        if isinstance(piece, Choice):
            return "(" + " | ".join(map(self.sequence, piece.options)) + ")"
        assert isinstance(piece, Repeat)
        inner = self.sequence(piece.pieces)
        return f"({inner} ({self.literal(piece.separator)} {inner})*)?"
