r"""Patterns of JSON Schema, written so that llguidance enforces them on the value of a string.

A pattern is a regular expression of ECMA-262, which the Rust crate `regex` reads differently within
classes. llguidance matches it against the quoted text: it replaces each set of bytes by what JSON
writes for it. A set with all control characters counts as complete there, so that `[^"]` would
allow `\"`. Such a set therefore loses U+0000, which makes every other character exact.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import GrammarError

__all__ = ["Pattern", "other_than", "rewritten", "whole"]


class Pattern(NamedTuple):
    """A pattern for llguidance.

    Attributes:
        text: The pattern in the syntax of the crate `regex`.
        is_exact: False: where a class excludes the quote or the backslash, U+0000 does not match.
    """

    text: str
    is_exact: bool


def rewritten(pattern: str) -> Pattern:
    """Return a pattern for llguidance.

    Raises:
        GrammarError: The pattern has parts that it cannot enforce.
    """
    return _Scanner(pattern).read()


def whole(pattern: str) -> str:
    """Return a pattern that a whole text without quotes matches, without anchors, for Lark.

    Raises:
        GrammarError: The pattern has parts that cannot be enforced.
    """
    options: list[list[str]] = [[]]
    depth = 0
    for part in _Scanner(pattern).parts():
        text = part if isinstance(part, str) else part.text
        if text == "|" and not depth:
            options.append([])
            continue
        if isinstance(part, str):
            depth += text.startswith("(") and not text.endswith(")")
            depth -= text == ")"
        options[-1].append(text)
    return "|".join(map(_anywhere, options))


def _anywhere(parts: list[str]) -> str:
    """Join the parts of one alternative, which JSON Schema does not anchor."""
    starts, ends = parts[:1] == ["^"], parts[-1:] == ["$"]
    inner = "".join(parts[starts : len(parts) - ends])
    return f"{'' if starts else '(?s:.*)'}(?:{inner}){'' if ends else '(?s:.*)'}"


def other_than(texts: Iterable[str]) -> str:
    """Return a pattern of all strings except *texts*."""
    return f"^(?:{_other_than(sorted(set(texts)))})$"


def _other_than(texts: list[str]) -> str:
    """Return a pattern of all strings except the sorted *texts*, without anchors."""
    following: dict[str, list[str]] = {}
    for text in filter(None, texts):
        following.setdefault(text[0], []).append(text[1:])
    first = "".join(f"\\u{{{ord(c):x}}}" for c in following)
    options = [f"[^{first}][\\s\\S]*" if first else "[\\s\\S]+"]
    options += [f"\\u{{{ord(c):x}}}(?:{_other_than(rest)})" for c, rest in following.items()]
    return "|".join(options + [""] * ("" not in texts))


@dataclass(frozen=True)
class _Set:
    """A set of characters.

    Attributes:
        text: As an item of a class in Rust.
        ascii: Its characters below 128; None: unknown.
    """

    text: str
    ascii: frozenset[int] | None


_ASCII = frozenset(range(128))
_CONTROL = frozenset(range(32))
_QUOTED = frozenset(map(ord, '"\\'))
_SETS = {
    "d": _Set("0-9", frozenset(range(48, 58))),
    "w": _Set("0-9A-Za-z_", frozenset(c for c in _ASCII if re.match(r"\w", chr(c)))),
    "s": _Set(
        r"\t-\r \xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}",
        frozenset([*range(9, 14), 32]),
    ),
}
_ESCAPES = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "0": "\0"}
_COUNT = re.compile(r"\{(\d+(,\d*)?|,\d*)\}")
_FLAGS = re.compile(r"\(\?[is]+(-[is]+)?[:)]")
_NAME = re.compile(r"\(\?P?<[A-Za-z_]\w*>")
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")
_LOW = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_PROPERTY = re.compile(r"[pP](\{\w+(=\w+)?\}|[A-Z])")
_NEVER = "[a&&b]"


class _Scanner:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._is_quantified = False

    def parts(self) -> list[_Set | str]:
        found: list[_Set | str] = []
        while (part := self._part()) is not None:
            found.append(part)
        return found

    def read(self) -> Pattern:
        parts = self.parts()
        sets = [part for part in parts if isinstance(part, _Set)]
        incomplete = [s for s in sets if s.ascii is None or not s.ascii >= _QUOTED]
        # llguidance unites the sets of alternatives, so what counts is what they have together.
        control = _union(incomplete)
        if not control >= _CONTROL - {ord("\n")}:
            return Pattern("".join(p.text if isinstance(p, _Set) else p for p in parts), True)
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
            elif part in incomplete and (part.ascii is None or 0 in part.ascii):
                text += _NEVER if part.ascii == frozenset([0]) else f"[{part.text}--\\x00]"
            else:
                text += part.text
        return Pattern(text, False)

    def _part(self) -> _Set | str | None:
        """Return the next part; None at the end."""
        if self._at == len(self._pattern):
            return None
        was_quantified, self._is_quantified = self._is_quantified, False
        found = self._match(_COUNT)
        if found:
            self._is_quantified = True
            return found[0].replace("{,", "{0,")
        c = self._next()
        if c == "[":
            return self._class()
        if c == "\\":
            one = self._escape(in_class=False)
            return _class_of(one) if isinstance(one, _Set) else _literal(one)
        if c == "(" and self._pattern.startswith("?", self._at):
            return self._group()
        if c == "+" and was_quantified:
            raise self._error("possessive quantifiers")
        self._is_quantified = c in "*+?"
        return c if c in "().*+?|^$" else _literal(c)

    def _group(self) -> str:
        self._at -= 1
        if found := self._match(_FLAGS):
            return found[0]
        if self._match(_NAME):
            return "(?:"
        if self._pattern.startswith("(?:", self._at):
            self._at += 3
            return "(?:"
        looks = self._pattern.startswith(("(?=", "(?!", "(?<=", "(?<!"), self._at)
        raise self._error("look-around" if looks else f"{self._pattern[self._at :][:3]!r}")

    def _class(self) -> _Set:
        """Read a class behind its bracket."""
        is_negated = self._pattern.startswith("^", self._at)
        self._at += is_negated
        if self._pattern.startswith("]", self._at) and "]" in self._pattern[self._at + 1 :]:
            raise self._error("a class that begins with ']' (write \\])")
        items: list[_Set] = []
        while not self._pattern.startswith("]", self._at):
            one = self._atom()
            if isinstance(one, str) and re.match(r"-[^\]]", self._pattern[self._at :]):
                start = self._at
                self._at += 1
                end = self._atom()
                if isinstance(end, str):
                    if end < one:
                        raise self._error(f"a range that ends before it begins, {one}-{end}")
                    between = frozenset(c for c in _ASCII if one <= chr(c) <= end)
                    items.append(_Set(f"{_escaped(one)}-{_escaped(end)}", between))
                    continue
                self._at = start
            items.append(_char(one) if isinstance(one, str) else one)
        self._at += 1
        members = None if any(item.ascii is None for item in items) else _union(items)
        if not items:
            return _Set("(?s:.)", _ASCII) if is_negated else _Set(_NEVER, frozenset())
        texts = [item.text for item in items]
        if any(f"[^{text}]" in texts for text in texts):  # as in [\s\S]
            return _Set(_NEVER, frozenset()) if is_negated else _Set("(?s:.)", _ASCII)
        text = "".join(texts)
        if is_negated:
            return _Set(f"[^{text}]", None if members is None else _ASCII - members)
        return _Set(f"[{text}]", members)

    def _atom(self) -> _Set | str:
        """Read one character or set within a class."""
        if self._at == len(self._pattern):
            raise self._error("a class without an end")
        c = self._next()
        return self._escape(in_class=True) if c == "\\" else c

    def _escape(self, in_class: bool) -> _Set | str:
        """Read what follows a backslash: a set, as an item of a class, or one character."""
        if found := self._match(_HEX):
            code = int(found[1] or found[2] or found[3], 16)
            low = self._match(_LOW) if 0xD800 <= code < 0xDC00 else None
            if low:
                code = 0x10000 + (code - 0xD800) * 0x400 + int(low[1], 16) - 0xDC00
            if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
                raise self._error(f"{found[0]!r}, which is not a character")
            return chr(code)
        if found := self._match(_PROPERTY):
            return _Set("\\" + found[0], _members_of_property(found[0]))
        if self._at == len(self._pattern):
            raise self._error("a backslash at the end")
        c = self._next()
        if c.lower() in _SETS:
            one = _SETS[c.lower()]
            if c.islower() or one.ascii is None:
                return one
            return _Set(f"[^{one.text}]", _ASCII - one.ascii)
        if c == "c" and re.match("[A-Za-z]", self._pattern[self._at :]):
            return chr(ord(self._next()) % 32)
        if c == "b" and in_class:
            return "\b"
        if c in "bB":
            raise self._error(f"the word boundary \\{c}")
        if c in "123456789k":
            raise self._error("backreferences")
        if c == "0" and re.match(r"\d", self._pattern[self._at :]):
            raise self._error("octal escapes")
        if c in _ESCAPES:
            return _ESCAPES[c]
        if c.isascii() and c.isalnum():
            raise self._error(f"the escape \\{c}")
        return c

    def _next(self) -> str:
        self._at += 1
        return self._pattern[self._at - 1]

    def _match(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        found = expression.match(self._pattern, self._at)
        if found:
            self._at = found.end()
        return found

    def _error(self, what: str) -> GrammarError:
        return GrammarError(
            f"the pattern {self._pattern!r:.200} has {what}, which cannot be enforced; rewrite it, "
            "or check the answer afterwards"
        )


def _union(sets: Iterable[_Set]) -> frozenset[int]:
    return frozenset[int]().union(*(_ASCII if s.ascii is None else s.ascii for s in sets))


def _char(c: str) -> _Set:
    return _Set(_escaped(c), frozenset([ord(c)]) & _ASCII)


def _class_of(item: _Set) -> _Set:
    return _Set(f"[{item.text}]", item.ascii)


def _literal(c: str) -> _Set | str:
    """Return one character outside of classes; control characters are sets, which may unite."""
    return _class_of(_char(c)) if ord(c) in _CONTROL else _escaped(c)


def _escaped(c: str) -> str:
    return c if c.isalnum() or c == " " else f"\\x{{{ord(c):x}}}"


def _members_of_property(name: str) -> frozenset[int] | None:
    category = name[1:].strip("{}")
    if not re.fullmatch("[CLMNPSZ][a-z]?", category):
        return None
    members = frozenset(c for c in _ASCII if unicodedata.category(chr(c)).startswith(category))
    return members if name[0] == "p" else _ASCII - members
