"""What two lists of tokens have in common at their beginning."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["n_common"]

_STRIDE = 64


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two lists have in common at their beginning."""
    most = min(len(a), len(b))
    n = 0
    # Lists and tuples of small parts are compared in C.
    while n < most and [*a[n : n + _STRIDE]] == [*b[n : n + _STRIDE]]:
        n += _STRIDE
    while n < most and a[n] == b[n]:
        n += 1
    return min(n, most)
