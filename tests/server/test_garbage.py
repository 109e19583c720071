"""A quick run of tools/fuzz/requests.py; `python -m tools.fuzz requests=20000` runs more."""

from __future__ import annotations

import importlib
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.routing import Route
from support.http_requests import connect, get, post

from llama_cffi.demo import model_path
from llama_cffi.server import chat, completions, embeddings, rerank, tokens
from llama_cffi.server.app import create_app
from llama_cffi.server.native import completion, embedding, infill
from llama_cffi.server.responses import request as responses
from tools.fuzz import requests
from tools.fuzz.requests import BODIES, NO_BODY, Case, case, check

FIELDS: dict[str, Any] = {
    "/v1/chat/completions": chat._FIELDS,
    "/v1/completions": completions._FIELDS,
    "/completion": completion.FIELDS,
    "/infill": infill._FIELDS.keys() - completion.FIELDS.keys(),
    "/embedding": embedding._FIELDS,
    "/v1/embeddings": embeddings._FIELDS,
    "/v1/rerank": rerank._FIELDS,
    "/v1/responses": responses._FIELDS,
    "/tokenize": tokens._TOKENIZE,
    "/detokenize": tokens._DETOKENIZE,
}
SEEDS, CASES = range(10), 30


@pytest.fixture(scope="module")
def root(url: str) -> str:
    """The URL of the server, without /v1."""
    return url.removesuffix("/v1")


@pytest.mark.behaviour(
    "robustness: a wrong type in any field of any route is 4xx",
)
@pytest.mark.parametrize("seed", SEEDS)
def test_no_request_is_a_5xx_or_harms_the_next(root: str, seed: int) -> None:
    for i in range(seed * CASES, (seed + 1) * CASES):
        one = case(random.Random(i))
        try:
            check(one, root)
        except Exception as error:
            raise AssertionError(f"case {i}: {one.what}") from error


@pytest.mark.parametrize("path", BODIES)
def test_what_is_changed_into_garbage_is_right(root: str, path: str) -> None:
    for body in BODIES[path]:
        reply = post(root + path, body)
        refused = (
            {"audio", "suffix"} & body.keys()
            or "rerank" in path
            or path.startswith(("/models/", "/infill", "/slots/"))
        )
        expected = (200, 400, 501) if refused else (404,) if "/control" in path else (200,)
        assert reply.status in expected, (body, reply.body)


def test_every_route_and_field_is_tried() -> None:
    routes = create_app(model_path()).routes
    paths = [(m, r.path) for r in routes if isinstance(r, Route) for m in r.methods or ()]
    tried = {("POST", path) for path in BODIES} | {*NO_BODY}
    same = {"/v1/reranking": "/v1/rerank", "/completions": "/completion",
            "/embeddings": "/embedding"}  # fmt: skip
    for method, path in paths:
        if method == "HEAD":
            continue
        shown = (
            path.replace("/slots/{id}", "/slots/0?action=erase")
            .replace("{name:path}", "demo")
            .replace("{id}", "resp_1")
        )
        shown = shown.replace("{name}", "app.js")
        names = {shown, "/v1" + shown, shown.removeprefix("/v1"), same.get(shown, "")}
        names |= {same.get("/v1" + shown, "")}
        assert any((method, name) in tried for name in names), (method, path)
    for path, fields in FIELDS.items():
        named = {name for body in BODIES[path] for name in body}
        assert {*fields} <= named, (path, {*fields} - named)


NOT_HTTP = [
    b"nonsense\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\na b: c\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n" * 2,
]


@pytest.mark.parametrize("data", NOT_HTTP)
def test_what_is_not_http_gets_a_json_error(root: str, data: bytes) -> None:
    one = Case("", data, "", "")
    assert requests._checked(one, root) == "400"


def test_a_slash_at_the_end_is_another_path(root: str) -> None:
    for reply in (get(f"{root}/v1/models/"), post(f"{root}/v1/completions/", {"prompt": "x"})):
        assert reply.status == 404
        assert reply.error["type"] == "not_found_error"


def test_messages_repeat_only_the_beginning_of_long_values(root: str) -> None:
    long = "x" * 100_000
    messages = [{"role": "user", "content": "x"}]
    for path, body in (
        ("/v1/chat/completions", {"messages": messages, "audio": {"a": long}}),
        ("/v1/responses", {"input": "x", "truncation": long}),
        ("/v1/" + long[:5000], {}),
    ):
        reply = post(root + path, body)
        assert reply.status in (400, 404)
        assert len(reply.error["message"]) < 2000


@contextmanager
def answering(data: bytes) -> Iterator[str]:
    """A server that answers everything with *data*."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def response(status: int, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    "data",
    [
        response(500, b'{"error": {"message": "x", "type": "y"}}'),
        response(400, b"no", "text/plain"),
        response(400, b"no"),
        response(400, b'{"error": {"message": "", "type": "y"}}'),
        response(400, b'{"error": "x"}'),
        response(307, b""),
        response(200, b'{"x": NaN}'),
        response(200, b'data: {"error": {}, "type": "error"}\n\n', "text/event-stream"),
        b"",
    ],
)
def test_the_check_finds_wrong_responses(data: bytes) -> None:
    one = case(random.Random(1))
    with (
        answering(data) as url,
        pytest.raises((AssertionError, KeyError, TypeError, ValueError, OSError)),
    ):
        requests._checked(one._replace(cut=False), url)


def test_cases_are_the_same_for_the_same_seed() -> None:
    importlib.reload(requests)
    for seed in range(50):
        assert requests.case(random.Random(seed)) == requests.case(random.Random(seed))
    assert requests.program(5, 1) == case(random.Random(5)).what


def test_a_connection_that_sends_nothing_hinders_nobody(root: str) -> None:
    with connect(root), connect(root) as half:
        half.sendall(b"POST /tokenize HTTP/1.1\r\n")
        assert post(f"{root}/tokenize", {"content": "x"}).status == 200
