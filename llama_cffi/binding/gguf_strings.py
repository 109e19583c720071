"""Find the strings of a GGUF array, many at once.

A large vocabulary has 262,144 tokens and 514,000 merges, each behind its length in 8 bytes. One
look at all offsets of a block finds the lengths below 256; those that form a chain from the first
are the strings. What is longer, or has zero bytes of its own, is read one by one.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]

__all__ = ["count_distinct", "find_strings"]

_LENGTH = struct.Struct("<Q")
_BLOCK = 1 << 17
_FEW, _MOST_SINGLE = 64, 4096
_LONGEST_HASHED = 1024
_ODD = 0x9E3779B97F4A7C15  # spreads the bits of a word


def find_strings(
    data: mmap.mmap, at: int, count: int, size: int
) -> tuple[Integers, Integers] | None:
    """Return where the strings of an array begin and their lengths in bytes.

    Args:
        data: The file.
        at: Where the length of the first string lies.
        count: Number of strings.
        size: Bytes of the file.

    Returns:
        Two arrays (count,), or None when a string does not lie in the file.
    """
    import numpy as np

    starts: list[Any] = [np.empty(0, np.int64)]
    lengths: list[Any] = [np.empty(0, np.int64)]
    single = 1
    while count:
        heads, sizes = _chain(data, at, min(at + _BLOCK, size), count)
        if len(heads):
            starts.append(heads + 8)
            lengths.append(sizes)
            at = int(heads[-1] + 8 + sizes[-1])
            count -= len(heads)
        # A file that defeats the chain is read alone, for longer each time.
        single = 1 if len(heads) >= _FEW else min(2 * single, _MOST_SINGLE)
        begins, found = [], []
        for _ in range(min(single, count)):
            if at + 8 > size:
                return None
            (length,) = _LENGTH.unpack_from(data, at)
            if at + 8 + length > size:
                return None
            begins.append(at + 8)
            found.append(length)
            at += 8 + length
        count -= len(begins)
        starts.append(np.array(begins, np.int64))
        lengths.append(np.array(found, np.int64))
    if at > size:
        return None
    return np.concatenate(starts), np.concatenate(lengths)


def _chain(data: mmap.mmap, at: int, end: int, count: int) -> tuple[Integers, Integers]:
    """Return offsets and values of up to *count* lengths below 256 that follow from *at*."""
    import numpy as np

    empty = np.empty(0, np.int64)
    if end - at < 8:
        return empty, empty
    words: Any = np.ndarray((end - at - 7,), "<u8", data, at, (1,))  # the word at every byte
    heads = np.flatnonzero(words < 256)
    if not len(heads) or heads[0]:
        return empty, empty
    sizes = words[heads].astype(np.int64)
    linked = np.diff(heads) == 8 + sizes[:-1]
    n = min(count, 1 + (len(linked) if linked.all() else int(linked.argmin())))
    return heads[:n] + at, sizes[:n]


def count_distinct(data: mmap.mmap, starts: Integers, lengths: Integers) -> int:
    """Return how many of the strings differ."""
    import numpy as np

    # Equal strings have equal hashes: as many hashes as strings prove that all differ.
    if len(starts) and lengths.max() <= _LONGEST_HASHED:
        hashes = np.sort(_hashes(data, starts, lengths))
        if (hashes[1:] != hashes[:-1]).all():
            return len(starts)
    return len({data[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)})


def _hashes(data: mmap.mmap, starts: Integers, lengths: Integers) -> npt.NDArray[np.uint64]:
    """Hash the strings, eight bytes of all of them at a time."""
    import numpy as np

    begin, end = int(starts[0]), int(starts[-1] + lengths[-1])
    raw = data[begin:end] + bytes(8)
    words: Any = np.ndarray((end - begin + 1,), "<u8", raw, 0, (1,))  # the word at every byte
    masks = np.array([2 ** (8 * n) - 1 for n in range(9)], np.uint64)
    hashes = np.zeros(len(starts), np.uint64)
    at, left, which = starts - begin, lengths, np.arange(len(starts))
    while len(which):
        word = words[at] & masks[np.minimum(left, 8)]
        mixed = (hashes[which] ^ word) * np.uint64(_ODD) + left.astype(np.uint64)
        hashes[which] = mixed ^ (mixed >> np.uint64(29))
        longer = left > 8
        at, left, which = at[longer] + 8, left[longer] - 8, which[longer]
    return hashes
