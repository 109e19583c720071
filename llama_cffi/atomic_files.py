"""Files that are complete or absent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from .context_managers import contextmanager

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[BinaryIO]:
    """Provide a file beside *path* that takes its place at the end, unless an error is raised.

    Args:
        path: The file; its folder exists.
        suffix: The end of the name until then, by which what a killed process left can be found.

    Raises:
        OSError: It cannot be written.
    """
    descriptor, unfinished = tempfile.mkstemp(suffix, f".{path.name}.", path.parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise
