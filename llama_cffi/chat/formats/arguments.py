"""The arguments of a call: a JSON object, written as it arrives, whatever the model writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ...schema import types_within
from ..scanner import Parser, Scanner, is_json, loads

__all__ = ["ArgumentsWriter"]

_SCALAR = re.compile(r'[^\s,:{}\[\]"]*')
_NOT_INTEGER = re.compile(r"-?\d+[.eE].*")
_MAX_DIGITS = 30  # of an integer that is written as a decimal number
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_JUNK = re.compile(r'[^,{}\[\]"]*')
_CLOSERS = {"{": "}", "[": "]"}
_MAX_DEPTH = 200  # levels of objects and lists; json.loads fails at about 1,000


@dataclass
class _Open:
    """An object or a list that is being written.

    Attributes:
        closer: The bracket that will close it.
        separator: What precedes its next item.
        expects_item: Whether an item comes next, and not a comma.
    """

    closer: str
    separator: str = ""
    expects_item: bool = True


class ArgumentsWriter:
    """Turns the text that a model writes as arguments into a JSON object, as it arrives.

    The rule for all formats: what was written needs only quotes and brackets to be a JSON object,
    and `close` adds them. A key is written with the beginning of its value. A member or an item
    that is not JSON is dropped, with what follows it up to the next comma or bracket; the others
    stay. So the arguments of every call are valid JSON, wherever the model stops, and the deltas
    that were sent before remain right.

    Numbers such as ``140.0`` become integers where *schema* allows no others, and Python's
    ``True``, ``False`` and ``None`` become JSON's.

    Args:
        schema: The JSON schema of the arguments; None: unknown.

    Attributes:
        is_complete: Whether the text was a whole object, and only white space and trailing commas
            were dropped.
    """

    def __init__(self, schema: Mapping[str, Any] | None = None) -> None:
        self.is_complete = True
        self._schema = schema
        self._path: list[str | None] = []  # to the value that is written
        self._scanner = Scanner()
        self._written: list[str] = []
        self._open: list[_Open] = []
        self._n_open = {"}": 0, "]": 0}  # by the brackets that will close them
        self._parser = self._whole()

    def push(self, text: str) -> str:
        """Add text; return the JSON text that is certain now."""
        self._scanner.feed(text)
        return self._advance()

    def close(self) -> str:
        """End the text; return what completes the object."""
        self._scanner.is_final = True
        return self._advance()

    def _advance(self) -> str:
        next(self._parser, None)
        written = "".join(self._written)
        self._written.clear()
        return written

    def _whole(self) -> Parser[None]:
        yield from self._scanner.space()
        if (yield from self._scanner.literal("{")):
            self._begin("{")
            while self._open:
                yield from self._next(self._open[-1])
        else:
            self._written.append("{}")
            self.is_complete = False
        yield from self._scanner.space()
        if (yield from self._scanner.available(1)):
            self.is_complete = False

    def _begin(self, head: str) -> None:
        """Begin an object or a list; *head* ends with its bracket, which was consumed."""
        self._written.append(head)
        self._open.append(_Open(_CLOSERS[head[-1]]))
        self._n_open[self._open[-1].closer] += 1

    def _next(self, top: _Open) -> Parser[None]:
        """Write the next item of *top*, or a comma, or its end."""
        scanner = self._scanner
        space = yield from scanner.space()
        char = yield from scanner.available(1)
        if not char or self._n_open.get(char):
            self._end(top, space + scanner.take(1) if char == top.closer else "")
        elif not top.expects_item and (yield from scanner.literal(",")):
            top.expects_item = True
        elif top.expects_item and (yield from self._item(top.separator + space, top.closer == "}")):
            top.separator, top.expects_item = ",", False
        else:
            self.is_complete = top.expects_item = False
            yield from self._skip()

    def _end(self, top: _Open, written: str) -> None:
        """Close *top* with what was *written*; empty: the bracket is missing."""
        self._written.append(written or top.closer)
        self.is_complete &= bool(written)
        self._open.pop()
        self._n_open[top.closer] -= 1
        if self._open:
            self._path.pop()

    def _item(self, head: str, has_key: bool) -> Parser[bool]:
        """Write *head*, a key and a value or its bracket; without any, return False."""
        scanner = self._scanner
        name = None
        if has_key:
            key = (yield from scanner.json_text()) if (yield from self._follows('"')) else None
            name = loads(key or "")
            if key is None or name is None:
                return False
            head += key + (yield from scanner.space())
            if not (yield from scanner.literal(":")):
                return False
            head += ":" + (yield from scanner.space())
        depth = len(self._open)
        self._path.append(name)
        is_written = yield from self._value(head)
        if len(self._open) == depth:
            self._path.pop()
        return is_written

    def _value(self, head: str) -> Parser[bool]:
        scanner = self._scanner
        if (yield from self._follows('"')):
            self._written.append(head + scanner.take(1))
            if not (yield from scanner.string(self._written.append)):
                self._written.append('"')
                self.is_complete = False
            return True
        if (yield from self._follows("{", "[")):
            if len(self._open) == _MAX_DEPTH:
                return False
            self._begin(head + scanner.take(1))
            return True
        scalar = yield from scanner.match(_SCALAR)
        scalar = _PYTHON.get(scalar, scalar)
        if not is_json(scalar):
            return False
        self._written.append(head + self._as_integer(scalar))
        return True

    def _as_integer(self, scalar: str) -> str:
        if self._schema is None or not _NOT_INTEGER.fullmatch(scalar):
            return scalar
        types = types_within(self._schema, self._path)
        if "integer" not in types or "number" in types:
            return scalar
        number = Decimal(scalar)
        is_integer = number.adjusted() < _MAX_DIGITS and number == int(number)
        return str(int(number)) if is_integer else scalar

    def _follows(self, *characters: str) -> Parser[bool]:
        return (yield from self._scanner.available(1)) in characters

    def _skip(self) -> Parser[None]:
        """Skip what is not JSON, up to a comma or a bracket that closes what is open."""
        scanner, depth = self._scanner, 0
        while True:
            yield from scanner.match(_JUNK)
            char = yield from scanner.available(1)
            if not char or (depth == 0 and (char == "," or self._n_open.get(char))):
                return
            scanner.take(1)
            if char == '"':
                yield from scanner.string(lambda _: None)
            depth += (char in "{[") - (char in "}]" and depth > 0)
