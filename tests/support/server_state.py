"""What a server's engine is doing, seen from a test."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from llama_cffi import LlamaPool, RequestState

__all__ = ["engine_of", "n_requests", "states", "wait_for"]

_LONG_S = 60.0


def engine_of(pool: LlamaPool) -> Any:
    """The `InferenceEngine` of a pool."""
    return pool.llm.engine


def states(pool: LlamaPool) -> list[RequestState]:
    """The states of the requests that run or wait."""
    return [request.state for request in engine_of(pool).active_requests]


def n_requests(pool: LlamaPool) -> int:
    """Number of requests that run or wait."""
    return len(engine_of(pool).active_requests)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; one that never does fails the test."""
    end = time.monotonic() + _LONG_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
