"""Unpack .tar.gz and .zip safely: no path or link leaves the target folder. See `extract`."""

from __future__ import annotations

import gzip
import lzma
import os
import posixpath
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import FetchError
from .disk import check_free_space

__all__ = ["Member", "extract", "safe_name"]

# The largest real build is 1 GB unpacked; this stops a decompression bomb.
MAX_UNPACKED_BYTES = 8 << 30
MAX_MEMBERS = 100_000
# ValueError: from this module. The others: a path is a file in one member and a folder in another.
_REFUSED = (ValueError, FileExistsError, NotADirectoryError, IsADirectoryError)
# RuntimeError: encrypted, an unknown compression, or headers that nest without end. OverflowError,
# MemoryError: a header that claims more bytes than there are.
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    struct.error,
    RuntimeError,
    OverflowError,
    MemoryError,
)
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Member:
    """One entry of an archive.

    Attributes:
        path: Normalised path inside the archive.
        size: Size in bytes; 0 for a link.
        link: For a link, the normalised path it points to; None for a file.
        open: Opens the content for reading.
    """

    path: str
    size: int
    link: str | None
    open: Callable[[], IO[bytes]]


def safe_name(name: str) -> str:
    """Normalise a member's path; the root itself is the empty string.

    Raises:
        ValueError: The path is absolute or contains `..`, a drive, a backslash or a NUL.
    """
    if "\0" in name or "\\" in name or name.startswith("/") or _DRIVE.match(name):
        raise ValueError(f"path {name!r} is not relative")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"path {name!r} leaves the archive")
    return "/".join(parts)


def _safe_link(path: str, target: str) -> str:
    """Resolve the *target* of the symlink at *path* to a path inside the archive.

    Raises:
        ValueError: The target is outside the archive.
    """
    if "\0" in target or "\\" in target or target.startswith("/") or _DRIVE.match(target):
        raise ValueError(f"link {path!r} points to {target!r}, outside the archive")
    resolved = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if resolved == ".." or resolved.startswith("../"):
        raise ValueError(f"link {path!r} points to {target!r}, outside the archive")
    return resolved


def extract(
    archive: Path, into: Path, place: Callable[[list[str]], Callable[[str], str | None]]
) -> list[str]:
    """Unpack the wanted members of *archive* and return the paths written.

    Every member is checked, wanted or not, and nothing is written before all have passed.
    Symlinks stay symlinks where the platform has them.

    Args:
        archive: A .tar.gz or .zip file.
        into: The target folder.
        place: Gets the paths of all members and returns a function that maps a member's path to
            its path under *into*, or to None to leave it out.

    Raises:
        FetchError: The archive is damaged, or a member or link leaves the target folder.
    """
    try:
        with _open_members(archive) as members:
            return _write(archive, members, into, place([m.path for m in members]))
    except _REFUSED as e:
        raise FetchError(
            f"{archive.name} is refused: {e}. Nothing was installed. The project does not publish "
            "such archives; check the mirror it came from."
        ) from e
    except _DAMAGED as e:
        raise FetchError(
            f"{archive.name} is damaged: {e or type(e).__name__}. Nothing was installed; "
            "fetch again."
        ) from e


def _write(
    archive: Path, members: list[Member], into: Path, where: Callable[[str], str | None]
) -> list[str]:
    placed: dict[str, Member] = {}
    places: dict[str, str] = {}
    for member in members:
        place = where(member.path)
        if place is None:
            continue
        place = safe_name(place)
        if place in placed:
            raise ValueError(f"path {member.path!r} appears twice")
        placed[place] = member
        places[member.path] = place
    total = sum(member.size for member in placed.values())
    check_free_space(into, total, f"unpacking {archive.name}")
    # Links are made last, so that no file is written through one.
    for place, member in sorted(placed.items(), key=lambda item: item[1].link is not None):
        target = into / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # an extension package replaces files of the main one
        if member.link is not None:
            _link(target, place, _link_destination(member, members, places))
            continue
        with member.open() as source, target.open("xb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    return list(placed)


def _link_destination(member: Member, members: list[Member], places: dict[str, str]) -> str:
    """Follow a chain of links inside the archive and return where its file is placed."""
    by_path = {m.path: m for m in members}
    seen = {member.path}
    current = member
    while current.link is not None:
        following = by_path.get(current.link)
        if following is None or following.path in seen:
            raise ValueError(f"link {member.path!r} leads to no file ({current.link!r})")
        seen.add(following.path)
        current = following
    if current.path not in places:
        raise ValueError(f"link {member.path!r} leads to {current.path!r}, which is left out")
    return places[current.path]


def _link(target: Path, place: str, destination: str) -> None:
    source = target.parents[place.count("/")] / destination
    if os.name == "nt":  # where symlinks need a privilege
        shutil.copyfile(source, target)
    else:
        os.symlink(os.path.relpath(source, target.parent), target)


@contextmanager
def _open_members(archive: Path) -> Iterator[list[Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield _checked(_zip_member(zipped, info) for info in zipped.infolist())
    else:
        with tarfile.open(archive, "r:*") as tar:
            yield _checked(_tar_member(tar, info) for info in tar)


def _checked(members: Iterable[Member | None]) -> list[Member]:
    """List the members; stop reading on once they are too many or too large."""
    found: list[Member] = []
    total = 0
    for n, member in enumerate(members):
        if n >= MAX_MEMBERS:
            raise ValueError(f"it has more than {MAX_MEMBERS:,} members")
        if member is None:
            continue
        if member.size < 0:
            raise ValueError(f"{member.path!r} has a size of {member.size:,} bytes")
        total += member.size
        if total > MAX_UNPACKED_BYTES:
            raise ValueError(f"it unpacks to {total:,} bytes, more than {MAX_UNPACKED_BYTES:,}")
        found.append(member)
    return found


def _zip_member(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member | None:
    path = safe_name(info.filename)
    if info.is_dir() or not path:
        return None
    kind = stat.S_IFMT(info.external_attr >> 16)
    link = None
    if kind == stat.S_IFLNK:
        if info.file_size > 4096:
            raise ValueError(f"link {path!r} has a target of {info.file_size} bytes")
        link = _safe_link(path, zipped.read(info).decode("utf-8", "strict"))
    elif kind not in (0, stat.S_IFREG):
        raise ValueError(f"{path!r} is a special file")
    return Member(path, 0 if link else info.file_size, link, lambda: zipped.open(info))


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member | None:
    path = safe_name(info.name)
    if info.isdir() or not path:
        return None
    link = None
    if info.issym():
        link = _safe_link(path, info.linkname)
    elif info.islnk():
        link = safe_name(info.linkname)
    elif not info.isreg():
        raise ValueError(f"{path!r} is a special file")

    def open_member() -> IO[bytes]:
        file = tar.extractfile(info)
        assert file is not None
        return file

    return Member(path, 0 if link else info.size, link, open_member)
