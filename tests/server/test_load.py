"""A quick run of tools/load.py in this process; `nox -s load` runs more."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.rounding import EXACT
from support.server_state import n_requests

from llama_cffi import LlamaPool
from llama_cffi.server.http_server import HttpServer

PATH = Path(__file__).parents[2] / "tools" / "load.py"
spec = importlib.util.spec_from_file_location("load", PATH)
assert spec is not None
assert spec.loader is not None
load: Any = importlib.util.module_from_spec(spec)
sys.modules["load"] = load
spec.loader.exec_module(load)


@pytest.fixture(scope="module")
def exact(demo_f32: Path) -> Iterator[LlamaPool]:
    """A model whose answers do not depend on what is generated with them."""
    options: Any = {"n_parallel": 4, "n_ctx": 512, "n_threads": 1, "n_batch": 64, **EXACT}
    with LlamaPool(str(demo_f32), **options) as pool:
        yield pool


@pytest.fixture(scope="module")
def loaded(exact: LlamaPool) -> Iterator[HttpServer]:
    with exact.serve(metrics=True, max_waiting=12, body_timeout_s=1.0) as server:
        yield server


@pytest.mark.behaviour(
    "robustness: 256 streams are complete and equal to the answers given alone",
)
def test_streams_are_whole_and_as_alone(exact: LlamaPool, loaded: HttpServer) -> None:
    """24 clients, of which 16 fit: the others get 429, and try again."""
    tally = asyncio.run(load.streams(loaded.url, 24, 1.0, n_requests=10))
    assert tally.wrong == []
    assert tally.counts.keys() <= {"200", "429"}
    assert tally.counts["200"] >= 10
    assert n_requests(exact) == 0


@pytest.mark.behaviour(
    "robustness: a reader that stops is cut, and others are not",
)
def test_slow_readers_delay_nobody_and_get_everything(exact: LlamaPool, loaded: HttpServer) -> None:
    tally = asyncio.run(load.slow(loaded.url, 3, 0.3, max_tokens=50))
    assert tally.wrong == []
    assert tally.counts["200"] > 3
    assert n_requests(exact) == 0


@pytest.mark.behaviour(
    "robustness: a half-open connection is cut",
)
def test_half_open_connections_hold_nothing(exact: LlamaPool, loaded: HttpServer) -> None:
    tally = asyncio.run(load.half_open(loaded.url, 12, max_tokens=50))
    assert tally.wrong == []
    assert tally.counts["200"] == 10
    assert n_requests(exact) == 0


@pytest.mark.behaviour(
    "robustness: a client that leaves in the queue, in prefill, in decode or before the first "
    "event frees its slot",
)
def test_who_leaves_at_any_moment_frees_the_slot_within_a_step(
    exact: LlamaPool, loaded: HttpServer
) -> None:
    found = asyncio.run(load.leave(loaded, 40, n_clients=8))
    assert found.tally.wrong == []
    assert sum(found.tally.counts[f"at {moment}"] for moment in load.MOMENTS) == 40
    assert len(found.freed) > 10
    assert max(found.freed) <= 1
    assert n_requests(exact) == 0


def test_the_check_finds_wrong_answers() -> None:
    (request,) = load.requests(1)
    whole = b'data: {"choices":[{"delta":{"content":"4"},"finish_reason":"stop"}]}\n\n'
    done = b"data: [DONE]\n\n"
    for status, body, alone, is_right in (
        (200, whole + done, ("4", "stop"), True),
        (429, b"{}", ("4", "stop"), True),
        (200, whole + done, ("5", "stop"), False),
        (200, whole, ("4", "stop"), False),
        (200, done, ("4", "stop"), False),
        (500, b"{}", ("4", "stop"), False),
        (503, b"{}", ("4", "stop"), False),
        (200, whole.replace(b'"stop"', b"null") + done, ("4", None), False),
    ):
        tally = load.Tally()
        tally.check(request, load.Reply(status, body), alone)
        assert (tally.wrong == []) is is_right, (status, body)
