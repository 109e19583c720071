"""Reading a text that arrives in pieces as if it were whole.

A parser is a generator over a `Reader`: it yields when it needs text that is not there yet. What
it decides depends on the text alone, so that the result is the same however the text is split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

__all__ = ["Emit", "Reader", "Steps", "loads", "quoted"]

T = TypeVar("T")
Steps = Generator[None, None, T]
Emit = Callable[[str], object]

_SPACE = re.compile(r"\s*")
_SCALAR = re.compile(r"[\w.+-]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_STRUCTURE = re.compile(r'[^"{}\[\]]*')


def loads(text: str) -> Any:
    """Read JSON; None also for what is no JSON, NaN and Infinity among it."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> None:
    raise ValueError(name)


def quoted(text: str) -> str:
    """Write *text* as the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class Reader:
    """The text so far and the place in it.

    Attributes:
        is_final: Nothing will follow.
    """

    def __init__(self) -> None:
        self.is_final = False
        self._text = ""
        self._at = 0
        self._held = False

    def feed(self, text: str) -> None:
        """Add what arrived."""
        if not self._held:
            self._text = self._text[self._at :]
            self._at = 0
        self._text += text

    def hold(self) -> None:
        """Remember the place for `back`."""
        self._text = self._text[self._at :]
        self._at = 0
        self._held = True

    def release(self) -> None:
        """Forget the place that was held."""
        self._held = False

    def back(self) -> None:
        """Return to the place that was held, and forget it."""
        self._at = 0
        self._held = False

    def available(self, length: int) -> Steps[str]:
        """Return the next *length* characters without taking them; fewer at the end."""
        while len(self._text) - self._at < length and not self.is_final:
            yield
        return self._text[self._at : self._at + length]

    def take(self, length: int) -> str:
        """Take characters that are there."""
        taken = self._text[self._at : self._at + length]
        self._at += len(taken)
        return taken

    def literal(self, *options: str) -> Steps[str | None]:
        """Take the first of *options* that follows, if one does."""
        for length in range(1, max(map(len, options)) + 1):
            following = yield from self.available(length)
            if not any(option.startswith(following) for option in options):
                break
        for option in options:
            if self._text.startswith(option, self._at):
                self._at += len(option)
                return option
        return None

    def space(self) -> Steps[str]:
        """Take the white space that follows."""
        return (yield from self.run(_SPACE))

    def until(self, markers: Sequence[str], emit: Emit) -> Steps[str | None]:
        """Hand out what comes before the earliest of *markers*, and take that.

        Of markers that begin at the same place the longest counts.

        Returns:
            The marker, or None at the end of the text.
        """
        wanted = sorted(markers, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, wanted)) or r"(?!)")
        while True:
            found = pattern.search(self._text, self._at)
            # Where text can still follow, a longer marker may begin at or before the place.
            end = found.start() if found else len(self._text)
            waits = None if self.is_final else self._begun(wanted, end, found)
            if waits is not None and waits > self._at:
                emit(self.take(waits - self._at))
            if found and waits is None:
                if end > self._at:
                    emit(self.take(end - self._at))
                return self.take(len(found[0]))
            if waits is None:
                if self._at < len(self._text):
                    emit(self.take(len(self._text) - self._at))
                if self.is_final:
                    return None
            yield

    def _begun(self, markers: list[str], end: int, found: re.Match[str] | None) -> int | None:
        """Return where a marker that may still complete begins, at or before *end*."""
        least = max(self._at, len(self._text) - len(markers[0]) + 1) if markers else end
        for place in range(least, end + bool(found)):
            tail = self._text[place:]
            longer = len(found[0]) if found and place == end else 0
            if any(len(m) > max(longer, len(tail)) and m.startswith(tail) for m in markers):
                return place
        return None

    def text_until(self, *markers: str) -> Steps[tuple[str, str | None]]:
        """Return what comes before the earliest of *markers*, and which it is."""
        parts: list[str] = []
        found = yield from self.until(markers, parts.append)
        return "".join(parts), found

    def json(self, emit: Emit) -> Steps[bool]:
        """Hand out one JSON value, as it is written, while it arrives.

        Line breaks and other control characters inside strings, which models write, are escaped.
        Brackets are counted, not checked: whether it is JSON, the caller asks `loads`.

        Returns:
            Whether the value ended before the text did; False too where no value begins.
        """
        first = yield from self.available(1)
        if first not in ('"', "{", "["):
            scalar = yield from self.run(_SCALAR)
            emit(scalar)
            return bool(scalar)
        depth = 0
        while True:
            plain = yield from self.run_some(_STRUCTURE, emit)
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

    def string(self, emit: Emit) -> Steps[bool]:
        """Hand out the rest of a JSON string, its closing quote included."""
        while True:
            if not (yield from self.run_some(_PLAIN, emit)):
                return False
            char = self.take(1)
            if char == "\\":
                char += yield from self.available(1)
                self.take(1)
                if len(char) == 1:
                    return False
            emit(json.dumps(char)[1:-1] if char < " " else char)
            if char == '"':
                return True

    def json_text(self) -> Steps[str | None]:
        """Return one JSON value as it is written, or None where none ends."""
        parts: list[str] = []
        ended = yield from self.json(parts.append)
        return "".join(parts) if ended else None

    def run(self, pattern: re.Pattern[str]) -> Steps[str]:
        """Take the longest run that *pattern* matches."""
        parts: list[str] = []
        yield from self.run_some(pattern, parts.append)
        return "".join(parts)

    def run_some(self, pattern: re.Pattern[str], emit: Emit) -> Steps[bool]:
        """Hand out what *pattern* matches; return whether something follows it."""
        while True:
            match = pattern.match(self._text, self._at)
            if match and match.end() > self._at:
                emit(self.take(match.end() - self._at))
            if self._at < len(self._text):
                return True
            if self.is_final:
                return False
            yield
