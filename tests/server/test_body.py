"""Bodies: bounded in size, depth and time, and every field of every wrong type."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from support.http_requests import connect, post, send

from llama_cffi import LlamaPool
from llama_cffi.server import chat, completions, embeddings, rerank, tokens

URLS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/tokenize"]
JSON = {"content-type": "application/json"}
GOOD: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "completions": {"prompt": "x", "max_tokens": 1},
    "embeddings": {"input": "x"},
    "rerank": {"query": "x", "documents": ["y"]},
    "tokenize": {"content": "x"},
    "detokenize": {"tokens": [5]},
}
FIELDS = {
    "chat/completions": chat._FIELDS,
    "completions": completions._FIELDS,
    "embeddings": embeddings._FIELDS,
    "rerank": rerank._FIELDS,
    "tokenize": tokens._TOKENIZE,
    "detokenize": tokens._DETOKENIZE,
}
# Right, and long to answer.
LENGTHS = (-1, 7, 2**31)
SLOW = {"n": (7,), "best_of": (7,), "max_tokens": LENGTHS, "n_predict": LENGTHS,
        "max_completion_tokens": LENGTHS}  # fmt: skip
WRONG: list[Any] = [
    True, 0, -1, 7, 2**31, 2**63, -(2**70), 1.5, 1e300, "", "x", "\x00", [], [[]], [None], [True],
    ["x"], [1, 2], [1e300], [{}], {}, {"x": None}, {"type": 5}, {"a": {"b": [1, {"c": []}]}},
]  # fmt: skip


@pytest.mark.behaviour("robustness: a wrong type in any field of any route is 4xx")
@pytest.mark.parametrize(
    ("route", "field"), [(route, field) for route in GOOD for field in FIELDS[route]]
)
def test_no_value_of_a_field_is_a_5xx(url: str, pool: LlamaPool, route: str, field: str) -> None:
    for value in WRONG:
        if value in SLOW.get(field, ()):
            continue
        reply = post(f"{url}/{route}", {**GOOD[route], field: value})
        if route == "rerank" and reply.status == 501:
            continue  # a model that does not rerank
        assert reply.status in (200, 400), (value, reply.body)
        if reply.status == 400:
            assert reply.error["type"] in ("invalid_request_error", "exceed_context_size_error")


@pytest.mark.parametrize("path", URLS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"   ", b"{", b"nonsense", b"[]", b"5", b"null", b'"text"', b'{"a": NaN}',
        b'{"a": Infinity}', b'{"a": 1}}', b"\xff\xfe{}", b'{"a": "\xc3"}', b'{"a": 1' + b"0" * 5000,
        b'{"a": ' + b"1" * 5000 + b"}", b"{'a': 1}", b'{"prompt": "\\ud800"}', b'{"\\udc00": 1}',
        b'{"messages": [{"role": "user", "content": "\\ud83d x"}]}',
    ],
)  # fmt: skip
def test_what_is_not_a_json_object_is_400(url: str, path: str, body: bytes) -> None:
    reply = send("POST", url.removesuffix("/v1") + path, body, JSON)
    assert reply.status == 400, reply.body
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.behaviour("robustness: lone surrogates break nothing")
def test_surrogate_pairs_are_characters(url: str) -> None:
    reply = send("POST", f"{url}/tokenize", b'{"content": "\\ud83d\\ude00"}', JSON)
    assert reply.status == 200
    assert post(f"{url}/detokenize", reply.json).json == {"content": "\U0001f600"}


@pytest.mark.behaviour("robustness: JSON of 10,000 levels is 400")
@pytest.mark.parametrize("path", URLS)
@pytest.mark.parametrize("opening", [b'{"a":', b"[", b'{"a":['])
def test_json_of_10000_levels_is_400(url: str, path: str, opening: bytes) -> None:
    for body in (opening * 10_000, b'{"messages": ' + opening * 10_000):
        reply = send("POST", url.removesuffix("/v1") + path, body, JSON)
        assert reply.status == 400
        assert "deeper than 100" in reply.error["message"]


def test_brackets_in_text_are_no_levels(url: str) -> None:
    text = '[{"' * 500
    tokens = post(f"{url}/tokenize", {"content": text})
    assert tokens.status == 200
    assert post(f"{url}/detokenize", tokens.json).json["content"] == text


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("text/plain", 415), ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data", 415), ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("application/vnd.api+json", 200),
    ],
)  # fmt: skip
def test_the_content_type_must_be_json(url: str, kind: str, status: int) -> None:
    reply = send("POST", f"{url}/tokenize", b'{"content": "x"}', {"content-type": kind})
    assert reply.status == status
    if status == 415:
        assert kind in reply.error["message"]


def head(length: str) -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"{length}\r\n\r\n"
    ).encode()


def answer_of(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the rest of a response, up to the end of the connection."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return int(data.split()[1]), data


@pytest.mark.behaviour("robustness: large bodies and headers are refused")
def test_a_body_of_1_gb_is_refused_when_announced(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(head(f"Content-Length: {2**30}") + b"{")
        status, data = answer_of(connection)
    assert status == 413
    assert b"request_too_large_error" in data
    assert b"connection: close" in data.lower()


def test_a_body_in_chunks_is_refused_where_it_exceeds_the_limit(pool: LlamaPool) -> None:
    with pool.serve(max_body_bytes=10_000) as server, connect(server.url) as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        for _ in range(3):
            connection.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
        status, _ = answer_of(connection)
    assert status == 413


def test_a_body_that_does_not_arrive_is_given_up(pool: LlamaPool) -> None:
    with pool.serve(body_timeout_s=0.05) as server, connect(server.url) as connection:
        connection.sendall(head("Content-Length: 100") + b"{")
        status, data = answer_of(connection)
    assert status == 408
    assert b"did not arrive" in data


@pytest.mark.behaviour("robustness: large bodies and headers are refused")
def test_large_headers_are_refused_and_long_keys_are_not(url: str) -> None:
    long = send("POST", f"{url}/tokenize", b'{"content":"x"}', {**JSON, "x-api-key": "k" * 30_000})
    assert long.status == 200
    with connect(url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nx: " + b"y" * 300_000)
        try:
            status, _ = answer_of(connection)
        except (ConnectionResetError, BrokenPipeError):
            return  # it was closed before everything was read
    assert status in (400, 431)


@pytest.mark.parametrize("sent", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_headers_that_do_not_arrive_are_given_up(pool: LlamaPool, sent: bytes) -> None:
    with pool.serve(body_timeout_s=0.05) as server, connect(server.url) as connection:
        if not sent:
            assert connection.recv(100) == b""
            return
        # The second request of a connection, too.
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(sent)
        status, data = answer_of(connection)
    assert status == 408
    assert b"did not arrive within 0.05 s" in data


def test_the_server_still_answers(url: str) -> None:
    body = json.dumps(GOOD["completions"]).encode()
    assert send("POST", f"{url}/completions", body, JSON).status == 200
