"""Keeps special tokens that a caller wrote from becoming control tokens.

This is taint tracking. The messages are rendered a second time with placeholders, private-use
characters, in place of the characters that can begin a special token. The replacement is one for
one, so that lengths, slices and searches in the template give the same results. Where a placeholder
appears in the output, the caller wrote that text. The second rendering counts only if, with the
characters restored, it equals the first.
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
_TRUSTED = "_token"  # variables such as pad_token are control tokens on purpose
# Levels of replacement: every character that can begin a token; the same, except in strings that
# the template compares with (it may search for "</think>"); only complete tokens, in their second
# character (it may search for "<").
_ALL, _NOT_INSPECTED, _WHOLE_TOKENS = range(3)
# Levels for the assistant's messages and for all other inputs, in the order in which they are
# tried.
_ATTEMPTS = [
    (_ALL, _ALL),
    (_NOT_INSPECTED, _ALL),
    (_WHOLE_TOKENS, _ALL),
    (_NOT_INSPECTED, _NOT_INSPECTED),
    (_WHOLE_TOKENS, _WHOLE_TOKENS),
]


class Segment(NamedTuple):
    """A segment of a prompt.

    Attributes:
        text: The text.
        is_template: False for the text of a special token that the caller wrote: it must not become
            a control token.
    """

    text: str
    is_template: bool


class TokenInjection:
    """Finds the special tokens in a prompt that come from the caller's inputs.

    Args:
        tokens: The texts of the special tokens.
        inspected: The strings that the template compares its inputs with.
    """

    def __init__(self, tokens: Iterable[str], inspected: Iterable[str]) -> None:
        self._tokens = frozenset(tokens)
        self._lengths = sorted({len(token) for token in self._tokens}, reverse=True)
        firsts = {token[0] for token in self._tokens}
        # Letters are replaced only where they begin a token: a role such as "user" must be kept.
        self._symbols = {c for c in firsts if not (c.isalnum() or c.isspace() or c in "\"'\\")}
        kept = [text for text in inspected if len(text) > 1 and firsts & {*text}]
        self._first = re.compile(_any_char(firsts))
        self._inspected_or_first = re.compile(_any_of([*kept, *firsts]) or _NEVER)

    def segments(
        self, text: str, values: dict[str, Any], render: Callable[[dict[str, Any]], str]
    ) -> list[Segment]:
        """Cut *text* into segments.

        A template must still find the strings it searches for. If placeholders would change the
        output, fewer are used, first in the assistant's messages. If nothing helps, every special
        token that occurs in the inputs is attributed to the caller wherever it appears.

        Args:
            text: The result of *render* for *values*.
            values: The template's variables, in plain types.
            render: Renders other values in the same way.
        """
        inputs = {name: v for name, v in values.items() if not name.endswith(_TRUSTED)}
        given = "\0".join(_strings(inputs))
        if not self._positions(given, _ALL):
            return [Segment(text, True)] if text else []
        # Second characters too, for whole tokens.
        replaced = {char for token in self._tokens for char in token[:2]}
        taken = {*given, *replaced}
        free = (chr(c) for c in _PRIVATE_USE if chr(c) not in taken and f"\\u{c:04x}" not in given)
        placeholders = dict(zip(sorted(replaced), free, strict=False))
        if len(placeholders) == len(replaced):
            for assistant, other in _ATTEMPTS:
                try:
                    tainted = self._tainted(inputs, placeholders, assistant, other)
                    output = render({**values, **tainted})
                except TemplateError:
                    continue
                restored, positions = _restored(output, placeholders)
                if restored == text:
                    return _cut(text, (s for s in self._spans(text) if _any_within(positions, *s)))
        return _cut(text, [(a, b) for a, b in self._spans(text) if text[a:b] in given])

    def _tainted(
        self, inputs: dict[str, Any], placeholders: dict[str, str], assistant: int, other: int
    ) -> dict[str, Any]:
        """Return *inputs* with placeholders, at one level for the assistant and one for others."""

        def replace(value: Any, level: int) -> Any:
            if isinstance(value, str):
                chars = list(value)
                for position in self._positions(value, level):
                    chars[position] = placeholders[chars[position]]
                return "".join(chars)
            if isinstance(value, dict):
                return {replace(key, level): replace(item, level) for key, item in value.items()}
            if isinstance(value, list):
                return [replace(item, level) for item in value]
            return value

        messages = inputs["messages"]
        done = [replace(m, assistant if m["role"] == "assistant" else other) for m in messages]
        return {
            name: done if value is messages else replace(value, other)
            for name, value in inputs.items()
        }

    def _positions(self, text: str, level: int) -> list[int]:
        """Return the positions in *text* that get a placeholder."""
        positions = []
        pattern = self._first if level == _ALL else self._inspected_or_first
        for match in pattern.finditer(text):
            start, end = match.span()
            if end - start > 1:
                continue
            if level != _WHOLE_TOKENS and match[0] in self._symbols:
                positions.append(start)
            elif length := self._token_at(text, start):
                positions.append(start + (length > 1 and level == _WHOLE_TOKENS))
        return positions

    def _token_at(self, text: str, start: int) -> int:
        """Return the length of the longest special token at *start*, or 0."""
        ends = (start + n for n in self._lengths if start + n <= len(text))
        return next((end - start for end in ends if text[start:end] in self._tokens), 0)

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the spans of special tokens in *text*; they may overlap."""
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


def _restored(output: str, placeholders: dict[str, str]) -> tuple[str, list[int]]:
    """Return the output with the original characters, and where the placeholders were."""
    originals = {placeholder: char for char, placeholder in placeholders.items()}
    # JSON in ASCII, and Python's repr of a dict, escape placeholders.
    originals |= {f"\\u{ord(p):04x}": c for c, p in placeholders.items() if c.isascii()}
    parts, positions, length, end = [], [], 0, 0
    for match in re.finditer(_any_of(originals) or _NEVER, output):
        parts += [output[end : match.start()], originals[match[0]]]
        length += match.start() - end
        positions.append(length)
        length += 1
        end = match.end()
    return "".join([*parts, output[end:]]), positions


def _any_within(positions: list[int], start: int, end: int) -> bool:
    i = bisect_left(positions, start)
    return i < len(positions) and positions[i] < end


def _cut(text: str, spans: Iterable[tuple[int, int]]) -> list[Segment]:
    """Return the segments of *text*, given the ordered *spans* that are the caller's."""
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


def _any_of(strings: Iterable[str]) -> str:
    """Return a pattern that matches any of *strings*, preferring longer ones."""
    return "|".join(map(re.escape, sorted(strings, key=len, reverse=True)))


def _any_char(chars: Iterable[str]) -> str:
    inside = "".join(map(re.escape, sorted(chars)))
    return f"[{inside}]" if inside else _NEVER
