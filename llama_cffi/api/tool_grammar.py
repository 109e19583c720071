"""The grammar of tool calls, for constrained decoding."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence

from ..chat.formats import Choice, GrammarParts, Json, Maybe, Piece, Repeat, Text
from ..grammars import LlamaGrammar
from ..grammars.grammar import SPACE, narrow_dates
from ..schema import without_unique_items

__all__ = ["call_grammar"]


def call_grammar(parts: GrammarParts, special: Mapping[str, int]) -> LlamaGrammar:
    """Return the grammar of an answer that is calls and nothing else.

    Args:
        parts: What the calls look like.
        special: The model's control tokens by name, which a grammar has to name as such.
    """
    writer = _Writer(special)
    calls = " | ".join(writer.sequence(call.pieces) for call in parts.calls)
    separator = writer.literal(parts.separator)
    if parts.separator.isspace():
        separator += "?"
    more = f"({separator} call)*" if parts.is_parallel else ""
    before = writer.sequence(parts.before)
    begin, end = writer.literal(parts.begin), writer.literal(parts.end)
    start = f"start: {before} {begin} call {more} {end}"
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

    def _ends(self, stop: str) -> bool:
        """Whether a stop begins with a control token, which no text can hold."""
        return self._has_special and bool(self._special.match(stop))

    def sequence(self, pieces: Sequence[Piece]) -> str:
        written, left = [], list(pieces)
        while left:
            piece = left.pop(0)
            stop = piece.stop if isinstance(piece, Text) else ""
            if stop and not self._ends(stop) and left and isinstance(left[0], str):
                # A lexer would take the beginning of the stop as text: both are one terminal.
                left[0] = left[0].removeprefix(stop)
            written.append(self.piece(piece))
        return " ".join(filter(None, written)) or '""'

    def text(self, piece: Text) -> str:
        """Write a text and, where that does not begin with a control token, its stop."""
        name = f"TEXT_{len(self.rules)}"
        stop = "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in piece.stop)
        least, most = piece.schema.get("minLength", 0), piece.schema.get("maxLength", "")
        text = f"/(?s:.{{{least},{most}}})/"
        if not self._ends(piece.stop):
            text += f" & ~/(?s:.*){stop}(?s:.*)/"
        if pattern := piece.schema.get("pattern"):
            text += f" & /{_anywhere(pattern)}/"
        if self._ends(piece.stop):
            self.rules.append(f"{name}: {text}")
            return name
        self.rules.append(f"{name}: ({text}) /{stop}/")
        return name

    def piece(self, piece: Piece) -> str:
        if isinstance(piece, str):
            return self.literal(piece)
        if isinstance(piece, Json):
            schema = copy.deepcopy(without_unique_items(piece.schema))
            rule = {"x-guidance": {"whitespace_pattern": SPACE}, **schema}
            narrow_dates(rule)
            return f"%json {json.dumps(rule)}"
        if isinstance(piece, Text):
            return self.text(piece)
        if isinstance(piece, Maybe):
            return f"({self.sequence(piece.pieces)})?"
        if isinstance(piece, Choice):
            return "(" + " | ".join(map(self.sequence, piece.options)) + ")"
        assert isinstance(piece, Repeat)
        inner = self.sequence(piece.pieces)
        return f"({inner} ({self.literal(piece.separator)} {inner})*)?"


def _anywhere(pattern: str) -> str:
    """Return JSON Schema's *pattern*, which may match a part, as one for the whole text."""
    pattern = pattern.replace("\\/", "/").replace("/", "\\/")
    before = "" if pattern.startswith("^") else "(?s:.*)"
    after = "" if pattern.endswith("$") and not pattern.endswith("\\$") else "(?s:.*)"
    return f"{before}({pattern.removeprefix('^')[: -1 if not after else None]}){after}"
