"""GBNF, read in Python: llama.cpp's own parser recurses on its input and prints its errors.

The language is that of the newest builds, on every build (such as an escaped `-`),
without references to tokens (`<[7]>`), which only those know. What is read here goes to C as
plain rules (`gbnf.normal`), so that C's parser sees no text of the caller's.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import NoReturn

from ..errors import GrammarError, ValidationError

__all__ = ["MAX_GRAMMAR", "MAX_NESTING", "MAX_REPEAT", "Chars", "Item", "Rule", "explain", "parse"]

MAX_GRAMMAR = 2**20  # characters of the text
MAX_NESTING = 200  # parentheses in parentheses
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
    """One character out of the ranges (code points, inclusive), or out of all others."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False


Item = Chars | int  # a character, or the index of a rule


@dataclass
class Rule:
    """Alternatives of sequences, or one item repeated.

    Attributes:
        name: As in the text; a group has the name of the rule around it.
        at: Offset in the text.
        alternatives: Of a rule that is no repetition.
        repeat: Item, fewest times and most times (None = any number).
    """

    name: str
    at: int
    alternatives: list[list[Item]] = field(default_factory=lambda: [[]])
    repeat: tuple[Item, int, int | None] | None = None


def parse(text: str, root: str = "root") -> tuple[list[Rule], int]:
    """Return the rules of a grammar and the index of the one named *root*.

    Raises:
        GrammarError: With line, column, the line itself and what to do.
        ValidationError: The text is no str.
    """
    if not isinstance(text, str) or not isinstance(root, str):
        wrong = text if not isinstance(text, str) else root
        raise ValidationError(f"a grammar and its root are str, not {type(wrong).__name__}")
    if len(text) > MAX_GRAMMAR:
        raise GrammarError(f"the grammar has {len(text)} characters; {MAX_GRAMMAR} is the limit")
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
    """Build the error for offset *at*: line, column, the line, and a caret below it."""
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
    """A rule or group that is being read."""

    def __init__(self, index: int, rule: Rule) -> None:
        self.index, self.rule = index, rule
        self.last = 0  # where the item that a repetition applies to begins

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
        self._referenced: dict[str, tuple[int, int]] = {}  # name -> (rule, where first)

    def run(self) -> None:
        """Read all rules."""
        if bad := re.search("[\0\ud800-\udfff]", self.text):
            self._fail(f"{bad.group()!r} cannot stand in a grammar; write an escape", bad.start())
        self._skip(_BLANK_LINES)
        while self.at < len(self.text):
            self._rule()
        for name, (_, where) in self._referenced.items():
            if name not in self.defined:
                close = difflib.get_close_matches(name, self.defined, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"add `{name} ::= ...`"
                self._fail(f"there is no rule {name!r}; {hint}", where)

    def _rule(self) -> None:
        start, name = self.at, self._name("the name of a rule (letters, digits, -)")
        if name in self.defined:
            first = self.rules[self.defined[name]].at
            line = len(re.findall(r"\r\n|\r|\n", self.text[:first])) + 1
            self._fail(f"a second rule {name!r} (the first is on line {line}); rename one", start)
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
                "references to tokens are for some builds only; write the token's text as a "
                'literal: "<think>"'
            )
        if c == "_":
            self._fail("`_` cannot stand in a name; use `-`")
        if c not in "\r\n":
            self._fail(f"unexpected {c!r}; literals stand in double quotes, a rule ends its line")

    def _body(self, index: int) -> None:
        """Read alternatives, groups in groups on an explicit stack."""
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
                    self._fail(f"more than {MAX_NESTING} parentheses in each other; name a part")
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
                    self._fail("a rule begins on its own line, and no line before ends with `|`")
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
            self._fail("there is nothing before this to repeat", where)
        if high is not None and high < low:
            self._fail(f"at most {high} is less than at least {low}", where)
        if max(low, high or 0) > MAX_REPEAT:
            self._fail(f"at most {MAX_REPEAT} repetitions can be counted; use * or +", where)
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
            self._fail("repetitions are {3}, {3,} or {3,5}")
        low, comma, high = counts.groups()
        if max(len(low), len(high or "")) > len(str(MAX_REPEAT)):
            self._fail(f"at most {MAX_REPEAT} repetitions can be counted; use * or +")
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
                self._fail(f"U+{c:04X} is half a character; write \\U0001F600 for one beyond FFFF")
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
                self._fail("this range is the wrong way round", where)
            ranges.append((low, high))
        if not ranges:
            self._fail("this class has no characters; a `]` in it is written \\]", start)
        self.at += 1
        return Chars(tuple(ranges), negated)

    def _character(self, start: int, kind: str) -> int:
        """Read one character or escape of a literal or class that began at *start*."""
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
                self._fail(f"U+{value:X} is beyond U+10FFFF", where)
            return value
        if escape not in _ESCAPES:
            known = r"\n \r \t \\ \" \[ \] \- \x41 \u00e9 \U0001F600"
            self._fail(f"unknown escape \\{escape}; there are {known}", where)
        return _ESCAPES[escape]

    def _name(self, wanted: str) -> str:
        name = _NAME.match(self.text, self.at)
        if name is None:
            c = self.text[self.at]
            hint = "; end the line before with it, or put the rule in ( )" if c == "|" else ""
            self._fail(f"{wanted} is expected here, not {c!r}{hint}")
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
