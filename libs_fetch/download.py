"""Download one file: resumable, verified, and only if the disk has space for it. See `download`."""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FetchError
from ..progress import Advance, downloading
from .disk import check_free_space, disk_full_error
from .faults import HttpStatusError
from .http import Client, TransientError, blocks, redact, retrying
from .store import file_digest

__all__ = ["RemoteFile", "download", "downloaded", "sri"]

_log = logging.getLogger(__name__)

# For a file of which neither a pin, nor the source, nor the server gives the length.
MAX_BYTES = 4 << 30
_STRENGTH = ("sha512", "sha384", "sha256")


class _RefusedError(FetchError):
    """The server's file is not the expected one; what was received is deleted."""


@dataclass(frozen=True)
class RemoteFile:
    """One file on a server.

    Attributes:
        urls: Addresses, in the order to try.
        size: Length in bytes, if known.
        integrity: SRI hash, if known.
        headers: Request headers by address, so that no credential reaches another host.
    """

    urls: tuple[str, ...]
    size: int | None = None
    integrity: str | None = None
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last path component of the first address."""
        return redact(self.urls[0]).rpartition("/")[2]

    def part(self, prefix: Path) -> Path:
        """Return the path of the partial download, named after the hash of the whole file.

        So another file is never appended to it.
        """
        content = "".join(c for c in self.integrity or "unhashed" if c.isalnum())[:24]
        return prefix.with_name(f"{prefix.name}.{content}.part")


def sri(algorithm: str, hexdigest: str) -> str:
    """Turn a hex digest into an SRI hash, `sha256-<base64>`."""
    return f"{algorithm}-{base64.b64encode(binascii.unhexlify(hexdigest)).decode()}"


def download(client: Client, remote: RemoteFile, part: Path, *, progress: bool = True) -> Path:
    """Download *remote* into the file *part*, resuming a partial download that is there.

    The caller holds the lock for *part*. After success *part* holds exactly the verified bytes. On
    a wrong length or hash it is deleted, and nothing is written beyond the expected length; on a
    broken connection it stays, to be resumed.

    Raises:
        UnreachableError: No address answered.
        FetchError: Wrong length or hash, or not enough space on the disk.
    """
    _log.info("fetching %s", redact(remote.urls[0]))
    if remote.integrity is not None:
        _strongest(remote.integrity)
    problem: FetchError | None = None
    for url in remote.urls:
        try:
            _transfer(client, url, remote, part, progress)
            _verify(url, remote, part)
            return part
        except HttpStatusError as e:
            problem = problem or e
        except _RefusedError:
            part.unlink(missing_ok=True)
            raise
        except OSError as e:
            full = disk_full_error(e, part.parent, remote.size, remote.name)
            if full is None:
                raise
            part.unlink(missing_ok=True)
            raise full from e
    assert problem is not None
    raise problem


@contextmanager
def downloaded(
    client: Client, remote: RemoteFile, part: Path, *, progress: bool = True
) -> Iterator[Path]:
    """Download *remote* into *part* for a `with` block, and delete it after the block, used or not.

    Raises:
        UnreachableError, FetchError: As `download`.
    """
    download(client, remote, part, progress=progress)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _transfer(client: Client, url: str, remote: RemoteFile, part: Path, progress: bool) -> None:
    def once() -> None:
        offset = part.stat().st_size if part.exists() else 0
        if remote.size is not None:
            if offset > remote.size:
                part.unlink()
                offset = 0
            elif offset == remote.size:
                return
            check_free_space(part.parent, remote.size - offset, remote.name)
        headers = dict(remote.headers.get(url, {}))
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            response = client.open(url, headers)
        except HttpStatusError as e:
            if e.status != 416:
                raise
            part.unlink(missing_ok=True)
            raise TransientError("HTTP 416, starting over") from e
        with response:
            # A server that ignores Range answers 200 with the whole file: start over.
            resumed = response.status == 206 and _starts_at(response, offset)
            if offset and response.status == 206 and not resumed:
                part.unlink()
                raise TransientError("the server resumed at another offset, starting over")
            _copy(response, part, offset if resumed else 0, remote, progress)

    retrying(url, once)


def _starts_at(response: Any, offset: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-")


def _copy(response: Any, part: Path, offset: int, remote: RemoteFile, progress: bool) -> None:
    length = response.headers.get("Content-Length") or ""
    known = re.fullmatch(r"[0-9]{1,18}", length) is not None
    total = offset + int(length) if known else remote.size
    limit = MAX_BYTES if remote.size is None else remote.size
    if total is not None and total > limit:
        raise _wrong_length(response.url, f"{total:,}", remote)
    if total is not None and remote.size is None:
        check_free_space(part.parent, total - offset, remote.name)
    got = offset
    with (
        part.open("ab" if offset else "wb") as out,
        _bar(remote.name, total, offset, progress) as advance,
    ):
        for block in blocks(response):
            got += len(block)
            if got > limit:
                raise _wrong_length(response.url, "more", remote)
            out.write(block)
            advance(len(block))
    if total is not None and got < total:
        raise TransientError(f"broke off after {got:,} of {total:,} bytes")


def _wrong_length(url: str, length: str, remote: RemoteFile) -> _RefusedError:
    expected = f"{MAX_BYTES:,} at most" if remote.size is None else f"{remote.size:,}"
    return _RefusedError(
        f"{redact(url)} is {length} bytes long, expected {expected}. The file was deleted. A proxy "
        "or mirror may have changed it: try again, or use another mirror."
    )


def _bar(
    name: str, total: int | None, offset: int, progress: bool
) -> AbstractContextManager[Advance]:
    return downloading(name, total, offset) if progress else nullcontext(lambda n_bytes: None)


def _verify(url: str, remote: RemoteFile, part: Path) -> None:
    size = part.stat().st_size
    if remote.size is not None and size != remote.size:
        raise _wrong_length(url, f"{size:,}", remote)
    if remote.integrity is None:
        return
    algorithm, expected = _strongest(remote.integrity)
    got = sri(algorithm, file_digest(part, algorithm))
    if got != f"{algorithm}-{expected}":
        raise _RefusedError(
            f"{redact(url)} has the wrong hash: got {got}, expected {algorithm}-{expected} "
            f"({size:,} bytes). The file was deleted and nothing was installed. A proxy or mirror "
            "may have changed it: try again, or use another mirror."
        )


def _strongest(integrity: str) -> tuple[str, str]:
    known = dict(item.split("?")[0].split("-", 1) for item in integrity.split() if "-" in item)
    for algorithm in _STRENGTH:
        if algorithm in known:
            return algorithm, known[algorithm]
    raise FetchError(
        f"the server gives no hash of {', '.join(_STRENGTH)}, only {integrity!r}. "
        "Use another mirror."
    )
