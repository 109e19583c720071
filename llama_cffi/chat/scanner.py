"""Parsing text that arrives in chunks, with the same result as for the whole text.

A parser is a generator over a `Scanner`. It yields when it needs more text. Its decisions depend on
the text alone, so that the result is the same however the text is split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

__all__ = ["MAX_VAIN", "Emit", "Parser", "Scanner", "is_json", "loads", "quoted"]

T = TypeVar("T")
#: A generator that yields while it waits for text, and returns what it parsed.
Parser = Generator[None, None, T]
Emit = Callable[[str], object]

#: See `Scanner.n_vain`.
MAX_VAIN = 32

_SPACE = re.compile(r"\s*")
_SCALAR = re.compile(r"[\w.+-]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_UNICODE = re.compile(r"\\u[0-9a-fA-F]{4}")
_HALF = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_CUT_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{0,3})?")
_STRUCTURE = re.compile(r'[^"{}\[\]]*')


def loads(text: str) -> Any:
    """Parse JSON; return None for null and for invalid JSON, including NaN and Infinity."""
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return None


def is_json(text: str) -> bool:
    """Return whether *text* is JSON."""
    return text.strip() == "null" or loads(text) is not None


def _reject_constant(name: str) -> None:
    raise ValueError(name)


@lru_cache(maxsize=256)
def _longest_first(markers: tuple[str, ...]) -> tuple[list[str], re.Pattern[str]]:
    wanted = sorted(markers, key=len, reverse=True)
    return wanted, re.compile("|".join(map(re.escape, wanted)) or r"(?!)")


def quoted(text: str) -> str:
    """Escape *text* for the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class Scanner:
    """The text received so far, and the position in it.

    Attributes:
        is_final: Whether the text is complete.
        n_vain: How often the parser went back to a checkpoint from the end of the complete text.
            Parsers stop trying at `MAX_VAIN`: each time takes as long as the text.
    """

    def __init__(self) -> None:
        self.is_final = False
        self._text = ""
        self._at = 0
        self._n_dropped = 0  # characters before the text that is kept
        self._checkpoints: list[int] = []
        self._n_peeks = 0
        self.n_vain = 0
        self._met_end = False  # since the last checkpoint

    @property
    def position(self) -> int:
        """The number of characters that were consumed."""
        return self._n_dropped + self._at

    def feed(self, text: str) -> None:
        """Append text."""
        self._drop()
        # CPython extends a string in place only where nothing else refers to it.
        kept, self._text = self._text, ""
        kept += text
        self._text = kept

    def _drop(self) -> None:
        if not self._checkpoints and not self._n_peeks:
            self._n_dropped += self._at
            self._text = self._text[self._at :]
            self._at = 0

    def peek(self, parser: Parser[T]) -> Parser[T]:
        """Run *parser*, go back to this position, and return its result."""
        start = self._at
        self._n_peeks += 1
        result = yield from parser
        self._n_peeks -= 1
        self._at = start
        return result

    def attempt(self, parser: Parser[T]) -> Parser[T]:
        """Run *parser*; go back to this position if it returns None."""
        start = self._at
        self._n_peeks += 1
        result = yield from parser
        self._n_peeks -= 1
        if result is None:
            self._at = start
        return result

    def checkpoint(self) -> None:
        """Remember the position for `rollback`; checkpoints can be nested."""
        self._drop()
        self._checkpoints.append(self._at)
        self._met_end = False

    def commit(self) -> None:
        """Drop all checkpoints and stay at the current position."""
        self._checkpoints.clear()

    def rollback(self) -> None:
        """Return to the last checkpoint and drop it."""
        self._at = self._checkpoints.pop()
        self.n_vain += self._met_end

    def available(self, length: int) -> Parser[str]:
        """Return the next *length* characters without consuming them; fewer at the end."""
        while len(self._text) - self._at < length and not self.is_final:
            yield
        text = self._text[self._at : self._at + length]
        self._met_end |= len(text) < length
        return text

    def take(self, length: int) -> str:
        """Consume up to *length* characters that were received."""
        taken = self._text[self._at : self._at + length]
        self._at += len(taken)
        return taken

    def literal(self, *options: str) -> Parser[str | None]:
        """Consume the first of *options* that follows, or return None."""
        for length in range(1, max(map(len, options)) + 1):
            following = yield from self.available(length)
            if not any(option.startswith(following) for option in options):
                break
        for option in options:
            if self._text.startswith(option, self._at):
                self._at += len(option)
                return option
        return None

    def space(self) -> Parser[str]:
        """Consume white space."""
        return (yield from self.match(_SPACE))

    def until(self, markers: Sequence[str], emit: Emit) -> Parser[str | None]:
        """Emit the text before the earliest of *markers*, and consume that marker; see `before`."""
        marker = yield from self.before(markers, emit)
        self.take(len(marker or ""))
        return marker

    def before(self, markers: Sequence[str], emit: Emit) -> Parser[str | None]:
        """Emit the text before the earliest of *markers*, which stays where it is.

        Of markers that begin at the same position, the longest wins.

        Returns:
            The marker, or None at the end of the text.
        """
        wanted, pattern = _longest_first(tuple(markers))
        while True:
            found = pattern.search(self._text, self._at)
            # While more text can follow, a longer marker may begin at or before this position.
            end = found.start() if found else len(self._text)
            pending = None if self.is_final else self._partial(wanted, end, found)
            if pending is not None and pending > self._at:
                emit(self.take(pending - self._at))
            if found and pending is None:
                if end > self._at:
                    emit(self.take(end - self._at))
                return found[0]
            if pending is None:
                if self._at < len(self._text):
                    emit(self.take(len(self._text) - self._at))
                if self.is_final:
                    self._met_end = True
                    return None
            yield

    def _partial(self, markers: list[str], end: int, found: re.Match[str] | None) -> int | None:
        """Return where an incomplete marker begins, at or before *end*, or None."""
        first = max(self._at, len(self._text) - len(markers[0]) + 1) if markers else end
        for start in range(first, end + bool(found)):
            tail = self._text[start:]
            longer = len(found[0]) if found and start == end else 0
            if any(len(m) > max(longer, len(tail)) and m.startswith(tail) for m in markers):
                return start
        return None

    def text_until(self, *markers: str) -> Parser[tuple[str, str | None]]:
        """Return the text before the earliest of *markers*, and that marker; see `until`."""
        parts: list[str] = []
        found = yield from self.until(markers, parts.append)
        return "".join(parts), found

    def json(self, emit: Emit) -> Parser[bool]:
        """Emit one JSON value as it arrives.

        Control characters inside strings, such as the line breaks that models write, are escaped.
        Brackets are counted, not checked: use `loads` to find out whether it is valid JSON.

        Returns:
            Whether a value began and ended.
        """
        first = yield from self.available(1)
        if first not in ('"', "{", "["):
            scalar = yield from self.match(_SCALAR)
            emit(scalar)
            return bool(scalar)
        depth = 0
        while True:
            plain = yield from self.emit_match(_STRUCTURE, emit)
            if not plain:
                return False
            char = self.take(1)
            if char == '"':
                emit(char)
                if not (yield from self.string(emit)):
                    return False
            else:
                depth += 1 if char in "{[" else -1
                emit(char)
            if depth <= 0:
                return True

    def string(self, emit: Emit) -> Parser[bool]:
        """Emit the rest of a JSON string including its closing quote; return whether it ended.

        What is emitted is valid between quotes: see `escape`; control characters are escaped.
        """
        while True:
            if not (yield from self.emit_match(_PLAIN, emit)):
                return False
            if (yield from self.available(1)) == "\\":
                emit((yield from self.escape()))
                continue
            char = self.take(1)
            emit(json.dumps(char)[1:-1] if char < " " else char)
            if char == '"':
                return True

    def escape(self) -> Parser[str]:
        """Consume an escape sequence and return it, whole.

        A backslash that escapes nothing is doubled, except before a single quote, where it is
        dropped as in Python; half a surrogate pair is replaced; a sequence that the end of the
        text cuts off is dropped.
        """
        escape = yield from self.available(2)
        if escape[1:] == "u":
            escape = yield from self.available(6)
        if _CUT_ESCAPE.fullmatch(escape):
            self.take(6)
            return ""
        if _HALF.fullmatch(escape):
            pair = yield from self.available(12)
            is_pair = bool(_PAIR.fullmatch(pair))
            self.take(12 if is_pair else 6)
            return pair if is_pair else r"\ufffd"
        if _UNICODE.fullmatch(escape):
            return self.take(6)
        if escape[1] in '"\\/bfnrt':
            return self.take(2)
        self.take(1)
        return "" if escape[1] == "'" else r"\\"

    def json_text(self) -> Parser[str | None]:
        """Return the source of one JSON value, or None if none ends."""
        parts: list[str] = []
        ended = yield from self.json(parts.append)
        return "".join(parts) if ended else None

    def match(self, pattern: re.Pattern[str]) -> Parser[str]:
        """Consume the longest match of *pattern*."""
        parts: list[str] = []
        yield from self.emit_match(pattern, parts.append)
        return "".join(parts)

    def emit_match(self, pattern: re.Pattern[str], emit: Emit) -> Parser[bool]:
        """Emit the longest match of *pattern*; return whether more text follows it."""
        while True:
            match = pattern.match(self._text, self._at)
            if match and match.end() > self._at:
                emit(self.take(match.end() - self._at))
            if self._at < len(self._text):
                return True
            if self.is_final:
                self._met_end = True
                return False
            yield
