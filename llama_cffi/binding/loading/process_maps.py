"""The memory map of this process: other builds of llama.cpp, and readable addresses."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ...errors import LibraryLoadError

__all__ = ["is_mapped", "mapped_files", "mapped_names", "refuse_other_build"]

# auditwheel renames the libraries in a wheel (libggml-base-319ad4fb.so): they mix with no other.
_LIBRARY_NAME = re.compile(r"lib(llama|ggml)(?!.*-[0-9a-f]{8}\.so).*\.so[.\d]*")


def refuse_other_build(library: Path) -> None:
    """Refuse if another llama.cpp is loaded in this process, such as llama-cpp-python's.

    Raises:
        LibraryLoadError: With both paths.
    """
    for _, _, path in _mapped_files():
        if _LIBRARY_NAME.fullmatch(path.name) and path.parent != library.parent:
            raise LibraryLoadError(
                f"{path} is already loaded in this process; {library} would share the name "
                "libggml-base with it and mix silently. Use one of them per process."
            )


def mapped_files() -> set[Path]:
    """Return the files that are mapped; empty if the OS does not tell."""
    return {path for _, _, path in _mapped_files()}


def mapped_names(folder: Path) -> set[str]:
    """Return which of *folder*'s files are mapped, by name; empty if the OS does not tell."""
    return {path.name for _, _, path in _mapped_files() if path.parent == folder}


def _mapped_files() -> list[tuple[int, int, Path]]:
    """Return the mapped files as (start, end, path); empty if the OS does not report them."""
    if sys.platform != "linux":
        return []
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            parts = line.rstrip("\n").split(None, 5)
            if len(parts) == 6 and parts[5].startswith("/"):
                start, end = (int(n, 16) for n in parts[0].split("-"))
                found.append((start, end, Path(parts[5])))
    return found


def is_mapped(address: int) -> bool:
    """Whether *address* lies in a mapped file; always true if the OS does not report them.

    The map is read once, after the library was opened.
    """
    if not address:
        return False
    if not _mapped_ranges:
        _mapped_ranges.extend((start, end) for start, end, _ in _mapped_files())
    ranges = _mapped_ranges or [(1, 2**64)]
    return any(start <= address < end for start, end in ranges)


_mapped_ranges: list[tuple[int, int]] = []
