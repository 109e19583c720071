from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama_cffi.generation.encoder_cache import EncoderCache


def rows(n: int) -> NDArray[np.float32]:
    """Return *n* rows of 4 bytes."""
    return np.full((n, 1), n, np.float32)


def never() -> NDArray[np.float32]:
    raise AssertionError("it is in the cache")


def test_what_is_known_is_not_computed_again() -> None:
    cache = EncoderCache(100)
    assert cache.find(b"a") is None
    found = cache.get(b"a", lambda: rows(3))
    assert cache.get(b"a", never) is found is cache.find(b"a")
    assert (cache.n_encoded, len(cache), cache.n_bytes) == (1, 1, 12)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1
    cache.clear()
    assert (len(cache), cache.n_bytes, cache.find(b"a")) == (0, 0, None)
    assert "0 entries" in repr(cache)


def test_the_least_recently_used_goes_first() -> None:
    cache = EncoderCache(12)
    for key in (b"a", b"b", b"c"):
        cache.get(key, lambda: rows(1))
    cache.find(b"a")
    cache.get(b"d", lambda: rows(1))
    assert cache.find(b"b") is None
    assert [cache.find(key) is not None for key in (b"a", b"c", b"d")] == [True] * 3
    cache.get(b"e", lambda: rows(3))  # takes the place of all
    assert (len(cache), cache.n_bytes) == (1, 12)


def test_the_newest_is_kept_even_if_it_is_too_large() -> None:
    cache = EncoderCache(4)
    cache.get(b"a", lambda: rows(1))
    cache.get(b"b", lambda: rows(100))
    assert (len(cache), cache.n_bytes) == (1, 400)
    assert cache.get(b"b", never)[0, 0] == 100


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4))), st.integers(0, 40))
def test_bytes_are_those_of_the_entries(gets: list[tuple[int, int]], most: int) -> None:
    cache, used = EncoderCache(most), dict[int, int]()
    for key, size in gets:
        found = cache.get(bytes([key]), lambda size=size: rows(size))  # type: ignore[misc]
        used[key] = used.pop(key, 0) or len(found)
        used[key] = len(found)
        while sum(used.values()) * 4 > most and len(used) > 1:
            used.pop(next(iter(used)))
        assert cache.n_bytes == 4 * sum(used.values())
        assert len(cache) == len(used)


def test_threads_compute_a_key_once() -> None:
    cache, gate, calls = EncoderCache(1000), threading.Event(), []

    def encode() -> NDArray[np.float32]:
        calls.append(1)
        assert gate.wait(60)
        return rows(2)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(cache.get, b"a", encode) for _ in range(8)]
        gate.set()
        found = [future.result(60) for future in futures]
    assert (len(calls), cache.n_encoded) == (1, 1)
    assert all(one is found[0] for one in found)


def test_what_is_known_does_not_wait_for_the_encoder() -> None:
    cache, started, gate = EncoderCache(1000), threading.Event(), threading.Event()
    known = cache.get(b"a", lambda: rows(1))

    def slow() -> NDArray[np.float32]:
        started.set()
        assert gate.wait(60)
        return rows(2)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(cache.get, b"b", slow)
        assert started.wait(60)
        assert cache.get(b"a", never) is known
        cache.clear()
        gate.set()
        assert len(future.result(60)) == 2
    assert cache.n_bytes == 8


def test_errors_reach_every_caller() -> None:
    cache, n_calls = EncoderCache(1000), 0

    def fail() -> NDArray[np.float32]:
        nonlocal n_calls
        n_calls += 1
        raise KeyError("mine")

    def get(encode: Callable[[], NDArray[np.float32]]) -> str:
        try:
            return repr(cache.get(b"a", encode))
        except KeyError as e:
            return str(e)

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(get, [fail] * 4)] == ["'mine'"] * 4
    assert (n_calls, cache.n_encoded, len(cache)) == (4, 0, 0)
    assert len(cache.get(b"a", lambda: rows(5))) == 5
