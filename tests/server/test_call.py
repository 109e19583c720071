"""Requests own their answers: leaving at any moment ends them; keys; the queue's bound."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.http_requests import Reply, connect, get, post, request_bytes, send
from support.server_state import engine_of, n_requests, states, wait_for

from llama_cffi import LlamaPool, RequestState
from llama_cffi.demo import model_path
from llama_cffi.server.call import ServerState
from llama_cffi.server.http_server import HttpServer

LONG: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True, "temperature": 0}
KINDS = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    ("/v1/completions", {"prompt": "hello"}),
    ("/completion", {"prompt": "hello"}),
]


@pytest.fixture(scope="module")
def busy() -> Iterator[LlamaPool]:
    """A model whose engine the tests pause; prompts take many steps."""
    options: Any = {"n_ctx": 1024, "n_threads": 1, "n_batch": 16}
    with LlamaPool(model_path(), n_parallel=2, **options) as pool:
        yield pool


@pytest.fixture(scope="module")
def busy_server(busy: LlamaPool) -> Iterator[HttpServer]:
    with busy.serve(max_waiting=2, ping_s=0.05) as server:
        yield server


@pytest.fixture
def paused(busy: LlamaPool) -> Iterator[LlamaPool]:
    """The same, which runs no step during the test."""
    engine_of(busy).pause()
    yield busy
    engine_of(busy).resume()
    wait_for(lambda: n_requests(busy) == 0)


def state_of(server: HttpServer) -> ServerState:
    return server._state


def all_is_free(server: HttpServer, pool: LlamaPool) -> bool:
    admitted = sum(model.n_requests for model in state_of(server).models)
    return not (n_requests(pool) or admitted or state_of(server).calls)


def leave(connection: socket.socket, reset: bool) -> None:
    if reset:  # RST instead of FIN
        linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()


def ask(server: HttpServer, path: str, body: Any) -> socket.socket:
    connection = connect(server.url)
    connection.sendall(request_bytes(path, {**body, **LONG}))
    return connection


@pytest.mark.behaviour(
    "robustness: a client that leaves in the queue, in prefill, in decode "
    "or before the first event frees its slot"
)
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), KINDS)
def test_leaving_before_the_first_event_frees_the_slot(
    paused: LlamaPool, busy_server: HttpServer, path: str, body: Any, stream: bool, reset: bool
) -> None:
    connection = ask(busy_server, path, {**body, "stream": stream})
    wait_for(lambda: n_requests(paused) == 1)
    if stream:  # the headers are there before any token
        assert connection.recv(12) == b"HTTP/1.1 200"
    leave(connection, reset)
    wait_for(lambda: all_is_free(busy_server, paused))


@pytest.mark.behaviour(
    "robustness: a client that leaves in the queue, in prefill, in decode "
    "or before the first event frees its slot"
)
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_the_queue_frees_the_place(
    busy: LlamaPool, busy_server: HttpServer, stream: bool
) -> None:
    path, body = KINDS[1]
    running = [ask(busy_server, path, body) for _ in range(2)]
    wait_for(lambda: states(busy) == [RequestState.DECODING] * 2)
    waiting = ask(busy_server, path, {**body, "stream": stream})
    wait_for(lambda: n_requests(busy) == 3)
    engine_of(busy).pause()
    assert RequestState.PENDING in states(busy)
    leave(waiting, False)
    wait_for(lambda: n_requests(busy) == 2)
    engine_of(busy).resume()
    for connection in running:
        leave(connection, False)
    wait_for(lambda: all_is_free(busy_server, busy))


@pytest.mark.behaviour(
    "robustness: a client that leaves in the queue, in prefill, in decode "
    "or before the first event frees its slot"
)
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_prefill_frees_the_slot(
    busy: LlamaPool, busy_server: HttpServer, stream: bool
) -> None:
    tokens = [7 + i % 50 for i in range(900)]
    for attempt in range(20):  # until the pause comes during the prefill
        body = {"prompt": [attempt + 100, *tokens], "stream": stream}
        connection = connect(busy_server.url)
        connection.sendall(request_bytes("/v1/completions", {**body, **LONG}))
        wait_for(lambda: bool(states(busy)) and states(busy)[0] is not RequestState.PENDING)
        engine_of(busy).pause()
        found = states(busy)
        leave(connection, False)
        wait_for(lambda: all_is_free(busy_server, busy))
        engine_of(busy).resume()
        if found == [RequestState.PREFILLING]:
            return
    raise AssertionError("no attempt was caught in prefill")


@pytest.mark.behaviour(
    "robustness: a client that leaves in the queue, in prefill, in decode "
    "or before the first event frees its slot"
)
@pytest.mark.behaviour("completion: a client that times out frees its slot")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), KINDS)
def test_leaving_in_decode_frees_the_slot(
    busy: LlamaPool, busy_server: HttpServer, path: str, body: Any, stream: bool
) -> None:
    connection = ask(busy_server, path, {**body, "stream": stream})
    wait_for(lambda: states(busy) == [RequestState.DECODING])
    leave(connection, True)
    wait_for(lambda: all_is_free(busy_server, busy))


def test_leaving_during_the_body_leaves_nothing(busy: LlamaPool, busy_server: HttpServer) -> None:
    connection = connect(busy_server.url)
    connection.sendall(request_bytes("/v1/completions", {"prompt": "x" * 1000})[:-500])
    wait_for(lambda: len(state_of(busy_server).calls) == 1)
    leave(connection, False)
    wait_for(lambda: all_is_free(busy_server, busy))


@pytest.mark.behaviour(
    "robustness: streams are not compressed or buffered, and silent ones get comments"
)
def test_a_silent_stream_gets_comments(paused: LlamaPool, busy_server: HttpServer) -> None:
    path, body = KINDS[0]
    connection = ask(busy_server, path, {**body, "stream": True})
    received = b""
    while received.count(b": ping\n\n") < 3:
        received += connection.recv(4096)
    leave(connection, False)


@pytest.mark.behaviour("robustness: a full queue is 429 with Retry-After")
def test_a_full_queue_is_429_and_can_be_retried(paused: LlamaPool, busy_server: HttpServer) -> None:
    path, body = KINDS[1]
    connections = [ask(busy_server, path, body) for _ in range(4)]  # 2 run, 2 wait
    wait_for(lambda: n_requests(paused) == 4)
    for stream in (False, True):
        reply = post(busy_server.url + path, {**body, "stream": stream})
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) >= 1
        assert "x-should-retry" not in reply.headers
        assert reply.error["type"] == "rate_limit_error"
    for connection in connections:
        leave(connection, False)
    wait_for(lambda: all_is_free(busy_server, paused))


def test_more_answers_than_ever_fit_are_400(busy_server: HttpServer) -> None:
    reply = post(f"{busy_server.url}/v1/completions", {"prompt": "x", "n": 5})
    assert reply.status == 400
    assert "limit is 4" in reply.error["message"]


@pytest.mark.behaviour("robustness: a reader that stops is cut, and others are not")
def test_a_reader_that_stops_is_cut_and_others_are_not(busy: LlamaPool) -> None:
    with busy.serve(send_timeout_s=0.2, ping_s=0.05) as server:
        server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect(("127.0.0.1", server.port))
        body = {"prompt": "x", "logprobs": 20, "stream": True, **LONG}  # far more than buffers hold
        slow.sendall(request_bytes("/v1/completions", body))
        wait_for(lambda: n_requests(busy) > 0)
        other = post(f"{server.url}/v1/completions", {"prompt": "1 + 1 =", "max_tokens": 4})
        assert other.status == 200
        wait_for(lambda: all_is_free(server, busy))
        slow.close()


def test_running_streams_end_with_an_error_when_the_server_stops(busy: LlamaPool) -> None:
    path, body = KINDS[0]
    replies: list[Reply] = []
    with busy.serve() as server:
        url = server.url
        ask_all = {**body, **LONG, "stream": True}
        thread = threading.Thread(target=lambda: replies.append(post(url + path, ask_all)))
        thread.start()
        wait_for(lambda: states(busy) == [RequestState.DECODING])
        server.close()
        thread.join()
    (reply,) = replies
    assert reply.status == 200
    last = reply.events[-1]["error"]
    assert last["type"] == "unavailable_error"
    assert "shutting down" in last["message"]
    assert n_requests(busy) == 0


@pytest.mark.behaviour("robustness: SIGTERM lets running answers end and refuses new ones")
def test_draining_refuses_new_work_and_lets_running_answers_end(busy: LlamaPool) -> None:
    path, body = KINDS[0]
    with busy.serve() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"ok"}'
        replies: list[Reply] = []
        ask_all = {**body, "stream": True, "max_tokens": 60, "ignore_eos": True}
        thread = threading.Thread(target=lambda: replies.append(post(server.url + path, ask_all)))
        engine_of(busy).pause()
        thread.start()
        wait_for(lambda: n_requests(busy) == 1)
        closing = threading.Thread(target=lambda: server.close(drain_s=60))
        closing.start()
        wait_for(lambda: state_of(server).is_draining)
        for method, where in (("GET", "/health"), ("POST", path)):
            connection.request(
                method, where, json.dumps(body), {"content-type": "application/json"}
            )
            reply = connection.getresponse()
            assert reply.status == 503
            assert b"shutting down" in reply.read()
        engine_of(busy).resume()
        thread.join()
        closing.join()
        connection.close()
    assert replies[0].events[-1] == "[DONE]"


KEYS = ["first-key", "schlüssel"]


@pytest.fixture(scope="module")
def guarded(busy: LlamaPool) -> Iterator[HttpServer]:
    with busy.serve(api_keys=KEYS, cors_origins=["localhost", "https://chat.example"]) as server:
        yield server


@pytest.mark.behaviour("security: the right key is served, by both headers and by the client")
def test_the_right_key_in_either_header_is_served(guarded: HttpServer) -> None:
    body = {"prompt": "1 + 1 =", "max_tokens": 1}
    url = f"{guarded.url}/v1/completions"
    assert post(url, body, authorization="Bearer first-key").status == 200
    assert post(url, body, authorization="bearer first-key").status == 200
    assert post(url, body, **{"x-api-key": "first-key"}).status == 200


@pytest.mark.behaviour("security: a wrong key is 401")
@pytest.mark.parametrize(
    "headers",
    [
        {}, {"authorization": "Bearer wrong"}, {"authorization": "first-key"},
        {"authorization": "Basic first-key"}, {"x-api-key": ""}, {"authorization": "Bearer "},
        {"x-api-key": "first-key "[:-2]}, {"authorization": "Bearer first-key,second"},
    ],
)  # fmt: skip
def test_a_wrong_key_is_401(guarded: HttpServer, headers: dict[str, str]) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"):
        reply = post(guarded.url + path, {}, **headers)
        assert reply.status == 401
        assert reply.error["type"] == "authentication_error"
        assert reply.error["code"] == "invalid_api_key"
        assert "first-key" not in reply.error["message"]
    assert get(f"{guarded.url}/props", **headers).status == 401


@pytest.mark.behaviour("security: /health and /models are public")
def test_health_and_models_need_no_key(guarded: HttpServer) -> None:
    for path in ("/health", "/v1/health", "/models", "/v1/models", "/v1/models/demo"):
        assert get(guarded.url + path).status == 200


@pytest.mark.behaviour("security: preflights are answered for the listed origins only")
@pytest.mark.behaviour(
    "security: localhost as origin means this machine, and nothing that looks like it"
)
@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True), ("http://127.0.0.1", True), ("https://[::1]:1", True),
        ("https://chat.example", True), ("https://localhost.evil.com", False),
        ("http://evil.com", False), ("http://127.0.0.1.evil.com", False),
        ("http://xlocalhost", False), ("null", False), ("https://chat.example.evil.com", False),
    ],
)  # fmt: skip
def test_only_listed_origins_may_call(guarded: HttpServer, origin: str, allowed: bool) -> None:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    reply = send("OPTIONS", f"{guarded.url}/v1/chat/completions", None, asked)
    assert (reply.headers.get("access-control-allow-origin") == origin) is allowed
    assert (reply.status == 200) is allowed
    assert (get(f"{guarded.url}/health", origin=origin)
            .headers.get("access-control-allow-origin") == origin) is allowed  # fmt: skip


def test_without_cors_no_origin_is_allowed(busy_server: HttpServer) -> None:
    reply = get(f"{busy_server.url}/health", origin="http://localhost:3000")
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_every_response_has_an_id(busy_server: HttpServer) -> None:
    ids = {get(f"{busy_server.url}/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
