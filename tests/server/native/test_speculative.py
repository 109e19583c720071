"""Speculative decoding over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.http_requests import get, post
from support.rounding import EXACT

from llama_cffi import LlamaPool, PromptLookup
from llama_cffi.server.http_server import HttpServer

# A repeated text, of which the next words are drafted.
TEXT = "one two three four five six. " * 6
ASK: dict[str, Any] = {"prompt": TEXT, "n_predict": 24, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def drafting(demo_f32: Path) -> Iterator[HttpServer]:
    """A server that drafts; two slots of 256 tokens."""
    with (
        LlamaPool(demo_f32, 2, n_ctx=256, n_threads=1, draft=PromptLookup(), **EXACT) as pool,
        pool.serve(slots=True) as server,
    ):
        yield server


def complete(server: HttpServer, **fields: Any) -> Any:
    reply = post(f"{server.url}/completion", {**ASK, **fields})
    assert reply.status == 200, reply.body
    return reply.json


@pytest.mark.behaviour("speculative: the text is the same with and without a draft model")
def test_the_text_is_the_same_with_and_without_drafts(
    drafting: HttpServer, server: HttpServer
) -> None:
    found = complete(drafting)
    assert found["content"] == complete(server)["content"]
    assert 0 < found["timings"]["draft_n_accepted"] <= found["timings"]["draft_n"]
    assert {slot["speculative"] for slot in get(f"{drafting.url}/slots").json} == {True}


@pytest.mark.behaviour("speculative: the limits of the draft length are kept")
@pytest.mark.parametrize("n_max", [0, 1, 2, 4, 8])
def test_the_draft_length_is_limited(drafting: HttpServer, server: HttpServer, n_max: int) -> None:
    found = complete(drafting, n_predict=12, **{"speculative.n_max": n_max})
    assert found["content"] == complete(server, n_predict=12)["content"]
    timings = found["timings"]
    assert ("draft_n" in timings) is (n_max > 0)
    # Each step decodes at most n_max drafts, and gives a token more than it accepts.
    assert timings.get("draft_n", 0) <= n_max * (12 - timings.get("draft_n_accepted", 0))
    assert post(f"{server.url}/completion", {**ASK, "speculative.n_max": -1}).status == 400


@pytest.mark.behaviour("speculative: nothing is drafted past the context")
def test_nothing_is_drafted_past_the_context(drafting: HttpServer) -> None:
    found = complete(drafting, n_predict=-1)
    assert found["tokens_evaluated"] + found["tokens_predicted"] == 256
    assert (found["stop_type"], found["truncated"]) == ("limit", True)


@pytest.mark.behaviour("speculative: parallel requests draft, too")
def test_parallel_requests_draft(drafting: HttpServer) -> None:
    prompts = [TEXT, TEXT[4:], TEXT[8:], TEXT[14:]]
    alone = [complete(drafting, prompt=prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as threads:
        together = [*threads.map(lambda prompt: complete(drafting, prompt=prompt), prompts)]
    assert [a["content"] for a in together] == [a["content"] for a in alone]
    assert all(a["timings"]["draft_n"] > 0 for a in together)
