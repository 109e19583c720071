"""Find the strings of a GGUF array, many at a time.

A large vocabulary has 262,144 tokens and 514,000 merges, each preceded by its length in 8 bytes.
numpy finds every offset of a block where a length below 256 may be; those that form a chain from
the first are the strings. Longer strings, and strings that contain zero bytes, are read one by
one. So are small arrays, to not import numpy for them.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Strings", "find_strings"]

_LENGTH = struct.Struct("<Q")
_MANY = 100_000  # from here on numpy saves more time than its import takes
_BLOCK = 1 << 17
_FEW, _MOST_SINGLE = 64, 4096
_LONGEST_HASHED = 1024
_ODD = 0x9E3779B97F4A7C15  # spreads the bits of a word


class Strings:
    """The strings of an array, created when they are used.

    Args:
        data: The file.
        starts: Offset of each; a list, or for many strings an array (count,) int64.
        lengths: Length of each in bytes, likewise.
    """

    def __init__(self, data: mmap.mmap, starts: Any, lengths: Any) -> None:
        self._data, self._starts, self._lengths = data, starts, lengths

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[bytes]:
        starts, lengths = _plain(self._starts), _plain(self._lengths)
        return (self._data[at : at + n] for at, n in zip(starts, lengths, strict=True))

    @property
    def end(self) -> int:
        """Offset of the end of the last one, which must exist."""
        return int(self._starts[-1] + self._lengths[-1])

    @property
    def shortest(self) -> int:
        """Length in bytes of the shortest as C sees it, up to a NUL; 0 if there is none."""
        if not len(self):
            return 0
        if self._have_nul():
            return min(map(len, self._cut()))
        return min(self._lengths) if isinstance(self._lengths, list) else int(self._lengths.min())

    def up_to(self, length: int) -> set[bytes]:
        """Return the strings of at most *length* bytes."""
        if isinstance(self._lengths, list):
            return {string for string in self if len(string) <= length}
        some = self._lengths <= length
        return set(Strings(self._data, self._starts[some], self._lengths[some]))

    def count_distinct(self) -> int:
        """Return the number of strings that differ for C, which reads them up to a NUL."""
        if self._have_nul():
            return len(set(self._cut()))
        # Equal strings have equal hashes: if all hashes differ, so do all strings.
        if not isinstance(self._lengths, list) and self._lengths.max() <= _LONGEST_HASHED:
            hashes = _hashes(self._data, self._starts, self._lengths)
            hashes.sort()
            if (hashes[1:] != hashes[:-1]).all():
                return len(self)
        return len(set(self))

    def _have_nul(self) -> bool:
        """Whether any string contains a NUL: whether there are more than their lengths have."""
        if not len(self):
            return False
        begin = int(self._starts[0]) - _LENGTH.size
        if isinstance(self._lengths, list):
            found = self._data[begin : self.end].count(0)
            return found > sum(_LENGTH.pack(length).count(0) for length in self._lengths)
        import numpy as np

        raw: Any = np.ndarray((self.end - begin,), np.uint8, self._data, begin)
        of_lengths = self._lengths.view(np.uint8)
        n_nul = raw.size - np.count_nonzero(raw)
        return bool(n_nul > of_lengths.size - np.count_nonzero(of_lengths))

    def _cut(self) -> Iterator[bytes]:
        return (string.partition(b"\0")[0] for string in self)


def find_strings(data: mmap.mmap, at: int, count: int, size: int) -> Strings | None:
    """Find the strings of an array.

    Args:
        data: The file.
        at: Offset of the length of the first string.
        count: Number of strings.
        size: Size of the file in bytes.

    Returns:
        The strings, or None if one of them does not lie in the file.
    """
    return (_many if count >= _MANY else _single)(data, at, count, size)


def _single(data: mmap.mmap, at: int, count: int, size: int) -> Strings | None:
    """Find strings one by one."""
    starts, lengths, unpack = [], [], _LENGTH.unpack_from
    for _ in range(count):
        if at + 8 > size:
            return None
        (length,) = unpack(data, at)
        starts.append(at + 8)
        lengths.append(length)
        at += 8 + length
    return Strings(data, starts, lengths) if at <= size else None


def _many(data: mmap.mmap, at: int, count: int, size: int) -> Strings | None:
    """Find strings block by block."""
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
        # Where chains are short, more strings are read one by one each time.
        single = 1 if len(heads) >= _FEW else min(2 * single, _MOST_SINGLE)
        some = _single(data, at, min(single, count), size)
        if some is None:
            return None
        if len(some):
            starts.append(np.array(some._starts, np.int64))
            lengths.append(np.array(some._lengths, np.int64))
            at = some.end
            count -= len(some)
    if at > size:
        return None
    return Strings(data, np.concatenate(starts), np.concatenate(lengths))


def _chain(
    data: mmap.mmap, at: int, end: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return offsets and values of up to *count* lengths below 256, chained from *at*."""
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


def _hashes(
    data: mmap.mmap, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """Hash all strings together, eight bytes at a time."""
    import numpy as np

    begin, end = int(starts[0]), int(starts[-1] + lengths[-1])
    raw = data[begin:end] + bytes(8)
    words: Any = np.ndarray((end - begin + 1,), "<u8", raw, 0, (1,))
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


def _plain(numbers: Any) -> list[int]:
    found: list[int] = numbers if isinstance(numbers, list) else numbers.tolist()
    return found
