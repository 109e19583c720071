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

from ..scanner import Emit, Parser, Scanner, is_json, quoted
from .syntax import Schema, is_string, subschema

__all__ = ["ValueReader", "scalar"]

_KEY = re.compile(r"[^\s:=,{}\[\]()\"'<>]*")
_KEYWORD = re.compile(r"[\w.-]+\s*=(?!=)")
_KEYWORD_START = re.compile(r"[\w.-]*\s*=?")
_WORD = re.compile(r"[\w.+:/-]*")
_BARE = re.compile(r"[^,{}\[\]()<\"]*")
_NESTING = {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}
_PLAIN = {quote: re.compile(rf"[^\\{quote}]*") for quote in "'\""}
_PREFIX = re.compile(r"([rRbBuUfF]{1,2})['\"]")
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?")
_CONSTANTS = {"true": "true", "false": "false", "null": "null", "none": "null",
              "nan": "null", "infinity": "null", "-infinity": "null"}  # fmt: skip
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
            "\\": "\\", "'": "'", '"': '"', "\n": ""}  # fmt: skip
_CODES = {"x": (4, 16), "U": (10, 16), **dict.fromkeys("01234567", (4, 8))}
_MAX_DEPTH = 200  # levels of objects and lists, as in `ArgumentsWriter`


def scalar(text: str, schema: Schema) -> str:
    """Return a word that was written without quotes as JSON.

    Where the schema has only strings it is one, whatever it looks like, unless it is null.
    """
    if text in ("null", "None") and text not in (schema.get("enum") or ()):
        return "null"
    if is_string(schema):
        return json.dumps(text, ensure_ascii=False)
    constant = _CONSTANTS.get(text.lower())
    if constant or is_json(text):
        return constant or text
    if _NUMBER.fullmatch(text):
        for convert in (int, float):
            try:
                number = convert(text)
            except ValueError:
                continue
            if math.isfinite(number):
                return str(number)
    return json.dumps(text, ensure_ascii=False)


@dataclass
class _Open:
    """A container that is being read.

    Attributes:
        kind: `object`, `list`, or `call`: the arguments of a call, in parentheses.
        closer: The bracket that closes it.
        schema: Its schema.
        head: What precedes its next member and is not written yet.
        names: The names of the arguments of a call that may be given by position.
    """

    kind: str
    closer: str
    schema: Schema
    head: str
    names: list[str] = field(default_factory=list)


class _Lookahead(NamedTuple):
    """What text must follow; `start` matches every beginning of what `whole` matches."""

    whole: re.Pattern[str]
    start: re.Pattern[str]


class ValueReader:
    """Reads values and writes them as JSON, as they arrive.

    What it writes is JSON up to where the text breaks off; `ArgumentsWriter` completes it. A quote
    ends a string only where a string can end: before a comma, a colon or a bracket. So a quote
    that the model forgot to escape is part of the string.

    Attributes:
        unread: The text of a key without a value, at which it stopped.

    Args:
        scanner: At the position of the value.
        emit: Receives the JSON text.
        root: The schema that holds the definitions.
        ends: The markers after a call, which end a word and may follow a string.
        quote: A token that stands around strings, besides the quotes of JSON and Python.
        is_python: Whether the notation is Python's: with tuples, sets, prefixes and all escapes,
            and without words of several words.
    """

    def __init__(
        self,
        scanner: Scanner,
        emit: Emit,
        root: Schema,
        *,
        ends: Sequence[str] = (),
        quote: str = "",
        is_python: bool = False,
    ) -> None:
        self._scanner = scanner
        self._emit = emit
        self._root = root
        self._ends = tuple(filter(None, ends))
        self._quote = quote
        self._is_python = is_python
        self._open: list[_Open] = []
        self.unread = ""

    def value(self, schema: Schema) -> Parser[bool]:
        """Read a value of *schema*; return whether it ended."""
        if not (yield from self._value(schema)):
            return False
        return not self._open or (yield from self._members())

    def call(self, schema: Schema, names: Sequence[str], closer: str = ")") -> Parser[bool]:
        """Read the arguments of a call up to its closing bracket, written as an object.

        Args:
            schema: The schema of the arguments.
            names: The names of the arguments, for those that are given by position.
            closer: The closing bracket.
        """
        self._open.append(_Open("call", closer, schema, "{", list(names)))
        return (yield from self._members())

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
        if top.kind == "call" and not (yield from self._ahead(_KEYWORDS)):
            if not top.names:
                return False
            name = top.names.pop(0)
            return (yield from self._item(top, f"{json.dumps(name)}: ", name))
        parts: list[str] = []
        quote = yield from self._opening_quote()
        if quote:
            yield from self._string(quote, parts.append, "key")
        else:
            parts.append(quoted((yield from scanner.match(_KEY))))
        key = f'"{"".join(parts)}"'
        space = yield from scanner.space()
        if (yield from scanner.literal(":", "=")):
            name = json.loads(key) if is_json(key) else ""
            space += ":" + (yield from scanner.space())
            return bool(quote or name) and (yield from self._item(top, key + space, name))
        if quote and self._is_python and "{" in top.head:
            # A set.
            top.kind, top.head = "list", top.head.replace("{", "[")
            self._emit(top.head + key)
            top.head = space
            return True
        self.unread = (key if quote else key[1:-1]) + space
        return False

    def _item(self, top: _Open, key: str, name: str | None) -> Parser[bool]:
        """Read a value after its key."""
        schema = subschema(top.schema, name, self._root)
        self._emit(top.head + key)
        top.head = ""
        if name in top.names:
            top.names.remove(name)
        return (yield from self._value(schema))

    def _value(self, schema: Schema) -> Parser[bool]:
        """Read a value without parts, or the opening bracket of another."""
        scanner = self._scanner
        opener = yield from scanner.literal("{", "[", *("(" * self._is_python))
        if opener:
            is_object = opener == "{"
            self._open.append(
                _Open(
                    "object" if is_object else "list",
                    {"{": "}", "[": "]", "(": ")"}[opener],
                    schema,
                    "{" if is_object else "[",
                )
            )
            return len(self._open) <= _MAX_DEPTH
        prefix = _PREFIX.match((yield from scanner.available(3))) if self._is_python else None
        if prefix:
            scanner.take(len(prefix[1]))
        quote = yield from self._opening_quote()
        if not quote:
            return (yield from self._word(schema))
        self._emit('"')
        ended = True
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
            if self._quote:
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

        while True:
            if quote == self._quote:
                if not (yield from scanner.until([quote], write)):
                    return False
            else:
                if not (yield from scanner.emit_match(_PLAIN[quote[0]], write)):
                    return False
                if (yield from scanner.available(1)) == "\\":
                    emit((yield from self._escape(quote, is_raw)))
                    continue
                if not (yield from scanner.literal(quote)):
                    write(scanner.take(1))
                    continue
            if len(quote) == 3 and quote != self._quote:
                return True
            if (yield from self._ahead(_after_string(kind, self._ends, self._quote))):
                return True
            write(quote)

    def _escape(self, quote: str, is_raw: bool) -> Parser[str]:
        """Read an escape sequence; return it as JSON has it, or as it is if it is not one."""
        scanner = self._scanner
        text = yield from scanner.available(2)
        if len(text) < 2 or text[1] == "u":
            return scanner.take(2)
        if is_raw:
            return quoted(scanner.take(2))
        if not self._is_python and quote == '"':
            scanner.take(2)
            return "'" if text[1] == "'" else text
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

    def _word(self, schema: Schema) -> Parser[bool]:
        """Read a value without quotes."""
        scanner = self._scanner
        if self._is_python:
            text = yield from scanner.match(_WORD)
            self._emit(scalar(text, schema) if text else "")
            return bool(text)
        comma = _after_string(self._open[-1].kind if self._open else "value", self._ends, "")
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
            self._emit(scalar(text, schema))
        # A member without a value is dropped.
        return bool(text) or (yield from scanner.available(1)) in (",", "}", "]", ")")

    def _ahead(self, lookahead: _Lookahead) -> Parser[bool]:
        """Return whether the text follows, or can still follow at the end of the answer."""
        length = 1
        while True:
            text = yield from self._scanner.available(length)
            if lookahead.whole.match(text):
                return True
            if not lookahead.start.fullmatch(text):
                return False
            if len(text) < length:
                return True
            length += 1


def _beginnings(texts: Sequence[str]) -> str:
    """Return a pattern for the beginnings of *texts*."""
    return "|".join(re.escape(text[:end]) for text in texts for end in range(1, len(text) + 1))


@lru_cache(maxsize=64)
def _ending(ends: tuple[str, ...]) -> _Lookahead:
    whole = "|".join(map(re.escape, ends))
    return _Lookahead(re.compile(whole), re.compile(_beginnings(ends)))


@lru_cache(maxsize=256)
def _after_string(kind: str, ends: tuple[str, ...], quote: str) -> _Lookahead:
    """Return what may follow a string or a word in a container."""
    quotes = "".join(("[\"']", *(f"|{re.escape(q)}" for q in filter(None, [quote]))))
    end = "|".join(map(re.escape, ends)) or "(?!)"
    ending = _beginnings(ends) or "(?!)"
    if kind == "key":
        whole, start = r"[:=,}]", ""
    elif kind == "call":
        after = rf"{quotes}|[\[{{(\d)-]|[\w.-]+\s*=(?!=)|(?:True|False|None)\b|[rbuf]+[\"']"
        whole = rf",\s*(?:{after})|\)[ \t]*(?:[,\])}};\n]|{end})"
        start = rf",\s*[\w.-]*\s*=?|\)[ \t]*(?:{ending})?"
    elif kind == "object":
        whole, start = rf"[}}\]]|,\s*(?:[}}\]]|{quotes}|[\w.-]+\s*[:=])", r",\s*[\w.-]*\s*"
    else:
        whole, start = r"[,}\])]", ""
    whole = rf"\s*(?:{whole}|{quotes}|{end})"
    return _Lookahead(re.compile(whole), re.compile(rf"\s*(?:{start}|{ending})?"))


_KEYWORDS = _Lookahead(_KEYWORD, _KEYWORD_START)
_QUOTES = _Lookahead(re.compile(r"\s*[\"']"), re.compile(r"\s*"))
