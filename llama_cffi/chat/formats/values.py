"""Values as models write them, in JSON or nearly so, read as JSON.

Models that were trained on one notation write others too: Python's literals and quotes, bare keys
and words, `=` for `:`. One reader takes them all, so that every format is as tolerant as the next.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from ...schema import ANY_TYPE, types_within
from ..scanner import Emit, Parser, Scanner, is_json, loads, quoted
from .syntax import Schema
from .unquoted import is_text

__all__ = ["ValueReader", "normalised", "scalar"]

_KEY = re.compile(r"[^\s:=,{}\[\]()\"'<>]*")
_KEYWORD = re.compile(r"[\w.-]+\s*=(?!=)")
_KEYWORD_START = re.compile(r"[\w.-]*\s*=?")
_WORD = re.compile(r"[\w.+:-]*")
_NAME = re.compile(r"-?[\w.:-]+")  # in Python: a name that stands for a string, a date, a number
_BARE = re.compile(r"[^,{}\[\]()<\"]*")
_NESTING = {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}
_PREFIX = re.compile(r"([rRbBuUfF]{1,2})['\"]")
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?")
_BASED = re.compile(r"[+-]?0([xX][0-9a-fA-F]{1,99}|[oO][0-7]{1,99}|[bB][01]{1,99})")
_CONSTANTS = {"true": "true", "false": "false", "null": "null", "none": "null",
              "nan": "null", "infinity": "null", "-infinity": "null"}  # fmt: skip
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
            "\\": "\\", "'": "'", '"': '"', "\n": ""}  # fmt: skip
_CODES = {"x": (4, 16), "U": (10, 16), **dict.fromkeys("01234567", (4, 8))}
_MAX_AHEAD = 500  # characters
_MAX_DEPTH = 200  # levels of objects and lists, as in `ArgumentsWriter`


def scalar(text: str, types: frozenset[str] = ANY_TYPE) -> str:
    """Return a word that was written without quotes as JSON.

    Where only text is allowed it is text, whatever it looks like, unless it is null.

    Args:
        text: The word.
        types: The JSON types that its schema allows; see `allowed_types`.
    """
    if text in ("null", "None"):
        return "null"
    constant = _CONSTANTS.get(text.lower())
    if is_text(types):
        return f'"{quoted(text)}"'
    if constant or is_json(text):
        return constant or text
    if _BASED.fullmatch(text):
        return str(int(text, 0))
    if _NUMBER.fullmatch(text):
        for convert in (int, float):
            try:
                number = convert(text)
            except ValueError:
                continue
            if math.isfinite(number):
                return str(number)
    return f'"{quoted(text)}"'


def normalised(text: str) -> str | None:
    """Return a value that was written in nearly JSON as JSON; None if *text* is not one value."""
    scanner = Scanner()
    scanner.feed(text.strip())
    scanner.is_final = True
    parts: list[str] = []
    ended: list[bool] = []

    def read() -> Parser[None]:
        ended.append((yield from ValueReader(scanner, parts.append).value()))
        ended.append(not (yield from scanner.available(1)))

    next(read(), None)
    return "".join(parts) if all(ended) else None


@dataclass
class _Open:
    """A container that is being read.

    Attributes:
        kind: `object`, `list`, or `call`: the arguments of a call, in parentheses.
        closer: The bracket that closes it.
        closers: The brackets that close it and the containers around it, each once.
        head: What precedes its next member and is not written yet.
        name: The name of the member that is being read; None: an item.
        names: The names of the arguments of a call that may be given by position.
    """

    kind: str
    closer: str
    closers: str
    head: str
    name: str | None = None
    names: list[str] = field(default_factory=list)


class _Lookahead(NamedTuple):
    """What text must follow.

    Attributes:
        whole: Matches the text.
        start: Matches every beginning of it.
        is_end: Whether the end of the answer can stand for the rest of it.
    """

    whole: re.Pattern[str]
    start: re.Pattern[str]
    is_end: bool = True


class ValueReader:
    """Reads values and writes them as JSON, as they arrive.

    What it writes is JSON up to where the text breaks off; `ArgumentsWriter` completes it. A quote
    ends a string only where a string can end: before a comma, a colon or a bracket. So a quote
    that the model forgot to escape is part of the string.

    Args:
        scanner: At the position of the value.
        emit: Receives the JSON text.
        schema: The JSON schema of the value; None: unknown.
        begin: What begins a call. In a string, a whole call is text.
        ends: The markers after a call, which end a word and may follow a string.
        quote: A token that stands around strings, besides the quotes of JSON and Python.
        is_python: Whether the notation is Python's: with tuples, sets, prefixes and all escapes,
            and without words of several words.
    """

    def __init__(
        self,
        scanner: Scanner,
        emit: Emit,
        schema: Schema | None = None,
        *,
        begin: str = "",
        ends: Sequence[str] = (),
        quote: str = "",
        is_python: bool = False,
    ) -> None:
        self._scanner = scanner
        self._emit = emit
        self._schema = schema
        self._begins = tuple(filter(None, [begin]))
        self._ends = tuple(filter(None, ends))
        self._quote = quote
        self._is_python = is_python
        self._open: list[_Open] = []

    def value(self) -> Parser[bool]:
        """Read a value; return whether it ended."""
        if not (yield from self._value()):
            return False
        return not self._open or (yield from self._members())

    def call(self, names: Sequence[str] = (), closer: str = ")") -> Parser[bool]:
        """Read the arguments of a call up to its closing bracket, written as an object.

        Args:
            names: The names of the arguments, for those that are given by position.
            closer: The closing bracket.
        """
        self._begin("call" if closer == ")" else "object", closer, list(names))
        return (yield from self._members())

    def _begin(self, kind: str, closer: str, names: Sequence[str] = ()) -> None:
        bracket = "[" if kind == "list" else "{"
        if not self._is_python:  # else it may be a set
            self._emit(bracket)
        closers = self._open[-1].closers if self._open else ""
        closers += closer * (closer not in closers)
        head = bracket * self._is_python
        self._open.append(_Open(kind, closer, closers, head, names=list(names)))

    def _members(self) -> Parser[bool]:
        """Read the members or items of what is open; return whether all of it was closed."""
        scanner = self._scanner
        while True:
            depth, top = len(self._open), self._open[-1]
            top.head += yield from scanner.space()
            if (yield from scanner.literal(top.closer)):
                self._open.pop()
                head = top.head.replace(",", "")  # a trailing comma
                self._emit(head + ("]" if top.kind == "list" else "}"))
                if not self._open:
                    return True
            elif not (yield from self._member(top)):
                return False
            if len(self._open) > depth:
                continue
            top = self._open[-1]
            top.head += yield from scanner.space()
            if (yield from scanner.literal(",")) or not self._is_python:
                top.head += ","  # some models omit it
            elif (yield from scanner.available(1)) != top.closer:
                return False

    def _member(self, top: _Open) -> Parser[bool]:
        """Read one member or item, or its beginning; return whether it is one."""
        scanner = self._scanner
        if top.kind == "list":
            return (yield from self._item(top, "", None))
        is_named = top.kind != "call" or not self._is_python or (yield from self._ahead(_KEYWORDS))
        if not is_named:
            if not top.names:
                return False
            name = top.names.pop(0)
            return (yield from self._item(top, f"{json.dumps(name)}: ", name))
        key = yield from scanner.attempt(self._key())
        if key:
            return (yield from self._item(top, key, str(loads(key.rpartition(":")[0]))))
        if key is None and self._is_python and "{" in top.head:  # a set
            top.kind, top.head = "list", top.head.replace("{", "[")
            return (yield from self._item(top, "", None))
        return False

    def _key(self) -> Parser[str | None]:
        """Return a key with its colon, as JSON; "" if the answer ends, None if there is none."""
        scanner = self._scanner
        parts: list[str] = []
        quote = yield from self._opening_quote()
        if quote:
            yield from self._string(quote, parts.append, "key")
        else:
            parts.append(quoted((yield from scanner.match(_KEY))))
        space = yield from scanner.space()
        has_colon = yield from scanner.literal(":", "=")
        if not has_colon or not (quote or parts[0]):
            return None if (yield from scanner.available(1)) else ""
        return f'"{"".join(parts)}"{space}:' + (yield from scanner.space())

    def _item(self, top: _Open, key: str, name: str | None) -> Parser[bool]:
        """Read a value after its key."""
        self._emit(top.head + key)
        top.head, top.name = "", name
        if name in top.names:
            top.names.remove(name)
        return (yield from self._value())

    def _value(self) -> Parser[bool]:
        """Read a value without parts, or the opening bracket of another."""
        scanner = self._scanner
        opener = yield from scanner.literal("{", "[", *("(" * self._is_python))
        if opener:
            kind = "object" if opener == "{" else "list"
            self._begin(kind, {"{": "}", "[": "]", "(": ")"}[opener])
            return len(self._open) <= _MAX_DEPTH
        prefix = _PREFIX.match((yield from scanner.available(3))) if self._is_python else None
        if prefix:
            scanner.take(len(prefix[1]))
        quote = yield from self._opening_quote()
        if not quote:
            return (yield from self._word())
        self._emit('"')
        ended = True
        is_token = quote == self._quote
        while quote and ended:
            is_raw = bool(prefix and "r" in prefix[1].lower())
            kind = self._open[-1].kind if self._open else "value"
            ended = yield from self._string(quote, self._emit, kind, is_raw)
            # Python joins adjacent strings.
            joins = self._is_python and ended and (yield from self._ahead(_QUOTES))
            if joins:
                yield from scanner.space()
            quote = (yield from self._opening_quote()) if joins else None
        if ended:
            self._emit('"')
            if self._quote and not is_token:
                yield from scanner.literal(self._quote)  # one too many
        return ended

    def _opening_quote(self) -> Parser[str | None]:
        triple = ('"""', "'''") if self._is_python else ()
        return (yield from self._scanner.literal(*filter(None, (self._quote, *triple, '"', "'"))))

    def _string(self, quote: str, emit: Emit, kind: str, is_raw: bool = False) -> Parser[bool]:
        """Read a string after its quote, without writing quotes; return whether it ended."""
        scanner = self._scanner

        def write(text: str) -> None:
            emit(quoted(text))

        others = (",",) if quote == self._quote else ("\\",)
        is_nested = False  # in a whole call
        while True:
            marks = self._ends[:1] if is_nested else self._begins
            stop = yield from scanner.before((quote, *others, *marks), write)
            if stop is None:
                return False
            if stop == "\\":
                emit((yield from self._escape(quote, is_raw)))
                continue
            missing = _missing_quote(quote, self._names())
            if stop == "," and not is_nested and (yield from self._ahead(missing)):
                return True
            if is_nested or stop != quote:
                is_nested ^= stop in marks
                write(scanner.take(len(stop)))
                continue
            scanner.take(len(quote))
            if kind == "key" or (len(quote) == 3 and quote != self._quote):
                return True
            # Twice, and then the string can end: the first is part of it.
            if not (yield from self._ahead(self._doubled(kind, quote))) and (
                yield from self._ahead(self._after(kind, quote))
            ):
                return True
            write(quote)

    def _escape(self, quote: str, is_raw: bool) -> Parser[str]:
        """Read an escape sequence; return it as JSON has it, or as it is if it is not one."""
        scanner = self._scanner
        text = yield from scanner.available(2)
        if is_raw:
            return quoted(scanner.take(2))
        is_json = not self._is_python and quote == '"' and text != "\\'"
        if is_json or len(text) < 2 or text[1] == "u":
            return (yield from scanner.escape())
        if text[1] in _ESCAPES:
            scanner.take(2)
            return quoted(_ESCAPES[text[1]])
        if text[1] in _CODES:
            length, base = _CODES[text[1]]
            found = yield from scanner.available(length)
            digits = re.compile("[0-7]+" if base == 8 else "[0-9a-fA-F]+")
            code = digits.match(found, 1 if base == 8 else 2)
            if code and (base == 8 or code.end() == length) and int(code[0], base) <= 0x10FFFF:
                scanner.take(code.end())
                return quoted(chr(int(code[0], base)))
        if text[1] == "N":
            found = yield from scanner.available(3)
            if found == r"\N{":
                scanner.take(3)
                name, _ = yield from scanner.text_until("}")
                try:
                    return quoted(unicodedata.lookup(name))
                except KeyError:
                    return quoted(rf"\N{{{name}}}")
        return quoted(scanner.take(1))

    def _word(self) -> Parser[bool]:
        """Read a value without quotes."""
        scanner = self._scanner
        if self._is_python:
            text = yield from scanner.match(_WORD)
            is_literal = bool(_NAME.fullmatch(text) or _NUMBER.fullmatch(text))
            self._emit(scalar(text, self._types()) if is_literal else "")
            return is_literal
        comma = self._after(self._open[-1].kind if self._open else "value", self._quote)
        parts: list[str] = []
        depth = 0
        while (yield from scanner.emit_match(_BARE, parts.append)):
            char = yield from scanner.available(1)
            depth += _NESTING.get(char, 0)
            if depth < 0 or (char == '"' and not self._quote):
                break
            if char == "," and (yield from self._ahead(comma)):
                break
            if char == "<":
                if self._ends and (yield from self._ahead(_ending(self._ends))):
                    break
                if self._quote and (yield from scanner.literal(self._quote)):
                    break
            parts.append(scanner.take(1))
        text = "".join(parts).strip()
        if text:
            self._emit(scalar(text, self._types()))
        # A member without a value is dropped.
        following = (",", *(container.closer for container in self._open[-1:]))
        return bool(text) or (yield from scanner.available(1)) in following

    def _after(self, kind: str, quote: str = "") -> _Lookahead:
        """Return what may follow a word, or a string in *quote*."""
        # After a string in other quotes, the token is one too many.
        ends = self._ends if quote == self._quote else (*self._ends, *filter(None, [self._quote]))
        closers = self._open[-1].closers if self._open else ")]}"
        return _after_string(kind, closers, ends, self._quote, self._names())

    def _doubled(self, kind: str, quote: str) -> _Lookahead:
        whole, start, _ = self._after(kind, quote)
        mark = re.escape(quote)
        return _Lookahead(
            re.compile(rf"{mark}(?!\s*[\"']){whole.pattern}", re.DOTALL),
            re.compile(rf"(?:{_beginnings([quote])})|{mark}{start.pattern}", re.DOTALL),
            is_end=False,
        )

    def _names(self) -> tuple[str, ...]:
        """Return the names that a key can have here; empty: any."""
        known = (self._schema or {}).get("properties") if len(self._open) == 1 else None
        return tuple(known or ())

    def _types(self) -> frozenset[str]:
        """Return the types that the schema allows here."""
        return types_within(self._schema, [container.name for container in self._open])

    def _ahead(self, lookahead: _Lookahead) -> Parser[bool]:
        """Return whether the text follows, or its beginning at the end of the answer."""
        length = 1
        while True:
            text = yield from self._scanner.available(length)
            if lookahead.whole.match(text):
                return True
            if not lookahead.start.fullmatch(text):
                return False
            if len(text) < length or length == _MAX_AHEAD:
                return lookahead.is_end
            length += 1


def _beginnings(texts: Sequence[str]) -> str:
    """Return a pattern for the beginnings of *texts*."""
    return "|".join(re.escape(text[:end]) for text in texts for end in range(1, len(text) + 1))


@lru_cache(maxsize=64)
def _ending(ends: tuple[str, ...]) -> _Lookahead:
    whole = "|".join(map(re.escape, ends))
    return _Lookahead(re.compile(whole), re.compile(_beginnings(ends)))


@lru_cache(maxsize=64)
def _missing_quote(quote: str, names: tuple[str, ...]) -> _Lookahead:
    """Return a key and a quote that can only open its value: the one before it is missing."""
    return _Lookahead(
        re.compile(rf",\s*{_any_of(names)}\s*[:=]\s*{re.escape(quote)}(?!\s*[,}}\]]|\s*$)"),
        re.compile(rf",\s*[\w.-]*\s*[:=]?\s*(?:{_beginnings([quote])})?\s*"),
        is_end=False,
    )


@lru_cache(maxsize=256)
def _after_string(
    kind: str, closers: str, ends: tuple[str, ...], quote: str, names: tuple[str, ...]
) -> _Lookahead:
    """Return what may follow a string or a word.

    Args:
        kind: The kind of container.
        closers: The brackets that may close it, or the containers around it.
        ends: The markers that may follow.
        quote: The token around strings, if there is one; keys may then follow without a comma.
        names: The names of such keys; empty: any.
    """
    end = "|".join(map(re.escape, ends)) or "(?!)"
    ending = _beginnings(ends) or "(?!)"
    if quote:  # a marker before a quote is part of the string
        begun = _beginnings([quote])
        end = rf"(?:{end})\s*(?!(?:{begun})$)(?!{re.escape(quote)})\S"
        ending = rf"(?:{ending})\s*(?:{begun})?"
    closer = f"[{re.escape(closers)}]"
    if kind == "call":
        after = r"[\"'\[{(\d)-]|[\w.-]+\s*[:=](?!=)|(?:True|False|None)\b|[rbuf]+[\"']"
        whole = rf",\s*(?:{after})|\)[ \t]*(?:[,\]}};\n]|{end})|[\"']"
        start = rf",\s*(?:[\w.-]*\s*[:=]?)|\)[ \t]*(?:{ending})?"
    elif kind == "object":
        key = "|".join([r"[\w.-]+", *map(_quoted, filter(None, ['"', "'", quote]))])
        cut = "|".join([r"[\w.-]*\s*", *map(_cut, filter(None, ['"', "'", quote]))])
        after = rf"(?:{key})\s*(?:[:=]|{end})"
        whole = rf"{closer}|,\s*(?:{closer}|{after})"
        start = rf"(?:,\s*)?(?:{cut})(?:{ending})?"
        # The comma may be missing.
        whole += f"|{_quoted(chr(34))}" + r"\s*:"
        if quote:
            whole += rf"|{_any_of(names)}\s*[:=]"
    else:
        whole, start = rf",|{closer}|[\"']", ""
    return _Lookahead(
        re.compile(rf"\s*(?:{whole}|{end})", re.DOTALL),
        re.compile(rf"\s*(?:{start}|{ending})?", re.DOTALL),
    )


def _any_of(names: tuple[str, ...]) -> str:
    return rf"(?:{'|'.join(map(re.escape, names))})" if names else r"[\w.-]+"


def _quoted(quote: str) -> str:
    """Return a pattern for a string."""
    if len(quote) > 1:
        return rf"{re.escape(quote)}[\w. -]*{re.escape(quote)}"
    return rf"{quote}(?:[^{quote}\\]|\\.)*{quote}"


def _cut(quote: str) -> str:
    """Return a pattern for the beginnings of a string."""
    if len(quote) > 1:
        begun = _beginnings([quote])
        return rf"(?:{begun})|{re.escape(quote)}[\w. -]*(?:{begun})?\s*"
    return rf"{quote}(?:[^{quote}\\]|\\.)*(?:\\|{quote}\s*)?"


_KEYWORDS = _Lookahead(_KEYWORD, _KEYWORD_START)
_QUOTES = _Lookahead(re.compile(r"\s*[\"']"), re.compile(r"\s*"))
