from __future__ import annotations

import pytest

from llama_cffi.binding import get_library
from llama_cffi.binding.context.threadpool import ThreadPool
from llama_cffi.binding.processors import thread_count
from llama_cffi.errors import ValidationError
from llama_cffi.libs_fetch.machine import physical_cores, usable_cpus


def test_counts() -> None:
    usable = usable_cpus()
    assert 1 <= physical_cores() <= usable
    assert thread_count("n", 0) == physical_cores()
    assert thread_count("n", 1) == 1
    assert thread_count("n", 10_000) == min(usable, 512)
    for wanted in (-1, 1.5, "2", None, 2**31):
        with pytest.raises(ValidationError, match="n_threads"):
            thread_count("n_threads", wanted)  # type: ignore[arg-type]


def test_pool() -> None:
    library = get_library()
    with ThreadPool(library, 2) as pool:
        assert pool.n_threads == 2
    assert pool.closed
    for wanted in (0, -1, 513, 10_000):
        with pytest.raises(ValidationError):
            ThreadPool(library, wanted)
