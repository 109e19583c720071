"""GBNF parser in Python: llama.cpp's own recurses on its input and prints its errors.

It accepts the syntax of the newest builds on every build (such as an escaped `-`), except token
references (`<[7]>`), which older builds do not support. C receives the result as plain rules
(`gbnf.normal`), so its parser never sees the caller's input.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import NoReturn

from ..errors import GrammarError, ValidationError

__all__ = ["MAX_GRAMMAR", "MAX_NESTING", "MAX_REPEAT", "Chars", "Item", "Rule", "explain", "parse"]

MAX_GRAMMAR = 2**20  # characters
MAX_NESTING = 200  # nested parentheses
MAX_REPEAT = 10_000  # the m and n of {m,n}
_CONTEXT = 60  # characters of a line around an error
_LAST_CHARACTER = 0x10FFFF

_BLANK = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_HEX = re.compile(r"[0-9a-fA-F]*")
_HEAD = re.compile(r"[a-zA-Z0-9-]+(?:[ \t]|#[^\r\n]*)*::=")
_COUNTS = re.compile(r"\{[ \t]*([0-9]+)[ \t]*(?:(,)[ \t]*([0-9]*)[ \t]*)?\}")
_ESCAPES = {"t": 9, "r": 13, "n": 10, **{c: ord(c) for c in '\\"[]-'}}
_HEX_LENGTH = {"x": 2, "u": 4, "U": 8}
_TIMES = {"*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass(frozen=True)
class Chars:
    """Character class: inclusive ranges of code points, or all characters outside them."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


Item = Chars | int  # a character, or the index of a rule


@dataclass
class Rule:
    """Alternatives of sequences, or one item repeated.

    Attributes:
        name: Name in the source; a group has the name of the enclosing rule.
        at: Offset in the source, in characters.
        alternatives: Sequences of items; not used by a repetition.
        repeat: Item, minimum and maximum count (None: unbounded).
    """

    name: str
    at: int
    alternatives: list[list[Item]] = field(default_factory=lambda: [[]])
    repeat: tuple[Item, int, int | None] | None = None


def parse(text: str, root: str = "root") -> tuple[list[Rule], int]:
    """Parse a grammar.

    Args:
        text: GBNF source.
        root: Name of the root rule.

    Returns:
        The rules and the index of the root rule.

    Raises:
        GrammarError: The source is not valid GBNF; gives line, column, excerpt and remedy.
        ValidationError: *text* or *root* is not a str.
    """
    if not isinstance(text, str) or not isinstance(root, str):
        wrong = text if not isinstance(text, str) else root
        raise ValidationError(f"a grammar and its root must be str, got {type(wrong).__name__}")
    if len(text) > MAX_GRAMMAR:
        raise GrammarError(f"the grammar has {len(text)} characters; the limit is {MAX_GRAMMAR}")
    parser = _Parser(text)
    parser.run()
    index = parser.defined.get(root)
    if index is None:
        known = ", ".join(list(parser.defined)[:8]) or "none"
        raise GrammarError(
            f"the grammar has no rule {root!r} (it has: {known}); add `{root} ::= ...` or name "
            "another root"
        )
    return parser.rules, index


def explain(text: str, at: int, what: str) -> GrammarError:
    """Return the error for offset *at*: line, column, excerpt, and a caret below it."""
    start = max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1
    number = len(re.findall(r"\r\n|\r|\n", text[:start])) + 1
    line = re.match(r"[^\r\n]*", text[start:])
    assert line is not None
    left = max(0, at - start - _CONTEXT)
    shown = line.group()[left : at - start + _CONTEXT]
    visible = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
    caret = " " * (at - start - left) + "^"
    return GrammarError(f"line {number}:{at - start + 1}: {what}\n  {visible}\n  {caret}")


class _Open:
    """A rule or group that is being parsed."""

    def __init__(self, index: int, rule: Rule) -> None:
        self.index, self.rule = index, rule
        self.last = 0  # start of the item that a repetition applies to

    @property
    def sequence(self) -> list[Item]:
        return self.rule.alternatives[-1]

    def add(self, items: list[Item]) -> None:
        self.last = len(self.sequence)
        self.sequence.extend(items)

    def next_alternative(self) -> None:
        self.rule.alternatives.append([])
        self.last = 0


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.rules: list[Rule] = []
        self.defined: dict[str, int] = {}
        self._singles: dict[int, Chars] = {}
        self._referenced: dict[str, tuple[int, int]] = {}  # name -> (rule, first offset)

    def run(self) -> None:
        """Parse all rules."""
        if bad := re.search("[\0\ud800-\udfff]", self.text):
            self._fail(f"{bad.group()!r} is not allowed in a grammar; write an escape", bad.start())
        self._skip(_BLANK_LINES)
        while self.at < len(self.text):
            self._rule()
        for name, (_, where) in self._referenced.items():
            if name not in self.defined:
                close = difflib.get_close_matches(name, self.defined, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"add `{name} ::= ...`"
                self._fail(f"rule {name!r} is not defined; {hint}", where)

    def _rule(self) -> None:
        start, name = self.at, self._name("the name of a rule (letters, digits, -)")
        if name in self.defined:
            first = self.rules[self.defined[name]].at
            line = len(re.findall(r"\r\n|\r|\n", self.text[:first])) + 1
            self._fail(f"rule {name!r} is already defined on line {line}; rename one", start)
        index = self.defined[name] = self._index(name, start)
        self.rules[index].at = start
        self._skip(_BLANK)
        if not self.text.startswith("::=", self.at):
            self._fail(f"`::=` must follow the name {name!r}")
        self.at += 3
        self._skip(_BLANK_LINES)
        self._body(index)
        if self.at < len(self.text):
            self._end_of_rule()
        self._skip(_BLANK_LINES)

    def _end_of_rule(self) -> None:
        c = self.text[self.at]
        if c in "<!":
            self._fail(
                "token references are not supported on all builds; write the token's text as a "
                'literal: "<think>"'
            )
        if c == "_":
            self._fail("`_` is not allowed in a name; use `-`")
        if c not in "\r\n":
            self._fail(f"unexpected {c!r}; literals need double quotes, and each rule its own line")

    def _body(self, index: int) -> None:
        """Parse alternatives, with nested groups on an explicit stack."""
        stack = [_Open(index, self.rules[index])]
        while self.at < len(self.text):
            top, start, c = stack[-1], self.at, self.text[self.at]
            if c == '"':
                top.add(self._literal())
            elif c == "[":
                top.add([self._char_class()])
            elif c == ".":
                self.at += 1
                top.add([Chars((), negated=True)])
            elif c == "(":
                if len(stack) > MAX_NESTING:
                    self._fail(
                        f"more than {MAX_NESTING} nested parentheses; move a part to its own rule"
                    )
                self.at += 1
                inner = self._new(Rule(top.rule.name, start))
                stack.append(_Open(inner, self.rules[inner]))
                self._skip(_BLANK_LINES)
                continue
            elif c == ")" and len(stack) > 1:
                self.at += 1
                stack.pop()
                stack[-1].add([top.index])
            elif c == "|":
                self.at += 1
                top.next_alternative()
                self._skip(_BLANK_LINES)
                continue
            elif c in "*+?{":
                self._repeat(top, *self._counts(), start)
            elif name := _NAME.match(self.text, self.at):
                if _HEAD.match(self.text, self.at):
                    if len(stack) > 1:
                        self._fail("this `(` is not closed; add `)`", stack[-1].rule.at)
                    self._fail(
                        "a rule must begin on its own line, after a line that does not end with `|`"
                    )
                self.at = name.end()
                top.add([self._index(name.group(), start)])
            else:
                break
            self._skip(_BLANK_LINES if len(stack) > 1 else _BLANK)
        if len(stack) > 1:
            self._fail("this `(` is not closed; add `)`", stack[-1].rule.at)

    def _repeat(self, top: _Open, low: int, high: int | None, where: int) -> None:
        items = top.sequence[top.last :]
        if not items:
            self._fail("nothing before this to repeat", where)
        if high is not None and high < low:
            self._fail(f"the maximum {high} is less than the minimum {low}", where)
        if max(low, high or 0) > MAX_REPEAT:
            self._fail(f"repetition counts are limited to {MAX_REPEAT}; use * or +", where)
        item = items[0]
        if len(items) > 1:
            item = self._new(Rule(top.rule.name, where, [items]))
        rule = Rule(top.rule.name, where, repeat=(item, low, high))
        top.sequence[top.last :] = [self._new(rule)] if high != 0 else []

    def _counts(self) -> tuple[int, int | None]:
        c = self.text[self.at]
        if c in _TIMES:
            self.at += 1
            return _TIMES[c]
        counts = _COUNTS.match(self.text, self.at)
        if counts is None:
            self._fail("a repetition must be {3}, {3,} or {3,5}")
        low, comma, high = counts.groups()
        if max(len(low), len(high or "")) > len(str(MAX_REPEAT)):
            self._fail(f"repetition counts are limited to {MAX_REPEAT}; use * or +")
        self.at = counts.end()
        if comma is None:
            return int(low), int(low)
        return int(low), int(high) if high else None

    def _literal(self) -> list[Item]:
        start = self.at
        self.at += 1
        items: list[Item] = []
        while self.text[self.at : self.at + 1] != '"':
            c = self._character(start, "string")
            if 0xD800 <= c < 0xE000:
                self._fail(
                    f"U+{c:04X} is a surrogate; write \\U0001F600 for a character above U+FFFF"
                )
            items.append(self._singles.setdefault(c, Chars(((c, c),))))
        self.at += 1
        return items

    def _char_class(self) -> Chars:
        start = self.at
        self.at += 1
        negated = self.text.startswith("^", self.at)
        self.at += negated
        ranges = []
        while self.text[self.at : self.at + 1] != "]":
            where = self.at
            low = high = self._character(start, "class")
            if self.text.startswith("-", self.at) and self.text[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                high = self._character(start, "class")
            if high < low:
                self._fail("this range is reversed", where)
            ranges.append((low, high))
        if not ranges:
            self._fail("this class is empty; write a literal `]` as \\]", start)
        self.at += 1
        return Chars(tuple(ranges), negated)

    def _character(self, start: int, kind: str) -> int:
        """Parse one character or escape of a literal or class that began at *start*."""
        if self.at >= len(self.text):
            end = '"' if kind == "string" else "]"
            self._fail(f"this {kind} is not closed; add `{end}`", start)
        where, c = self.at, self.text[self.at]
        self.at += 1
        if c != "\\":
            return ord(c)
        escape = self.text[self.at : self.at + 1]
        self.at += 1
        if escape in _HEX_LENGTH:
            length = _HEX_LENGTH[escape]
            digits = _HEX.match(self.text, self.at, self.at + length)
            assert digits is not None
            if len(digits.group()) < length:
                self._fail(f"\\{escape} takes {length} hexadecimal digits", where)
            self.at += length
            value = int(digits.group(), 16)
            if value > _LAST_CHARACTER:
                self._fail(f"U+{value:X} is above U+10FFFF", where)
            return value
        if escape not in _ESCAPES:
            known = r"\n \r \t \\ \" \[ \] \- \x41 \u00e9 \U0001F600"
            self._fail(f"unknown escape \\{escape}; the escapes are {known}", where)
        return _ESCAPES[escape]

    def _name(self, wanted: str) -> str:
        name = _NAME.match(self.text, self.at)
        if name is None:
            c = self.text[self.at]
            hint = (
                "; move it to the end of the line before, or put the rule in ( )"
                if c == "|"
                else ""
            )
            self._fail(f"expected {wanted}, got {c!r}{hint}")
        self.at = name.end()
        return name.group()

    def _index(self, name: str, where: int) -> int:
        if name not in self._referenced:
            self._referenced[name] = self._new(Rule(name, where)), where
        return self._referenced[name][0]

    def _new(self, rule: Rule) -> int:
        self.rules.append(rule)
        return len(self.rules) - 1

    def _skip(self, blank: re.Pattern[str]) -> None:
        match = blank.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        raise explain(self.text, self.at if at is None else at, what)
