"""Text that arrives in pieces: pure functions and small classes.

All of it works on bytes, because the tokens of a model may end inside a UTF-8 character. Each class
gives the same result however the text is split.
"""

from __future__ import annotations

import codecs
import json
import re
import time
from collections.abc import Callable, Sequence

from .errors import ValidationError

__all__ = ["Flusher", "JsonCompletion", "StopStrings", "ThinkFilter", "Utf8Stream"]


class Utf8Stream:
    """Decodes UTF-8 that arrives split at any byte; bytes that are no UTF-8 become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """Return the characters that *data* completes; an unfinished one is held back."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Finds the first of some texts, and holds back what may be the beginning of one.

    Of several that overlap the one that is complete first counts, and of those the longest.

    Args:
        stops: The texts; none of them empty.

    Attributes:
        found: The text that was found, as it was given; None before.

    Raises:
        ValidationError: One is empty, no text, or has a NUL.
    """

    def __init__(self, stops: Sequence[str | bytes]) -> None:
        self.found: str | bytes | None = None
        # The longest first: of those that end at the same place it counts.
        encoded = [(_encoded_stop(stop), stop) for stop in stops]
        self._stops = sorted(encoded, key=lambda pair: -len(pair[0]))
        self._any = re.compile(b"|".join(re.escape(data) for data, _ in self._stops) or b"(?!)")
        self._beginnings = {data[:n] for data, _ in encoded for n in range(1, len(data))}
        self._ends = {beginning[-1] for beginning in self._beginnings}
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = b""

    def push(self, data: bytes) -> bytes:
        """Return what can be handed out: up to a stop, or to what may become one."""
        if self.found is not None:
            return b""
        if self._held:
            data = self._held + data
        if self._any.search(data) is not None:
            return self._cut(data)
        n_held = 0
        if data and data[-1] in self._ends:  # most texts end with a byte that no beginning has
            for n in range(min(len(data), self._longest), 0, -1):
                if data[-n:] in self._beginnings:
                    n_held = n
                    break
        self._held = data[len(data) - n_held :]
        return data[: len(data) - n_held]

    def flush(self) -> bytes:
        """Return what was held back, when the text has ended."""
        held, self._held = self._held, b""
        return held

    def _cut(self, data: bytes) -> bytes:
        ends = [
            (at + len(stop), at, given)
            for stop, given in self._stops
            if (at := data.find(stop)) >= 0
        ]
        _, at, self.found = min(ends, key=lambda end: end[:2])
        self._held = b""
        return data[:at]


def _encoded_stop(stop: str | bytes) -> bytes:
    if not isinstance(stop, (str, bytes)):
        raise ValidationError(f"stop: {stop!r} is no text")
    try:
        data = stop.encode() if isinstance(stop, str) else stop
    except UnicodeEncodeError as e:
        raise ValidationError(f"stop: {stop!r} cannot be encoded as UTF-8: {e}") from None
    if not data or b"\0" in data:
        raise ValidationError(f"stop: {stop!r} is empty or has a NUL")
    return data


_WHITE = b" \t\r\n"
_OPEN, _CLOSE, _FENCE = b"<think>", b"</think>", b"```"
_MAX_FENCE_LINE = 16
_QUOTE, _BACKSLASH, _COLON = b'"\\:'
_OPENING, _CLOSING = b"{[", b"}]"


class JsonCompletion:
    """Tells when an answer that is a JSON object is complete.

    The answer must begin with the object, after white space, a <think> block or the line that
    opens a Markdown fence; any other answer is never complete, so prose that shows JSON is not
    cut. The object counts when it has one of *keys* at its top level.

    Args:
        keys: Any of them marks the object.

    Attributes:
        armed: Whether the answer can still become complete.
    """

    def __init__(self, keys: Sequence[str] = ("done", "next_step")) -> None:
        for key in keys:
            if not isinstance(key, str):
                raise ValidationError(f"json_stop: {key!r} is no text")
        self.armed = True
        self._keys = frozenset(keys)
        self._head = b""
        self._thinking = self._thought = self._fenced = False
        self._depth, self._in_string, self._escaped = 0, False, False
        self._string: bytearray | None = None  # at the top level: a key if a colon follows
        self._marked = False

    def push(self, data: bytes) -> int | None:
        """Return how many bytes of *data* belong to the complete object; None = not complete."""
        if not self.armed:
            return None
        start = 0
        if not self._depth:
            begins = self._skip_head(data)
            if begins is None:
                return None
            start = begins
        for i in range(start, len(data)):
            byte = data[i]
            if self._in_string:
                self._continue_string(byte)
            elif byte == _QUOTE:
                self._in_string = True
                self._string = bytearray() if self._depth == 1 else None
            elif byte in _OPENING:
                self._depth += 1
                self._string = None
            elif byte in _CLOSING:
                self._depth -= 1
                if not self._depth:
                    self.armed = False
                    return i + 1 if self._marked else None
            elif byte == _COLON and self._depth == 1:
                if self._string is not None and _unescaped(self._string) in self._keys:
                    self._marked = True
                self._string = None
        return None

    def _continue_string(self, byte: int) -> None:
        if byte == _QUOTE and not self._escaped:
            self._in_string = False
            return
        self._escaped = byte == _BACKSLASH and not self._escaped
        if self._string is not None:
            self._string.append(byte)

    def _skip_head(self, data: bytes) -> int | None:
        """Return where in *data* the object begins; None when it has not, or will not."""
        head = self._head + data
        while True:
            if self._thinking:
                end = head.find(_CLOSE)
                if end < 0:
                    self._head = head[-len(_CLOSE) + 1 :]
                    return None
                self._thinking, head = False, head[end + len(_CLOSE) :]
            head = head.lstrip(_WHITE)
            if not head:
                break
            if head[:1] == b"{":
                self._head = b""
                return len(data) - len(head)
            if head.startswith(_OPEN) and not self._thought:
                self._thinking = self._thought = True
                continue
            if head.startswith(_FENCE) and not self._fenced:
                line, newline, rest = head.partition(b"\n")
                if newline and line[len(_FENCE) :].strip().lower() in (b"", b"json"):
                    self._fenced, head = True, rest
                    continue
                if not newline and len(line) < _MAX_FENCE_LINE:
                    break
            elif _OPEN.startswith(head) or _FENCE.startswith(head):
                break
            self.armed = False
            return None
        self._head = head
        return None


def _unescaped(string: bytearray) -> str:
    text = string.decode("utf-8", "replace")
    if "\\" not in text:
        return text
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


class ThinkFilter:
    """Leaves blocks such as <think>...</think> out, with the white space after them."""

    def __init__(self, opening: bytes = _OPEN, closing: bytes = _CLOSE) -> None:
        self._opening, self._closing = opening, closing
        self._inside = self._after = False
        self._held = b""

    def push(self, data: bytes) -> bytes:
        """Return what of the text lies outside of a block and begins none."""
        data, out = self._held + data, b""
        while data:
            if self._after:
                data = data.lstrip(_WHITE)
                self._after = not data
            tag = self._closing if self._inside else self._opening
            before, found, rest = data.partition(tag)
            if not found:
                n = _overlap(data, tag)
                self._held = data[len(data) - n :]
                return out if self._inside else out + data[: len(data) - n]
            if not self._inside:
                out += before
            self._inside = not self._inside
            self._after = not self._inside
            data = rest
        self._held = b""
        return out

    def flush(self) -> bytes:
        """Return what was held back, when the text has ended; an open block is left out."""
        held, self._held = self._held, b""
        return b"" if self._inside else held


def _overlap(data: bytes, tag: bytes) -> int:
    """Return the length of the longest end of *data* that *tag* begins with."""
    for n in range(min(len(data), len(tag) - 1), 0, -1):
        if tag.startswith(data[-n:]):
            return n
    return 0


class Flusher:
    """Collects pieces and hands them on when there is enough of them; 0 switches a rule off.

    Args:
        callback: Receives the bytes, never none.
        max_bytes: Hand on when this many are there.
        max_tokens: Hand on after this many pieces.
        max_ms: Hand on when this much time has passed since the last time, milliseconds.
        clock: Seconds.
    """

    def __init__(
        self,
        callback: Callable[[bytes], object],
        max_bytes: int = 64,
        max_tokens: int = 1,
        max_ms: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callback, self._clock = callback, clock
        self._max_bytes, self._max_tokens, self._max_s = max_bytes, max_tokens, max_ms / 1000
        self._data, self._tokens, self._last = bytearray(), 0, clock()

    def push(self, piece: bytes) -> None:
        """Take the bytes of one token."""
        self._data += piece
        self._tokens += 1
        if (
            (self._max_tokens and self._tokens >= self._max_tokens)
            or (self._max_bytes and len(self._data) >= self._max_bytes)
            or (self._max_s and self._clock() - self._last >= self._max_s)
        ):
            self.flush()

    def flush(self) -> None:
        """Hand on what is there."""
        data = bytes(self._data)
        self._data.clear()
        self._tokens = 0
        if self._max_s:
            self._last = self._clock()
        if data:
            self._callback(data)
