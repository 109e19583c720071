"""Files in the cache that save time: read only if undamaged, made anew otherwise.

Each begins with the SHA-256 of the rest. A file that is missing, damaged, or in a folder that
others can write to counts as absent, and a cache that cannot be written is ignored.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from ...atomic_files import replacing

__all__ = ["read", "refuse_writable_by_others", "write"]

_log = logging.getLogger(__name__)

_DIGEST_BYTES = 32


def read(path: Path) -> bytes | None:
    """Return the content of a file that `write` has made; None if it cannot be trusted."""
    try:
        refuse_writable_by_others(path.parent)
        data = path.read_bytes()
    except OSError as e:
        _log.debug("not read from the cache: %s", e)
        return None
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        _log.debug("%s is damaged and is made anew", path)
        return None
    return content


def write(path: Path, content: bytes) -> None:
    """Write a file in one step; its folder, if new, is for this user only."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_writable_by_others(path.parent)
        with replacing(path) as file:
            file.write(hashlib.sha256(content).digest() + content)
    except OSError as e:
        _log.debug("not written to the cache: %s", e)


def refuse_writable_by_others(folder: Path) -> None:
    """Refuse to trust a folder that another user may have written, such as to run its code.

    Raises:
        PermissionError: Others may write into it.
    """
    if os.name == "posix":
        status = folder.stat()
        if status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
            raise PermissionError(f"other users may write into {folder}")
