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

__all__ = ["Marks", "Segment"]

_PRIVATE_USE = range(0xE000, 0xF900)
_NEVER = "(?!)"
_TRUSTED = "_token"  # kwargs such as pad_token are control tokens on purpose


class Segment(NamedTuple):
    """A piece of a prompt.

    Attributes:
        text: What it says.
        is_template: False for a special token's text that the caller wrote: no control token.
    """

    text: str
    is_template: bool


class Marks:
    """Finds the special tokens in a prompt that come from the inputs.

    Args:
        tokens: The texts of the special tokens.
        inspected: The strings that the template looks for in its inputs.
    """

    def __init__(self, tokens: Iterable[str], inspected: Iterable[str]) -> None:
        self._tokens = frozenset(tokens)
        self._lengths = sorted({len(token) for token in self._tokens}, reverse=True)
        self._firsts = {token[0] for token in self._tokens}
        # A letter is marked only where it begins a token: "user" has to stay what it is.
        plain = [t for t in self._tokens if t[0].isalnum() or t[0].isspace() or t[0] in "\"'\\"]
        symbols = self._firsts - {token[0] for token in plain}
        whole = "(?=" + (_any(plain) or _NEVER) + ")."
        mark = f"(?s:{_class(symbols)}|{whole})"
        spare = _any(text for text in inspected if self._firsts & {*text}) or _NEVER
        self._first = re.compile(_class(self._firsts))
        self._mark = re.compile(f"(?P<mark>{mark})")
        self._mark_sparing = re.compile(f"{spare}|(?P<mark>{mark})")

    def segments(
        self, text: str, values: dict[str, Any], render: Callable[[dict[str, Any]], str]
    ) -> list[Segment]:
        """Cut *text* into segments.

        Templates that look for a string (`</think>`) have to find it: it is spared where text
        would change, first in what the assistant said. Where nothing helps, every special token
        that occurs in the inputs counts as the caller's wherever it comes out.

        Args:
            text: What *render* makes of *values*.
            values: What the template sees, in plain types.
            render: Renders other values in the same way.
        """
        given = "\0".join(_strings(_inputs(values)))
        if self._mark.search(given) is None:
            return [Segment(text, True)] if text else []
        taken = {*given, *"".join(self._tokens)}
        free = (chr(c) for c in _PRIVATE_USE if chr(c) not in taken and f"\\u{c:04x}" not in given)
        stand_ins = dict(zip(sorted(self._firsts), free, strict=False))
        if len(stand_ins) == len(self._firsts):
            for sparing in ((), ("assistant",), None):
                try:
                    marked = render(self._marked(values, stand_ins, sparing))
                except TemplateError:
                    continue
                found, places = _restored(marked, stand_ins)
                if found == text:
                    return _cut(text, self._spans(text, places))
        known = [token for token in self._tokens if token in given]
        return _cut(text, [m.span() for m in re.finditer(_any(known) or _NEVER, text)])

    def _marked(
        self, values: dict[str, Any], stand_ins: dict[str, str], sparing: tuple[str, ...] | None
    ) -> dict[str, Any]:
        """Return *values* with stand-ins, *sparing* messages of these roles, or (None) all."""

        def strict(text: str) -> str:
            return self._mark.sub(lambda m: stand_ins[m["mark"]], text)

        def lenient(text: str) -> str:
            return self._mark_sparing.sub(
                lambda m: stand_ins[m["mark"]] if m["mark"] else m[0], text
            )

        usual = lenient if sparing is None else strict
        inputs = _inputs(values)
        messages = [
            _mapped(message, lenient if message["role"] in (sparing or ()) else usual)
            for message in inputs.pop("messages")
        ]
        return {**values, **_mapped(inputs, usual), "messages": messages}

    def _spans(self, text: str, places: list[int]) -> list[tuple[int, int]]:
        """Return where in *text* special tokens are that have one of *places* in them."""
        spans = []
        for match in self._first.finditer(text):
            start = match.start()
            for length in self._lengths:
                if text[start : start + length] in self._tokens:
                    i = bisect_left(places, start)
                    if i < len(places) and places[i] < start + length:
                        spans.append((start, start + length))
                    break
        return spans


def _inputs(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.endswith(_TRUSTED)}


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


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return value


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
