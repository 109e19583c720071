"""Tells what a caller wrote from what a template wrote, in the text that came out.

A second rendering gets stand-ins for the characters of the inputs that can begin a special token:
private-use characters, one for one, so that lengths, slices and searches stay as they are. Where
they come out, the caller wrote. It counts only if it is the same text otherwise.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import TemplateError

__all__ = ["Segment", "TokenInjection"]

_PRIVATE_USE = range(0xE000, 0xF900)
_NEVER = "(?!)"
_TRUSTED = "_token"  # kwargs such as pad_token are control tokens on purpose
# What is marked: every character that can begin a token; only those outside of strings that the
# template looks for; only whole tokens, in their second character (it may look for "<").
_STRICT, _SPARING, _TOKENS = range(3)
# For what the assistant said, and for all else.
_ATTEMPTS = [
    (_STRICT, _STRICT),
    (_SPARING, _STRICT),
    (_TOKENS, _STRICT),
    (_SPARING, _SPARING),
    (_TOKENS, _TOKENS),
]


class Segment(NamedTuple):
    """A piece of a prompt.

    Attributes:
        text: What it says.
        is_template: False for a special token's text that the caller wrote: no control token.
    """

    text: str
    is_template: bool


class TokenInjection:
    """Finds the special tokens in a prompt that come from the inputs.

    Args:
        tokens: The texts of the special tokens.
        inspected: The strings that the template looks for in its inputs.
    """

    def __init__(self, tokens: Iterable[str], inspected: Iterable[str]) -> None:
        self._tokens = frozenset(tokens)
        self._lengths = sorted({len(token) for token in self._tokens}, reverse=True)
        firsts = {token[0] for token in self._tokens}
        # A letter is marked only where it begins a token: "user" has to stay what it is.
        self._symbols = {c for c in firsts if not (c.isalnum() or c.isspace() or c in "\"'\\")}
        spared = [text for text in inspected if len(text) > 1 and firsts & {*text}]
        self._first = re.compile(_class(firsts))
        self._spared_or_first = re.compile(_any([*spared, *firsts]) or _NEVER)

    def segments(
        self, text: str, values: dict[str, Any], render: Callable[[dict[str, Any]], str]
    ) -> list[Segment]:
        """Cut *text* into segments.

        Templates that look for a string (`</think>`) have to find it: where the text would change,
        less is marked, first in what the assistant said. Where nothing helps, every special token
        that occurs in the inputs counts as the caller's wherever it comes out.

        Args:
            text: What *render* makes of *values*.
            values: What the template sees, in plain types.
            render: Renders other values in the same way.
        """
        inputs = {name: v for name, v in values.items() if not name.endswith(_TRUSTED)}
        given = "\0".join(_strings(inputs))
        if not self._marks(given, _STRICT):
            return [Segment(text, True)] if text else []
        # Every second character too: a whole token may be marked there.
        marked = {char for token in self._tokens for char in token[:2]}
        taken = {*given, *marked}
        free = (chr(c) for c in _PRIVATE_USE if chr(c) not in taken and f"\\u{c:04x}" not in given)
        stand_ins = dict(zip(sorted(marked), free, strict=False))
        if len(stand_ins) == len(marked):
            for said, other in _ATTEMPTS:
                try:
                    found = render({**values, **self._marked(inputs, stand_ins, said, other)})
                except TemplateError:
                    continue
                restored, places = _restored(found, stand_ins)
                if restored == text:
                    return _cut(text, (s for s in self._found(text) if _within(places, *s)))
        return _cut(text, [(a, b) for a, b in self._found(text) if text[a:b] in given])

    def _marked(
        self, inputs: dict[str, Any], stand_ins: dict[str, str], said: int, other: int
    ) -> dict[str, Any]:
        """Return *inputs* with stand-ins; *said* is how what the assistant said is marked."""

        def change(value: Any, how: int) -> Any:
            if isinstance(value, str):
                chars = list(value)
                for place in self._marks(value, how):
                    chars[place] = stand_ins[chars[place]]
                return "".join(chars)
            if isinstance(value, dict):
                return {change(key, how): change(item, how) for key, item in value.items()}
            if isinstance(value, list):
                return [change(item, how) for item in value]
            return value

        messages = inputs["messages"]
        done = [change(m, said if m["role"] == "assistant" else other) for m in messages]
        return {
            name: done if value is messages else change(value, other)
            for name, value in inputs.items()
        }

    def _marks(self, text: str, how: int) -> list[int]:
        """Return the places in *text* to mark."""
        places = []
        pattern = self._first if how == _STRICT else self._spared_or_first
        for match in pattern.finditer(text):
            start, found = match.span()
            if found - start > 1:
                continue
            if how != _TOKENS and match[0] in self._symbols:
                places.append(start)
            elif length := self._token_at(text, start):
                places.append(start + (length > 1 and how == _TOKENS))
        return places

    def _token_at(self, text: str, start: int) -> int:
        """Return the length of the longest special token at *start*, or 0."""
        ends = (start + n for n in self._lengths if start + n <= len(text))
        return next((end - start for end in ends if text[start:end] in self._tokens), 0)

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where special tokens are in *text*; they may overlap."""
        for match in self._first.finditer(text):
            if length := self._token_at(text, match.start()):
                yield match.start(), match.start() + length


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _restored(marked: str, stand_ins: dict[str, str]) -> tuple[str, list[int]]:
    """Return the text without stand-ins, and where they were."""
    originals = {stand_in: char for char, stand_in in stand_ins.items()}
    # JSON in ASCII, and Python's repr of a dict, write them as escapes.
    originals |= {f"\\u{ord(s):04x}": c for c, s in stand_ins.items() if c.isascii()}
    parts, places, length, end = [], [], 0, 0
    for match in re.finditer(_any(originals) or _NEVER, marked):
        parts += [marked[end : match.start()], originals[match[0]]]
        length += match.start() - end
        places.append(length)
        length += 1
        end = match.end()
    return "".join([*parts, marked[end:]]), places


def _within(places: list[int], start: int, end: int) -> bool:
    i = bisect_left(places, start)
    return i < len(places) and places[i] < end


def _cut(text: str, spans: Iterable[tuple[int, int]]) -> list[Segment]:
    """Return the segments of *text* of which the *spans*, ordered, are the caller's."""
    cut: list[Segment] = []
    done = 0
    for start, end in spans:
        if end <= done:
            continue
        if start > done:
            cut.append(Segment(text[done:start], True))
        cut.append(Segment(text[max(start, done) : end], False))
        done = end
    if done < len(text):
        cut.append(Segment(text[done:], True))
    return cut


def _any(texts: Iterable[str]) -> str:
    """Return a pattern of any of *texts*, the longest first."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))


def _class(chars: Iterable[str]) -> str:
    inside = "".join(map(re.escape, sorted(chars)))
    return f"[{inside}]" if inside else _NEVER
