"""Read the header of a GGUF file of which only parts can be fetched."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

from ..errors import ModelLoadError
from .header_check import GgufSummary, parse_header

__all__ = ["FIRST_BYTES", "MAX_HEADER_BYTES", "RemoteHeader", "read_remote_header"]

FIRST_BYTES = 2**20
MAX_HEADER_BYTES = 2**28  # far more than any vocabulary takes


class RemoteHeader:
    """The header of a file elsewhere.

    Attributes:
        summary: The parsed header.
        data: The bytes of it that were fetched.
    """

    def __init__(self, summary: GgufSummary, data: mmap.mmap) -> None:
        self.summary, self.data = summary, data


def read_remote_header(name: str, size: int, fetch: Callable[[int, int], bytes]) -> RemoteHeader:
    """Return the header of a file, fetching no more than about twice its bytes.

    Args:
        name: The name of the file, for messages.
        size: Its size in bytes.
        fetch: Returns the bytes from one offset up to another.

    Raises:
        ModelLoadError: It is not a GGUF, or its header is inconsistent or larger than 256 MiB.
    """
    got = b""
    end = min(FIRST_BYTES, size)
    while True:
        got += fetch(len(got), end)
        if not got:
            raise ModelLoadError(f"{name} is empty (0 bytes)")
        data = mmap.mmap(-1, len(got))
        data[:] = got
        summary = _parsed(name, data, size)
        if summary is not None and min(summary.header_bytes, size) <= len(got):
            return RemoteHeader(summary, data)
        if len(got) >= size:
            raise ModelLoadError(f"{name} is truncated: its header ends beyond {size} bytes")
        if len(got) >= MAX_HEADER_BYTES:
            raise ModelLoadError(
                f"{name} has a header of more than {MAX_HEADER_BYTES >> 20} MiB, as no model has"
            )
        end = min(2 * len(got), size, MAX_HEADER_BYTES)


def _parsed(name: str, data: mmap.mmap, size: int) -> GgufSummary | None:
    """Parse a header; None: it is longer than *data*."""
    try:
        return parse_header(Path(name), data, size)
    except (struct.error, IndexError, ValueError):
        return None
