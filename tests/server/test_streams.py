"""Named streams: read on after a lost connection, and stopped by name."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from support.http_requests import Reply, get, post, send
from support.server_state import engine_of, n_requests, wait_for

from llama_cffi import LlamaPool
from llama_cffi.demo import model_path
from llama_cffi.server.http_server import HttpServer
from llama_cffi.server.served_model import ServedModel
from llama_cffi.server.serving import serve

ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is 12 + 30?"}],
    "temperature": 0, "max_tokens": 24, "ignore_eos": True, "stream": True,
}  # fmt: skip
CHAT = "/v1/chat/completions"


@contextmanager
def opened(
    server: HttpServer, name: str | None, path: str = CHAT, asked: Any = ASK, **headers: str
) -> Iterator[http.client.HTTPResponse]:
    """A stream whose headers are here; the connection is closed at the end."""
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    fields = {"content-type": "application/json", **headers}
    if name is not None:
        fields["X-Conversation-Id"] = name
    with closing(connection):
        connection.request("POST", path, json.dumps(asked), fields)
        with closing(connection.getresponse()) as response:
            yield response


@contextmanager
def paused(pool: LlamaPool) -> Iterator[None]:
    engine_of(pool).pause()
    try:
        yield
    finally:
        engine_of(pool).resume()


def where(server: HttpServer, name: str, start: object = None) -> str:
    query = "" if start is None else f"&from={start}"
    return f"{server.url}/v1/stream?conv_id={quote(name, safe='')}{query}"


def content(reply: Reply) -> str:
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, done = reply.events
    assert done == "[DONE]"
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def lookup(server: HttpServer, *names: str, **headers: str) -> Any:
    return post(f"{server.url}/v1/streams/lookup", {"conversation_ids": names}, **headers).json


@pytest.mark.behaviour("streams: a broken stream can be resumed by its name")
def test_a_broken_stream_is_read_on(server: HttpServer, pool: LlamaPool) -> None:
    name = "talks/1::demo"
    expected = content(post(f"{server.url}{CHAT}", ASK))
    with paused(pool):
        with opened(server, name) as response, opened(server, None):
            head = response.read(40)  # of the first chunk, before any token
            wait_for(lambda: n_requests(pool) == 2)
        wait_for(lambda: n_requests(pool) == 1)  # the one without a name ends with its client
        (told,) = lookup(server, name, "other")
        assert (told["conversation_id"], told["is_done"]) == (name, False)
        assert told["total_bytes"] >= len(head)
    rest = get(where(server, name, len(head)))
    whole = get(where(server, name))
    assert whole.body == head + rest.body
    assert content(whole) == expected
    assert get(f"{server.url}/v1/stream/{quote(name)}?from=7").body == whole.body[7:]
    (told,) = lookup(server, name)
    assert told["is_done"]
    assert told["total_bytes"] == len(whole.body)
    assert told["started_at"] <= told["completed_at"]
    assert get(where(server, name, len(whole.body))).body == b""
    for start in (len(whole.body) + 1, -1, "x", "9" * 40):
        reply = get(where(server, name, start))
        assert (reply.status, reply.error["param"]) == (400, "from")
    wait_for(lambda: not n_requests(pool))


@pytest.mark.behaviour("streams: a stream can be stopped by its name")
def test_a_stream_is_stopped(server: HttpServer, pool: LlamaPool) -> None:
    for path in (where(server, "a/b"), f"{server.url}/v1/stream/a/b"):
        with paused(pool), opened(server, "a/b") as response:
            wait_for(lambda: n_requests(pool) == 1)
            assert send("DELETE", path).status == 204
            wait_for(lambda: n_requests(pool) == 0)
            assert b"[DONE]" not in response.read()
        assert get(path).status == 404
        assert send("DELETE", path).status == 404
        assert lookup(server, "a/b") == []
    assert get(f"{server.url}/v1/stream").status == 400


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "1 +", "max_tokens": 6, "temperature": 0}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 16}),
        ("/v1/messages", {"messages": ASK["messages"], "max_tokens": 6}),
        ("/completion", {"prompt": "1 +", "n_predict": 6, "temperature": 0}),
    ],
)
def test_every_stream_can_have_a_name(server: HttpServer, path: str, asked: Any) -> None:
    with opened(server, path, path, {**asked, "stream": True}) as response:
        body = response.read()
        assert response.headers["x-accel-buffering"] == "no"
    assert body
    assert get(where(server, path)).body == body


def test_a_client_reads_its_own_stream_as_without_a_name(server: HttpServer) -> None:
    with opened(server, "own") as response:
        assert response.status == 200
        assert response.headers["x-request-id"].startswith("req_")
        body = response.read()
    assert content(Reply(200, {"content-type": "text/event-stream"}, body)) == content(
        post(f"{server.url}{CHAT}", ASK)
    )


def test_only_streams_that_begin_are_kept(server: HttpServer) -> None:
    for asked, status in (({**ASK, "stream": False}, 200), ({**ASK, "messages": 3}, 400)):
        with opened(server, "none", asked=asked) as response:
            assert response.status == status
            assert response.headers["content-type"] == "application/json"
            assert json.loads(response.read())
        assert lookup(server, "none") == []
    for name in ("", "x" * 201):
        with opened(server, name) as response:
            assert response.status == 400
    for wrong in ("none", [3], None):
        body = {"conversation_ids": wrong}
        assert post(f"{server.url}/v1/streams/lookup", body).status == 400


def test_a_new_stream_of_a_name_stops_the_one_before(server: HttpServer, pool: LlamaPool) -> None:
    with paused(pool), opened(server, "twice"):
        wait_for(lambda: n_requests(pool) == 1)
        (first,) = engine_of(pool).active_requests
        with opened(server, "twice"):
            wait_for(lambda: first.finished)
    assert content(get(where(server, "twice"))) == content(post(f"{server.url}{CHAT}", ASK))


def test_the_streams_of_another_key_are_not_found(pool: LlamaPool) -> None:
    one, other = {"x-api-key": "one"}, {"x-api-key": "other"}
    with pool.serve(api_keys=["one", "other"]) as server:
        with opened(server, "mine", **one) as response:
            body = response.read()
        assert get(where(server, "mine"), **one).body == body
        assert get(where(server, "mine"), **other).status == 404
        assert lookup(server, "mine", **other) == []
        assert send("DELETE", where(server, "mine"), None, other).status == 404
        assert send("DELETE", where(server, "mine")).status == 401
        assert send("DELETE", where(server, "mine"), None, one).status == 204


@pytest.mark.behaviour("streams: a client that leaves while the model loads can come back, or stop")
def test_a_stream_whose_model_loads_can_be_resumed_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, load = threading.Event(), ServedModel.open

    def open_slowly(model: ServedModel, cancelled: threading.Event) -> None:
        wait_for(gate.is_set)
        load(model, cancelled)

    monkeypatch.setattr(ServedModel, "open", open_slowly)
    (tmp_path / "m.gguf").symlink_to(model_path())
    asked = {**ASK, "model": "m", "max_tokens": 4}
    with serve(models_dir=tmp_path, port=0) as server:
        for name in ("kept", "stopped"):
            parts = urlsplit(server.url)
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
            with closing(connection):
                fields = {"content-type": "application/json", "X-Conversation-Id": name}
                connection.request("POST", CHAT, json.dumps(asked), fields)
                wait_for(lambda name=name: lookup(server, name) != [])  # type: ignore[misc]
        reply = get(where(server, "kept"))
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert send("DELETE", where(server, "stopped")).status == 204
        gate.set()
        wait_for(lambda: get(where(server, "kept")).status == 200)
        assert content(get(where(server, "kept")))
        assert get(where(server, "stopped")).status == 404
