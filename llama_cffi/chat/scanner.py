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

__all__ = ["Emit", "Parser", "Scanner", "is_json", "loads", "quoted"]

T = TypeVar("T")
#: A generator that yields while it waits for text, and returns what it parsed.
Parser = Generator[None, None, T]
Emit = Callable[[str], object]

_MAX_REREAD = 16  # how often text may be read in vain

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

    What is read costs time in proportion to its length: text is searched once for the same markers,
    and parsers that go back are not tried again and again; see `trial`.

    Attributes:
        is_final: Whether the text is complete.
    """

    def __init__(self) -> None:
        self.is_final = False
        self._text = ""
        self._at = 0
        self._n_dropped = 0  # characters before the text that is kept
        self._checkpoints: list[int] = []
        self._n_peeks = 0
        # Positions, like `position`: where the last search for markers began and ended, and with
        # what; the last run of a marker; the furthest that this trial read; the text that was read
        # in vain.
        self._found: dict[tuple[str, ...], tuple[int, int, str | None]] = {}
        self._runs: dict[str, tuple[int, int]] = {}
        self._furthest = 0
        self._vain_start = self._vain_end = 0
        self._n_reread = 0  # characters of that text, each time again

    @property
    def position(self) -> int:
        """The number of characters that were consumed."""
        return self._n_dropped + self._at

    def feed(self, text: str) -> None:
        """Append text."""
        if not self._checkpoints and not self._n_peeks:
            self._n_dropped += self._at
            self._text = self._text[self._at :]
            self._at = 0
        # CPython extends a string in place only where nothing else refers to it.
        kept, self._text = self._text, ""
        kept += text
        self._text = kept

    def _go_back(self, at: int) -> None:
        self._furthest = max(self._furthest, self.position)
        self._at = at

    def peek(self, parser: Parser[T]) -> Parser[T]:
        """Run *parser*, go back to this position, and return its result."""
        start = self._at
        self._n_peeks += 1
        result = yield from parser
        self._n_peeks -= 1
        self._go_back(start)
        return result

    def attempt(self, parser: Parser[T]) -> Parser[T]:
        """Run *parser*; go back to this position if it returns None."""
        start = self._at
        self._n_peeks += 1
        result = yield from parser
        self._n_peeks -= 1
        if result is None:
            self._go_back(start)
        return result

    def trial(self, parser: Parser[T]) -> Parser[T | None]:
        """Run *parser*, which may read far; go back to this position if it returns None or False.

        Within text that was read in vain too often, return None.
        """
        start, furthest, vain_end = self.position, self._furthest, self._vain_end
        if start >= vain_end:
            self._vain_start, self._n_reread = start, 0
        elif self._n_reread > _MAX_REREAD * (vain_end - self._vain_start):
            return None
        level = len(self._checkpoints)
        self._checkpoints.append(self._at)
        self._furthest = start
        result = yield from parser
        end = max(self._furthest, self.position)
        if _is_vain(result):
            self._at = self._checkpoints[level]
            self._n_reread += max(0, min(end, vain_end) - start)
            self._vain_start = min(self._vain_start, start)
            self._vain_end = max(self._vain_end, end)
            end = start
        del self._checkpoints[level:]
        self._furthest = max(furthest, end)
        return result

    def commit(self) -> None:
        """Drop all checkpoints of trials, which now succeed."""
        self._checkpoints.clear()

    def available(self, length: int) -> Parser[str]:
        """Return the next *length* characters without consuming them; fewer at the end."""
        while len(self._text) - self._at < length and not self.is_final:
            yield
        return self._text[self._at : self._at + length]

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

    def repeats(self, marker: str) -> Parser[bool]:
        """Consume *marker* as often as it follows; return whether it does."""
        here = self.position
        start, end = self._runs.get(marker, (0, 0))
        if start <= here < end and (end - here) % len(marker) == 0:
            self._at += end - here
            return True
        while (yield from self.literal(marker)):
            pass
        self._runs[marker] = here, self.position
        return self.position > here

    def space(self) -> Parser[str]:
        """Consume white space."""
        return (yield from self.match(_SPACE))

    def until(self, markers: Sequence[str], emit: Emit | None = None) -> Parser[str | None]:
        """Emit the text before the earliest of *markers*, and consume that marker; see `before`."""
        marker = yield from self.before(markers, emit)
        self.take(len(marker or ""))
        return marker

    def before(self, markers: Sequence[str], emit: Emit | None = None) -> Parser[str | None]:
        """Emit the text before the earliest of *markers*, which stays where it is.

        Of markers that begin at the same position, the longest wins.

        Returns:
            The marker, or None at the end of the text.
        """
        key = tuple(markers)
        start, end, known = self._found.get(key, (0, -1, None))
        if start <= self.position <= end:
            self._go_to(self._at + end - self.position, emit)
            return known
        start = self.position
        wanted, pattern = _longest_first(key)
        while True:
            found = pattern.search(self._text, self._at)
            # While more text can follow, a longer marker may begin at or before this position.
            end = found.start() if found else len(self._text)
            pending = None if self.is_final else self._partial(wanted, end, found)
            self._go_to(end if pending is None else pending, emit)
            if found and pending is None:
                self._found[key] = start, self.position, found[0]
                return found[0]
            if self.is_final:
                self._found[key] = start, self.position, None
                return None
            found = None  # it refers to the text: see `feed`
            yield

    def _go_to(self, end: int, emit: Emit | None) -> None:
        """Emit the text up to the index *end*, and consume it."""
        if emit and end > self._at:
            emit(self.take(end - self._at))
        self._at = max(self._at, end)

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
            end, match = match.end() if match else self._at, None  # it refers to the text
            if end > self._at:
                emit(self.take(end - self._at))
            if self._at < len(self._text):
                return True
            if self.is_final:
                return False
            yield


def _is_vain(result: object) -> bool:
    """Return whether a parser found nothing; 0 and empty text are results."""
    return result is None or result is False
