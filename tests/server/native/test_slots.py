"""GET /slots: what runs, without its text."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.http_requests import get
from support.server_state import engine_of, n_requests, wait_for

from llama_cffi import LlamaPool
from llama_cffi.server.http_server import HttpServer


@pytest.mark.behaviour(
    "basics: /slots is 501 when it is off",
)
def test_slots_are_501_when_off(server: HttpServer) -> None:
    reply = get(f"{server.url}/slots")
    assert (reply.status, reply.error["type"]) == (501, "not_supported_error")
    assert "--slots" in reply.error["message"]
    assert get(f"{server.url}/props").json["endpoint_slots"] is False


@pytest.mark.behaviour(
    "basics: /slots has the context size, and the prompts only when debugging",
)
def test_slots_tell_context_size_and_state_but_no_text(pool: LlamaPool) -> None:
    with pool.serve(slots=True) as server:
        assert get(f"{server.url}/props").json["endpoint_slots"] is True
        idle = get(f"{server.url}/slots").json
        assert [slot["id"] for slot in idle] == [0, 1, 2, 3]
        assert {(slot["n_ctx"], slot["is_processing"]) for slot in idle} == {(512, False)}
        assert get(f"{server.url}/slots?fail_on_no_slot=1").status == 200
        engine = engine_of(pool)
        engine.pause()
        where = urlsplit(server.url)
        assert where.hostname is not None
        connections = [http.client.HTTPConnection(where.hostname, where.port) for _ in range(4)]
        try:
            asked: Any = {"prompt": "a secret word", "n_predict": 400, "ignore_eos": True}
            for connection in connections:
                connection.request("POST", "/completion", json.dumps({**asked, "stream": True}))
            wait_for(lambda: n_requests(pool) == 4)
            engine.resume()
            wait_for(lambda: len(engine.scheduler.running) == 4)
            engine.pause()
            assert get(f"{server.url}/slots?fail_on_no_slot=1").status == 503
            reply = get(f"{server.url}/slots")
            assert [slot["is_processing"] for slot in reply.json] == [True] * 4
            assert len({slot["id_task"] for slot in reply.json}) == 4
            assert all(0 < slot["next_token"]["n_remain"] <= 400 for slot in reply.json)
            assert b"secret" not in reply.body
        finally:
            engine.resume()
            for connection in connections:
                connection.close()
        wait_for(lambda: n_requests(pool) == 0)


def test_one_slot_without_a_scheduler(tiny_model: Any) -> None:
    with (
        LlamaPool(tiny_model, n_parallel=1, n_ctx=64, n_threads=1) as pool,
        pool.serve(slots=True) as server,
    ):
        (slot,) = get(f"{server.url}/slots").json
        assert (slot["id"], slot["is_processing"], slot["speculative"]) == (0, False, False)
