"""Reading requests: bounded bodies, bounded JSON, and the types of their fields."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from starlette.types import Receive, Scope

from .errors import ApiError, invalid
from .settings import Settings

__all__ = [
    "BOOL",
    "INTEGER",
    "LIST",
    "NUMBER",
    "OBJECT",
    "STRING",
    "ClientLeftError",
    "Kind",
    "Object",
    "bytes_kind",
    "either",
    "list_of",
    "parse_json",
    "parse_value",
    "read_body",
    "take",
]

Object = dict[str, Any]
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAX_INT = 2**63
_EXAMPLE = 'such as {"model": "...", ...}'


class ClientLeftError(Exception):
    """The client closed the connection."""


async def read_body(
    scope: Scope, receive: Receive, settings: Settings, *, is_form: bool = False
) -> bytes:
    """Return the body of a request.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        settings: The limits.
        is_form: Whether the body must be a form with files, not JSON.

    Raises:
        ApiError: It has another type, is too large, or did not arrive in time.
        ClientLeftError: The client left before its end.
    """
    headers = dict(scope["headers"])
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and int(announced[:20]) > settings.max_body_bytes:
        raise _too_large(f"{int(announced[:20]):,} bytes", settings)
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if is_form and kind != b"multipart/form-data":
        shown = kind.decode("latin-1")
        message = f"the content type must be multipart/form-data, got {shown!r} (curl: -F)"
        raise invalid(None, message, 415)
    if not is_form and kind and kind != b"application/json" and not kind.endswith(b"+json"):
        shown = kind.decode("latin-1")
        message = f"the content type must be application/json, got {shown!r} (curl: --json)"
        raise invalid(None, message, 415)
    try:
        return await asyncio.wait_for(_body(receive, settings), settings.body_timeout_s)
    except asyncio.TimeoutError:
        message = f"the body did not arrive within {settings.body_timeout_s:g} s"
        raise ApiError(408, message, headers=_CLOSE) from None


_CLOSE = {"connection": "close"}  # the rest of a refused body must not be read


def _too_large(size: str, settings: Settings) -> ApiError:
    limit = settings.max_body_bytes
    message = f"the body has {size}; at most {limit:,} are allowed (max_body_bytes)"
    return ApiError(413, message, "request_too_large_error", headers=_CLOSE)


async def _body(receive: Receive, settings: Settings) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > settings.max_body_bytes:
            raise _too_large(f"{size:,} bytes or more", settings)
        if not message.get("more_body", False):
            return b"".join(parts)


def parse_json(body: bytes, settings: Settings, list_field: str | None = None) -> Object:
    """Return the JSON object in a body; a list is its *list_field*, if the route takes one.

    Raises:
        ApiError: It is something else, nested too deeply, or not Unicode text.
    """
    limit = settings.max_json_depth
    if body.count(b"[") + body.count(b"{") > limit and _is_deeper(body, limit):
        raise invalid(None, f"the JSON is nested deeper than {limit} levels")
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as e:
        raise invalid(None, f"the body is not UTF-8: byte {e.start} is wrong") from None
    except RecursionError:
        raise invalid(None, f"the JSON is nested deeper than {limit} levels") from None
    except ValueError as e:
        shown = "the body is empty" if not body.strip() else f"the body is not JSON: {e}"
        raise invalid(None, f"{shown}; send a JSON object, {_EXAMPLE}") from None
    if list_field is not None and isinstance(value, list):
        value = {list_field: value}
    if not isinstance(value, dict):
        kind = _kind_of(value)
        raise invalid(None, f"the body must be a JSON object, got {kind}; send one {_EXAMPLE}")
    if _SURROGATE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            code = f"\\u{ord(e.object[e.start]):04x}"
            raise invalid(None, f"the JSON has an unpaired surrogate, {code}; remove it") from None
    return value


def _is_deeper(body: bytes, limit: int) -> bool:
    depth = 0
    for token in _TOKENS.finditer(body):
        first = token[0][:1]
        if first in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class Kind(NamedTuple):
    """A kind of JSON value.

    Attributes:
        words: Its name.
        read: Returns the value as Python's API takes it; raises ValueError.
    """

    words: str
    read: Callable[[Any], Any]


def bytes_kind(words: str) -> Kind:
    """Return the kind of bytes, which JSON does not have, under a name."""

    def read(value: Any) -> Any:
        if not isinstance(value, bytes):
            raise ValueError
        return value

    return Kind(words, read)


def parse_value(text: str) -> Any:
    """Return the number, true or false in a text; the text if it is something else."""
    try:
        value = json.loads(text.strip().lower(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, (bool, int, float)) else text


def _is_a(words: str, *types: type) -> Kind:
    def read(value: Any) -> Any:
        if not isinstance(value, types):
            raise ValueError
        return value

    return Kind(words, read)


def _integer(value: Any) -> int:
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    if not whole or not -_MAX_INT <= value < _MAX_INT:
        raise ValueError
    return int(value)


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    if not -_MAX_INT <= value < _MAX_INT or not math.isfinite(value):
        raise ValueError
    return value


INTEGER = Kind("an integer of 64 bits", _integer)
NUMBER = Kind("a number", _number)
BOOL = _is_a("true or false", bool)
STRING = _is_a("a string", str)
OBJECT = _is_a("an object", dict)
LIST = _is_a("a list", list)


def list_of(kind: Kind) -> Kind:
    """Return the kind of a list of *kind*."""

    def read(value: Any) -> Any:
        return [kind.read(item) for item in LIST.read(value)]

    return Kind(f"a list of which each item is {kind.words}", read)


def either(*kinds: Kind) -> Kind:
    """Return the kind of values that are one of *kinds*."""

    def read(value: Any) -> Any:
        for kind in kinds:
            try:
                return kind.read(value)
            except ValueError:
                continue
        raise ValueError

    return Kind(" or ".join(kind.words for kind in kinds), read)


def take(body: Object, fields: Mapping[str, Kind], *required: str) -> Object:
    """Return the fields of *body* that are known, without those that are null.

    Unknown fields are ignored: clients send those of newer and of other servers.

    Raises:
        ApiError: A field has the wrong type, or is missing.
    """
    found = {}
    for name, kind in fields.items():
        value = body.get(name)
        if value is None:
            continue
        try:
            found[name] = kind.read(value)
        except ValueError:
            got = _kind_of(value)
            raise invalid(name, f"{name} must be {kind.words}, got {got}") from None
    for name in required:
        if name not in found:
            raise invalid(name, f"{name} is missing; it must be {fields[name].words}")
    return found


def _kind_of(value: Any) -> str:
    """Return a value in words, short."""
    if isinstance(value, (list, dict)):
        name = "a list" if isinstance(value, list) else "an object"
        return f"{name} with {len(value)} item{'s' * (len(value) != 1)}"
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
