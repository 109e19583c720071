"""Context shift over HTTP, as --context-shift asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.http_requests import post

from llama_cffi import LlamaPool
from llama_cffi.server.http_server import HttpServer

PROMPT = [5 + i % 40 for i in range(226)]
ASK: dict[str, Any] = {"prompt": PROMPT, "n_predict": 96, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def off(tiny_model: Path) -> Iterator[HttpServer]:
    """A server with a context of 256 tokens."""
    with LlamaPool(tiny_model, 2, n_ctx=256, n_threads=1) as pool, pool.serve() as server:
        yield server


@pytest.mark.behaviour(
    "context shift: on: the answer exceeds the context and is marked as truncated",
)
def test_context_shift_on_goes_beyond_the_context(tiny_model: Path) -> None:
    with (
        LlamaPool(tiny_model, 1, n_ctx=256, n_threads=1, context_policy="shift") as pool,
        pool.serve() as server,
    ):
        found = post(f"{server.url}/completion", ASK).json
        assert (found["tokens_predicted"], found["truncated"]) == (96, True)
        assert (found["tokens_evaluated"], found["stop_type"]) == (226, "limit")
        for stream in (False, True):
            reply = post(
                f"{server.url}/completion", {**ASK, "prompt": PROMPT * 2, "stream": stream}
            )
            assert (reply.status, reply.error["n_ctx"]) == (400, 256)


@pytest.mark.behaviour(
    "context shift: off: n_predict -1 fills the context",
)
def test_context_shift_off_fills_the_context(off: HttpServer) -> None:
    found = post(f"{off.url}/completion", {**ASK, "prompt": PROMPT[:200], "n_predict": -1}).json
    assert found["tokens_evaluated"] + found["tokens_predicted"] == 256
    assert (found["truncated"], found["stop_type"]) == (True, "limit")


@pytest.mark.behaviour(
    "context shift: off: the message about a long prompt names the context size",
)
@pytest.mark.parametrize("stream", [False, True])
def test_context_shift_off_refuses_a_long_prompt_with_the_sizes(
    off: HttpServer, stream: bool
) -> None:
    reply = post(f"{off.url}/completion", {**ASK, "prompt": PROMPT * 2, "stream": stream})
    assert (reply.status, reply.error["type"]) == (400, "exceed_context_size_error")
    assert (reply.error["n_prompt_tokens"], reply.error["n_ctx"]) == (452, 256)
    assert "452" in reply.error["message"]
    assert "256" in reply.error["message"]


@pytest.mark.behaviour(
    "context shift: off: a stream ends with length",
)
def test_context_shift_off_a_stream_ends_with_length(off: HttpServer) -> None:
    last = post(f"{off.url}/completion", {**ASK, "stream": True}).events[-1]
    assert (last["stop_type"], last["truncated"]) == ("limit", True)
    asked = {"messages": [{"role": "user", "content": "x" * 150}], "stream": True}
    *_, chunk, done = post(f"{off.url}/v1/chat/completions", {**asked, "ignore_eos": True}).events
    assert done == "[DONE]"
    assert chunk["choices"][0]["finish_reason"] == "length"
