"""Streaming text: UTF-8, stop strings, JSON, <think> blocks and flush rules.

A token may end inside a character, a stop string or a tag, so text arrives as bytes, split
anywhere. Every class gives the same result for every split. UTF-8 is self-synchronizing, so
searching bytes finds the same matches as searching text.
"""

from __future__ import annotations

import codecs
import json
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TypeAlias, TypeGuard

from ..errors import ValidationError
from ..validation import as_list, check_int

__all__ = [
    "CharacterOffsets",
    "Flusher",
    "JsonCompletion",
    "Stop",
    "StopStrings",
    "ThinkFilter",
    "Utf8Stream",
    "split_stops",
    "stop_list",
]

Stop: TypeAlias = "str | bytes | int"

_NEVER = re.compile(rb"(?!)")
_SPACE = re.compile(rb"\s*")
_STRUCTURE = re.compile(rb'["\\{}\[\]:,]')
_OPENING = re.compile(rb"[{\[]")
_OPENING_OF = {b"}": ord("{"), b"]": ord("[")}
_ESCAPED_BYTES = 12  # most bytes that JSON needs for one character: two \uXXXX


class Utf8Stream:
    """Decodes UTF-8 split at any byte; invalid bytes become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """Return the characters that *data* completes; an incomplete one is held back."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Return the rest at the end: U+FFFD for an incomplete character, or nothing."""
        return self._decoder.decode(b"", final=True)


class CharacterOffsets:
    """Counts the characters before each token of a text.

    A token that ends inside a character does not count it; the token that completes it does.

    Args:
        start: Number of characters before the first token.
    """

    def __init__(self, start: int = 0) -> None:
        self._text, self._n = Utf8Stream(), start

    def push(self, piece: bytes) -> int:
        """Add the bytes of a token; return the number of characters before it."""
        before = self._n
        self._n += len(self._text.push(piece))
        return before


def stop_list(value: object) -> list[Stop]:
    """Return the option `stop`, one or several strings and token ids, as a list.

    Raises:
        ValidationError: It is neither.
    """
    if isinstance(value, (str, bytes)) or _is_token(value):
        return [value]
    return as_list("stop", value)


def split_stops(value: object) -> tuple[list[str | bytes], list[int]]:
    """Return the strings and the token ids of the option `stop`.

    Raises:
        ValidationError: It is neither.
    """
    strings: list[str | bytes] = []
    tokens: list[int] = []
    for stop in stop_list(value):
        if _is_token(stop):
            tokens.append(check_int("a stop token", stop, 0))
        elif isinstance(stop, (str, bytes)):
            strings.append(stop)
        else:
            raise ValidationError(f"stop: {stop!r} must be a string or a token id")
    return strings, tokens


def _is_token(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


class StopStrings:
    """Ends a text before the first of several stop strings.

    The earliest match wins, and of several at the same position the shortest. A complete match is
    therefore held back while one that began earlier may still complete.

    Args:
        stops: The stop strings, as str or UTF-8.

    Attributes:
        found: The stop string that ended the text, as it was given.

    Raises:
        ValidationError: A stop string is empty, contains a NUL, or is not a str or bytes.
    """

    def __init__(self, stops: Sequence[str | bytes]) -> None:
        self.found: str | bytes | None = None
        self._given: dict[bytes, str | bytes] = {}
        for stop in as_list("stop", stops):
            self._given.setdefault(_stop_bytes(stop), stop)
        # Sorted, without those that have another one as a prefix: then only the neighbors of a
        # string in sort order can be a prefix of it or have it as their prefix.
        self._stops: list[bytes] = []
        for data in sorted(self._given):
            if not self._stops or not data.startswith(self._stops[-1]):
                self._stops.append(data)
        self._longest = max(map(len, self._stops), default=0)
        firsts = b"".join({re.escape(data[:1]) for data in self._stops})
        self._first = re.compile(b"[" + firsts + b"]") if firsts else _NEVER
        self._held = b""

    def push(self, data: bytes) -> bytes:
        """Return the text that cannot become a stop string; the rest is held back.

        Hot: every generated token.
        """
        if self._held:
            data = self._held + data
            self._held = b""
        if self._first.search(data) is None and self.found is None:
            return data
        return self._scan(data, final=False)

    def flush(self) -> bytes:
        """Return the held-back text at the end; it may contain a stop string."""
        return self._scan(self.release(), final=True)

    def release(self) -> bytes:
        """Return the held-back text, unread."""
        held, self._held = self._held, b""
        return held

    def _scan(self, text: bytes, final: bool) -> bytes:
        """Return *text* up to a stop string or, unless *final*, the beginning of one."""
        if self.found is not None:
            return b""
        stops = self._stops
        for match in self._first.finditer(text):
            start = match.start()
            tail = text[start : start + self._longest]
            i = bisect_right(stops, tail)
            if i and tail.startswith(stops[i - 1]):
                self.found = self._given[stops[i - 1]]
                return text[:start]
            if not final and i < len(stops) and stops[i].startswith(tail):
                self._held = text[start:]
                return text[:start]
        return text


class _JsonCandidate:
    """Text that may be JSON since a bracket.

    Attributes:
        open: The brackets that are not closed.
        has_key: Whether an object in it has one of the keys.
        in_string: Whether the text so far ends inside a string.
        ends_string: Whether only white space follows its last string.
        string: The last string, truncated to a length that no key has.
        start: Where the rest of that string begins in the text that is being read.
    """

    __slots__ = ("ends_string", "has_key", "in_string", "open", "start", "string")

    def __init__(self, bracket: bytes) -> None:
        self.open = bytearray(bracket)
        self.has_key = self.in_string = self.ends_string = False
        self.string = b""
        self.start = 0


class JsonCompletion:
    """Finds the end of an answer that is, or ends with, JSON.

    The answer is complete when an object or array closes in which an object, at any depth, has one
    of the keys. Text may precede it. Reasoning at the beginning, between <think> and </think>, does
    not count.

    A bracket in that text may look like the beginning of the JSON until what follows is not JSON,
    and what seemed to be a string in it may then be the JSON. Two candidates are enough for that:
    where one is inside a string, the other is outside.

    Args:
        keys: The keys; one of them is enough.
        is_thinking: Whether the answer begins inside reasoning.

    Attributes:
        armed: Whether the answer can still complete; once False, it stays False.

    Raises:
        ValidationError: A key is not a str.
    """

    def __init__(
        self, keys: Sequence[str] = ("done", "next_step"), *, is_thinking: bool = False
    ) -> None:
        self._keys = {_utf8("JSON key", key) for key in as_list("json_stop", keys)}
        self.armed = bool(self._keys)
        self._longest = _ESCAPED_BYTES * max(map(len, self._keys), default=0)
        self._head: bytes | None = b""  # unread text while reasoning may begin
        self._is_thinking = is_thinking
        self._candidates: list[_JsonCandidate] = []  # in order of their beginnings
        self._ends_escape = False  # whether the text so far ends with a backslash that escapes

    def push(self, data: bytes) -> int | None:
        """Return the number of bytes of *data* up to the JSON's end; None: not complete.

        Hot: every generated token while `armed`.
        """
        if not self.armed:
            return None
        at = 0 if self._head is None else self._after_reasoning(self._head, data)
        if at is None or at == len(data):
            return None
        escaped = at if self._ends_escape else -1  # index of a byte after a backslash
        self._ends_escape = False
        while match := (_STRUCTURE if self._candidates else _OPENING).search(data, at):
            found, start = match.group(), match.start()
            is_next = not data[at:start].strip()
            at = match.end()
            for candidate in self._candidates[:]:
                if candidate.in_string:
                    if found == b'"' and start != escaped:
                        candidate.in_string, candidate.ends_string = False, True
                        self._keep(candidate, data[candidate.start : start])
                elif not self._read(candidate, found, is_next, at):
                    self._candidates.remove(candidate)
                elif not candidate.open:
                    if candidate is self._candidates[0]:
                        self._candidates.clear()
                        if candidate.has_key:
                            self.armed = False
                            return at
                        break
                    self._candidates.remove(candidate)
            if found == b"\\" and start != escaped:
                escaped = at
            if found in b"{[" and all(candidate.in_string for candidate in self._candidates):
                self._candidates.append(_JsonCandidate(found))
        for candidate in self._candidates[:]:
            if candidate.in_string:
                self._keep(candidate, data[candidate.start :])
                candidate.start = 0
            elif candidate.ends_string and data[at:].strip():
                self._candidates.remove(candidate)
        self._ends_escape = escaped == len(data)
        return None

    def _after_reasoning(self, head: bytes, data: bytes) -> int | None:
        """Return the index in *data* at which the answer begins, None: not yet known."""
        text, at = head + data, 0
        while True:
            if self._is_thinking:
                end = text.find(b"</think>", at)
                if end < 0:
                    self._head = text[max(at, len(text) - 7) :]
                    return None
                at, self._is_thinking = end + 8, False
            at = _after_space(text, at)
            if text.startswith(b"<think>", at):
                at, self._is_thinking = at + 7, True
            elif b"<think>".startswith(text[at : at + 7]):
                self._head = text[at:]
                return None
            else:
                self._head = None
                return max(0, at - len(head))

    def _read(self, candidate: _JsonCandidate, found: bytes, is_next: bool, at: int) -> bool:
        """Read a structural character outside of strings; return whether it may be JSON.

        Args:
            candidate: What is read.
            found: The character.
            is_next: Whether only white space precedes it, after the last one.
            at: The index after it.
        """
        ends_string, candidate.ends_string = candidate.ends_string, False
        if found == b"\\" or (ends_string and not (is_next and found in b":,}]")):
            return False
        if found == b'"':
            candidate.in_string, candidate.string, candidate.start = True, b"", at
        elif found == b":":
            if ends_string and not candidate.has_key and candidate.open.endswith(b"{"):
                candidate.has_key = self._is_key(candidate.string)
        elif found in b"{[":
            candidate.open += found
        elif found in b"}]":
            return candidate.open.pop() == _OPENING_OF[found]
        return True

    def _keep(self, candidate: _JsonCandidate, part: bytes) -> None:
        if len(candidate.string) <= self._longest:
            candidate.string += part

    def _is_key(self, string: bytes) -> bool:
        if b"\\" in string and len(string) <= self._longest:
            try:
                string = json.loads(b'"' + string + b'"', strict=False).encode()
            except ValueError:  # not JSON, not UTF-8, or half of a surrogate pair
                return False
        return string in self._keys


class ThinkFilter:
    """Removes <think>...</think> blocks and the white space after each.

    Args:
        open: Opening tag; an unclosed block extends to the end.
        close: Closing tag.
        is_inside: Whether the text begins inside a block.

    Attributes:
        is_leading_only: Whether only blocks before all other text are removed.

    Raises:
        ValidationError: A tag is empty, or not a str or bytes.
    """

    def __init__(
        self,
        open: str | bytes = "<think>",
        close: str | bytes = "</think>",
        *,
        is_inside: bool = False,
    ) -> None:
        self._open, self._close = _stop_bytes(open), _stop_bytes(close)
        self._open_prefixes, self._close_prefixes = _prefixes(self._open), _prefixes(self._close)
        self._held = b""
        self._inside, self._after = is_inside, False
        self.is_leading_only = self._has_text = False

    def push(self, data: bytes) -> bytes:
        """Return the text outside of blocks; the beginning of a tag is held back.

        Hot: every generated token.
        """
        text, at = self._held + data, 0
        out: list[bytes] = []
        while True:
            if self._inside:
                end = text.find(self._close, at)
                if end < 0:
                    self._held = _tail(text[at:], self._close_prefixes)
                    return b"".join(out)
                at, self._inside, self._after = end + len(self._close), False, True
            if self._after:
                at = _after_space(text, at)
                self._after = at == len(text)
            if self.is_leading_only and not self._may_open(text, at):
                self._has_text, self._held = True, b""
                return b"".join((*out, text[at:]))
            end = text.find(self._open, at)
            before = text[at:] if end < 0 else text[at:end]
            if end < 0:
                self._held = _tail(before, self._open_prefixes)
                before = before[: len(before) - len(self._held)]
            self._has_text = self._has_text or bool(before.strip())
            out.append(before)
            if end < 0:
                return b"".join(out)
            at, self._inside = end + len(self._open), True

    def flush(self) -> bytes:
        """Return the held-back text at the end."""
        held, self._held = self._held, b""
        return b"" if self._inside else held

    def _may_open(self, text: bytes, at: int) -> bool:
        """Whether a block may begin at an index or after white space, before all other text."""
        at = _after_space(text, at)
        following = text[at : at + len(self._open)]
        return not self._has_text and self._open.startswith(following)


class Flusher:
    """Buffers the bytes of tokens for a callback, until one of three limits; 0 disables a limit.

    Args:
        callback: Receives the buffered bytes, never empty.
        max_bytes: Flush at this many bytes.
        max_tokens: Flush at this many tokens.
        max_ms: Flush this many milliseconds after the last flush.
        clock: Returns seconds.
    """

    def __init__(
        self,
        callback: Callable[[bytes], object],
        max_bytes: int = 64,
        max_tokens: int = 1,
        max_ms: float = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callback, self._clock = callback, clock
        self._max_bytes, self._max_tokens, self._max_s = max_bytes, max_tokens, max_ms / 1000
        self._data = bytearray()
        self._n_tokens = 0
        self._last_s = clock()

    def push(self, piece: bytes) -> None:
        """Add the bytes of one token. Hot: every generated token."""
        self._data += piece
        self._n_tokens += 1
        if (
            0 < self._max_tokens <= self._n_tokens
            or 0 < self._max_bytes <= len(self._data)
            or (self._max_s and self._clock() - self._last_s >= self._max_s)
        ):
            self.flush()

    def flush(self) -> None:
        """Pass the buffered bytes to the callback, if there are any."""
        if self._data:
            data = bytes(self._data)
            self._data.clear()
            self._n_tokens = 0
            if self._max_s:
                self._last_s = self._clock()
            self._callback(data)


def _after_space(text: bytes, at: int) -> int:
    """Return the index after white space."""
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _utf8(name: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise ValidationError(f"{name} must be a str, got {text!r}")
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise ValidationError(f"{name} {text!r} cannot be encoded as UTF-8: {e}") from None


def _stop_bytes(stop: object) -> bytes:
    data = stop if isinstance(stop, bytes) else _utf8("stop string", stop)
    if not data or b"\0" in data:
        raise ValidationError(f"stop string {stop!r} is empty or contains a NUL")
    return data


def _prefixes(tag: bytes) -> tuple[bytes, ...]:
    """Return the proper prefixes of *tag*, longest first."""
    return tuple(tag[:n] for n in range(len(tag) - 1, 0, -1))


def _tail(text: bytes, prefixes: tuple[bytes, ...]) -> bytes:
    """Return the longest suffix of *text* that is one of *prefixes*."""
    if not text.endswith(prefixes):
        return b""
    return next(prefix for prefix in prefixes if text.endswith(prefix))
