"""Backoff: the batch size to try after a refused batch."""

from __future__ import annotations

import pytest

from llama_cffi.generation.backoff import Backoff


@pytest.mark.parametrize("frees", [True, False])
def test_frees_cells_once_then_halves_batches(frees: bool) -> None:
    calls: list[bool] = []
    backoff = Backoff(100, 16, lambda: calls.append(frees) or frees)  # type: ignore[func-returns-value]
    sizes = [100]
    while backoff.refused(sizes[-1]):
        sizes.append(backoff.n_tokens)
    assert sizes == ([100] if frees else []) + [100, 50, 25, 16]
    assert len(calls) == 1


def test_success_doubles_the_size_up_to_the_limit() -> None:
    backoff = Backoff(100, 1, lambda: False)
    assert backoff.refused(40)
    sizes = []
    for _ in range(4):
        sizes.append(backoff.n_tokens)
        backoff.accepted(100)
    assert sizes == [20, 40, 80, 100]


def test_gives_up_at_the_smallest_batch() -> None:
    assert not Backoff(100, 16, lambda: False).refused(5)
    backoff = Backoff(100, 1, lambda: True)
    assert backoff.refused(1)
    assert not backoff.refused(1)
