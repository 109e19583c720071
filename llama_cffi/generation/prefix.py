"""The common prefix of two lists of tokens."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["common_prefix_length", "n_common"]

_STRIDE = 64


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two lists of tokens."""
    most = min(len(a), len(b))
    n = 0
    # Slices as lists, whose comparison runs in C.
    while n < most and [*a[n : n + _STRIDE]] == [*b[n : n + _STRIDE]]:
        n += _STRIDE
    while n < most and a[n] == b[n]:
        n += 1
    return min(n, most)


n_common = common_prefix_length  # its former name
