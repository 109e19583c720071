"""API keys: their names and priorities, the file they are in, and who sent which."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ValidationError
from ..validation import INT32_MAX, check_int, check_str
from .errors import ApiError

__all__ = ["ApiKey", "KeyRing", "as_keys", "read_key_file"]


@dataclass(frozen=True)
class ApiKey:
    """A key that clients send.

    Attributes:
        key: The secret.
        name: Its name in the log. Keys of one name are one client. Empty: `key-1` and so on, by
            its place.
        priority: That of its requests, which they may lower but not raise.

    Raises:
        ValidationError: The key is empty, or the priority out of range.
    """

    key: str = field(repr=False)
    name: str = ""
    priority: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.key, str) and self.key):
            raise ValidationError("an API key must be a str that is not empty")
        check_str("name", self.name)
        check_int("priority", self.priority, -INT32_MAX)


def as_keys(given: Sequence[str | ApiKey]) -> tuple[ApiKey, ...]:
    """Return keys with names.

    Raises:
        ValidationError: One is not a str or `ApiKey`. The message does not show it.
    """
    found = []
    for i, key in enumerate(given, 1):
        if not isinstance(key, (str, ApiKey)):
            raise ValidationError(f"api_keys: item {i} must be a str or an ApiKey")
        if isinstance(key, str):
            if not key:
                continue
            key = ApiKey(key)
        found.append(key if key.name else ApiKey(key.key, f"key-{i}", key.priority))
    return tuple(found)


def read_key_file(path: str | os.PathLike[str]) -> list[ApiKey]:
    """Return the keys in a file: in each line `KEY`, `KEY NAME` or `KEY NAME PRIORITY`.

    Empty lines and those that begin with `#` are skipped.

    Raises:
        ValidationError: The file cannot be read, has no key, or a line is wrong. The message has
            the line's number and nothing of its text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise ValidationError(f"cannot read --api-key-file {path}: {reason}") from None
    found: list[ApiKey] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.split()
        if len(words) > 3:
            raise _wrong(path, number, f"{len(words)} words; write KEY, KEY NAME or KEY NAME N")
        try:
            priority = int(words[2]) if len(words) == 3 else 0
        except ValueError:
            raise _wrong(path, number, "the priority must be an integer") from None
        if not -INT32_MAX <= priority <= INT32_MAX:
            raise _wrong(path, number, f"the priority must be from {-INT32_MAX} to {INT32_MAX}")
        if words[0] in (key.key for key in found):
            raise _wrong(path, number, "the key is there twice")
        found.append(ApiKey(words[0], words[1] if len(words) > 1 else "", priority))
    if not found:
        raise ValidationError(f"--api-key-file {path} has no key; write one a line")
    return found


class KeyRing:
    """The keys of a server.

    Args:
        keys: With names; none: everybody is served.
    """

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = [(_digest(key.key), key) for key in keys]

    def find(self, headers: Mapping[str, str]) -> ApiKey | None:
        """Return the key that a request has; None: none is needed.

        Args:
            headers: Of the request, found in lower case.

        Raises:
            ApiError: It is missing or wrong.
        """
        if not self._keys:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = [key.strip()] if scheme.lower() == "bearer" else []
        given += [headers["x-api-key"]] if "x-api-key" in headers else []
        # All are compared, in constant time.
        found = [
            key
            for text in given
            for known, key in self._keys
            if hmac.compare_digest(_digest(text), known)
        ]
        if not found:
            what = "the API key is wrong" if given else "the API key is missing"
            raise ApiError(
                401, f"{what}; send it as Authorization: Bearer KEY or x-api-key: KEY",
                "authentication_error", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return found[0]


def _wrong(path: str | os.PathLike[str], number: int, what: str) -> ValidationError:
    return ValidationError(f"--api-key-file {path}, line {number}: {what}")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
