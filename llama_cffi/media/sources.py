"""The bytes of a picture or a sound: from paths, data URLs, base64, file objects and the web."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

from ..errors import FetchError, ValidationError
from .policy import MediaPolicy

if TYPE_CHECKING:
    from .fetch import Fetched

__all__ = ["BinaryFile", "Limits", "Source", "limits_of", "read_encoded", "read_source"]

_DATA_URL = re.compile(
    r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.IGNORECASE
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
_LEAST_BASE64 = 40  # shorter texts are rather file names
_LONGEST_PATH = 4096
_SHOWN = 60
_SHOWN_PATH = 200


class BinaryFile(Protocol):
    """A file opened for reading bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to *size* bytes."""
        ...


Source: TypeAlias = "str | bytes | bytearray | memoryview | os.PathLike[str] | BinaryFile"


class Limits(NamedTuple):
    """What is read.

    Attributes:
        kind: `image` or `audio`.
        what: The same in words.
        max_bytes: Most bytes.
    """

    kind: str
    what: str
    max_bytes: int


def limits_of(kind: str, policy: MediaPolicy) -> Limits:
    """Return the limits for an `image` or an `audio`."""
    if kind == "image":
        return Limits("image", "a picture", policy.max_image_bytes)
    return Limits("audio", "a sound", policy.max_audio_bytes)


def read_source(source: object, limits: Limits, policy: MediaPolicy, where: str) -> bytes:
    """Return the bytes of a source.

    Args:
        source: Bytes, a file object, a path, or a str: a path, a data:, file: or https: URL, or
            base64.
        limits: What is read.
        policy: What may be read.
        where: Its name in error messages.

    Raises:
        ValidationError: It is none of these, not allowed, or too large.
        FetchError: An address cannot be fetched.
    """
    data: bytes
    if isinstance(source, (bytes, bytearray, memoryview)):
        if memoryview(source).nbytes > limits.max_bytes:
            raise _too_large(limits, where)
        data = bytes(source)
    elif isinstance(source, str):
        data = _of_text(source, limits, policy, where)
    elif isinstance(source, os.PathLike):
        data = _of_file(Path(source), limits, policy, where)
    elif callable(read := getattr(source, "read", None)):
        data = _of_reader(read, limits, where)
    else:
        raise ValidationError(
            f"{where} must be bytes, a path, a URL or base64, got {type(source).__name__}"
        )
    return _checked(data, limits, where)


def read_encoded(text: str, limits: Limits, where: str) -> bytes:
    """Return the bytes of base64, or of a data: URL; never those of a file or an address.

    Args:
        text: Base64, with or without padding, in either alphabet.
        limits: What is read.
        where: Its name in error messages.

    Raises:
        ValidationError: It is not valid, or too large.
    """
    is_url = text[:16].lstrip().lower().startswith("data:")
    data = _of_data_url(text.strip(), limits, where) if is_url else _decoded(text, limits, where)
    return _checked(data, limits, where)


def _checked(data: bytes, limits: Limits, where: str) -> bytes:
    if len(data) > limits.max_bytes:
        raise _too_large(limits, where)
    if not data:
        raise ValidationError(f"{where} is empty: 0 bytes")
    return data


def _of_text(text: str, limits: Limits, policy: MediaPolicy, where: str) -> bytes:
    head = text[:16].lstrip().lower()
    if head.startswith("data:"):
        return _of_data_url(text.strip(), limits, where)
    if head.startswith(("https:", "http:")):
        return _of_url(text.strip(), limits, policy, where).data
    if head.startswith("file:"):
        return _of_file(_path_of_url(text.strip(), policy, where), limits, policy, where)
    if "://" in text[:_SHOWN]:
        raise ValidationError(f"{where}: {text[:_SHOWN]!r} is no data:, file: or https: URL")
    if _is_base64(text) and not _names_file(text, policy):
        return _decoded(text, limits, where)
    return _of_file(Path(text), limits, policy, where)


def _is_base64(text: str) -> bool:
    if len(text) > _LONGEST_PATH:  # what else; invalid characters are found later
        return True
    return len(text) >= _LEAST_BASE64 and _BASE64.fullmatch(text) is not None


def _path_of_url(url: str, policy: MediaPolicy, where: str) -> Path:
    """Return the path in a file: URL; with a folder, `file://NAME` is in it, as in llama-server."""
    from urllib.request import url2pathname

    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValidationError(f"{where}: {url[:_SHOWN]!r} is no valid address") from None
    if parts.netloc not in ("", "localhost"):
        if isinstance(policy.files, Path):
            return Path(url2pathname(parts.netloc + parts.path))
        raise ValidationError(f"{where}: file: URLs name files of this machine only")
    return Path(url2pathname(parts.path))


def _names_file(text: str, policy: MediaPolicy) -> bool:
    """Whether a text that may be base64 is rather the path of a file that may be read."""
    if policy.files is False or len(text) > _LONGEST_PATH:
        return False
    try:
        return _allowed(Path(text), policy).is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _of_data_url(text: str, limits: Limits, where: str) -> bytes:
    found = _DATA_URL.match(text[:512])
    if found is None or not found[3]:
        raise ValidationError(
            f"{where}: a data: URL must be data:{limits.kind}/…;base64,… with base64"
        )
    mime = (found[1] or "").lower()
    if mime and not mime.startswith((f"{limits.kind}/", "application/octet-stream")):
        raise ValidationError(f"{where} is {mime}, not {limits.what}")
    return _decoded(text[found.end() :], limits, where)


def _decoded(text: str, limits: Limits, where: str) -> bytes:
    if len(text) > limits.max_bytes * 4 // 3 + 1024:  # before anything is decoded
        raise _too_large(limits, where)
    text = "".join(text.split()).replace("-", "+").replace("_", "/")
    text += "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise ValidationError(f"{where} is not valid base64: {e}") from None


def _of_file(path: Path, limits: Limits, policy: MediaPolicy, where: str) -> bytes:
    if policy.files is False:
        raise ValidationError(
            f"{where}: files are not read here; send the data as base64, or allow a folder "
            "(--media-path of the server, files of the MediaPolicy)"
        )
    shown = repr(str(path)[:_SHOWN_PATH])  # as it was given: folders of a server are its own
    try:
        allowed = _allowed(path, policy)
        if not allowed.is_file():
            raise ValidationError(f"{where}: there is no file {shown}")
        with allowed.open("rb") as file:
            return file.read(limits.max_bytes + 1)
    except _OutsideError:
        raise ValidationError(f"{where}: only files in the media folder are read here") from None
    except ValidationError:
        raise
    except (OSError, ValueError, RuntimeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "no valid path"
        raise ValidationError(f"{where}: cannot read {shown}: {reason}") from None


class _OutsideError(ValueError):
    """A path leads out of the folder that may be read."""


def _allowed(path: Path, policy: MediaPolicy) -> Path:
    """Return where a path leads, all links resolved, if that may be read."""
    path = path.expanduser()
    if isinstance(policy.files, Path):
        folder = policy.files.expanduser().resolve()
        path = (folder / path).resolve()
        if not path.is_relative_to(folder):  # before it is opened
            raise _OutsideError
    return path


def _of_reader(read: Callable[[int], object], limits: Limits, where: str) -> bytes:
    data = bytearray()
    while len(data) <= limits.max_bytes:  # raw files and sockets give less than asked for
        chunk = read(limits.max_bytes + 1 - len(data))
        if not isinstance(chunk, bytes):
            raise ValidationError(f"{where}: the file must be opened in binary mode ('rb')")
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _of_url(url: str, limits: Limits, policy: MediaPolicy, where: str) -> Fetched:
    if policy.urls is False:
        raise ValidationError(
            f"{where}: addresses are not fetched here; send the data as base64, or allow hosts "
            "(--media-urls of the server, urls of the MediaPolicy)"
        )
    from .fetch import fetch

    try:
        return fetch(url, policy, limits.kind, limits.max_bytes)
    except (FetchError, ValidationError) as e:
        raise type(e)(f"{where}: {e}") from None


def _too_large(limits: Limits, where: str) -> ValidationError:
    return ValidationError(
        f"{where} has more than {limits.max_bytes:,} bytes; send a smaller {limits.kind} or raise "
        f"max_{limits.kind}_bytes of the MediaPolicy"
    )
