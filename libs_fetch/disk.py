"""Free space on the disk of the cache."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from ..errors import FetchError

__all__ = ["check_free_space", "disk_full_error"]


def check_free_space(folder: Path, needed: int, what: str) -> None:
    """Check that *folder*'s disk has *needed* bytes free.

    Args:
        folder: A folder on that disk.
        needed: Bytes.
        what: What needs them, for the message.

    Raises:
        FetchError: It has fewer.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _disk_full(folder, needed, free, what)


def disk_full_error(
    error: OSError, folder: Path, needed: int | None, what: str
) -> FetchError | None:
    """Translate ENOSPC and EDQUOT into a `FetchError` with numbers; None for any other error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return _disk_full(folder, needed, shutil.disk_usage(folder).free, what)


def _disk_full(folder: Path, needed: int | None, free: int, what: str) -> FetchError:
    wanted = f"{needed:,} bytes needed, " if needed is not None else ""
    return FetchError(
        f"the disk of {folder} is too full for {what}: {wanted}{free:,} bytes free. Free some "
        "space (`llama-cffi libs prune` removes old builds) or set LLAMA_CFFI_CACHE to a folder "
        "on another disk."
    )
