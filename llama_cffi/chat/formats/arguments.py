"""The arguments of a call: a JSON object, written as it arrives, whatever the model writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
        self._open: list[str] = []  # the brackets that will close what is open
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
            yield from self._container("{")
        else:
            self._written.append("{}")
            self.is_complete = False
        yield from self._scanner.space()
        if (yield from self._scanner.available(1)):
            self.is_complete = False

    def _container(self, head: str) -> Parser[None]:
        """Write an object or a list; *head* ends with its bracket, which was consumed."""
        scanner, closer = self._scanner, _CLOSERS[head[-1]]
        self._written.append(head)
        self._open.append(closer)
        separator, expects_item = "", True
        while True:
            space = yield from scanner.space()
            char = yield from scanner.available(1)
            if not char or char in self._open:
                break
            if not expects_item and (yield from scanner.literal(",")):
                expects_item = True
            elif expects_item and (yield from self._item(separator + space, closer == "}")):
                separator, expects_item = ",", False
            else:
                self.is_complete = expects_item = False
                yield from self._skip()
        self._open.pop()
        if char == closer:
            self._written.append(space + scanner.take(1))
        else:  # it is missing
            self._written.append(closer)
            self.is_complete = False

    def _item(self, head: str, has_key: bool) -> Parser[bool]:
        """Write *head*, a key and a value; without a value, write nothing and return False."""
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
        self._path.append(name)
        is_written = yield from self._value(head)
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
            yield from self._container(head + scanner.take(1))
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
            if not char or (depth == 0 and char in (",", *self._open)):
                return
            scanner.take(1)
            if char == '"':
                yield from scanner.string(lambda _: None)
            depth += (char in "{[") - (char in "}]" and depth > 0)
