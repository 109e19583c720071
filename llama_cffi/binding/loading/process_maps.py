"""What is mapped into this process: foreign builds of llama.cpp, and addresses that may be read."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ...errors import LibraryLoadError

__all__ = ["readable", "refuse_foreign_build"]


def refuse_foreign_build(library: Path) -> None:
    """Refuse when another llama.cpp is mapped into this process (llama-cpp-python, say)."""
    for _, _, path in _mappings():
        if _SHARED.fullmatch(path.name) and path.parent != library.parent:
            raise LibraryLoadError(
                f"{path} is loaded in this process already; {library} would share the name "
                "libggml-base with it and mix silently. Use one of them per process."
            )


_SHARED = re.compile(r"lib(llama|ggml).*\.so[.\d]*")


def _mappings() -> list[tuple[int, int, Path]]:
    """The files mapped into this process: (start, end, path). Empty where the OS does not say."""
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


def readable(address: int) -> bool:
    """Whether *address* lies in a mapped file; always true where the OS does not say.

    What is mapped is read once, after the library was opened.
    """
    if not address:
        return False
    if not _readable_ranges:
        _readable_ranges.extend((start, end) for start, end, _ in _mappings())
    ranges = _readable_ranges or [(1, 2**64)]
    return any(start <= address < end for start, end in ranges)


_readable_ranges: list[tuple[int, int]] = []
