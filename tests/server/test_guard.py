"""Who may use the server, and how much of it: fair shares, limits, TLS, proxies, the log."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.certificates import CERTIFICATE, ENCRYPTED_KEY, KEY, OTHER_KEY, written
from support.http_requests import connect, get, post, request_bytes, send
from support.server_state import engine_of, n_requests, wait_for

from llama_cffi import Llama, LlamaError, LlamaPool, ValidationError
from llama_cffi.demo import model_path
from llama_cffi.server import tokens
from llama_cffi.server.api_keys import ApiKey, read_key_file
from llama_cffi.server.app import create_app
from llama_cffi.server.errors import ApiError
from llama_cffi.server.http_server import HttpServer

LONG: dict[str, Any] = {"prompt": "hello", "max_tokens": 900, "ignore_eos": True, "temperature": 0}
SHORT: dict[str, Any] = {"prompt": "1 + 1 =", "max_tokens": 2, "ignore_eos": True}
CANARY = "canary-7f3a"
KEYS = [ApiKey("key-of-a", "a"), ApiKey("key-of-b", "b", 2), ApiKey("second-of-a", "a"), "plain"]


@pytest.fixture(scope="module")
def busy() -> Iterator[LlamaPool]:
    """A model whose engine the tests pause."""
    with LlamaPool(model_path(), n_parallel=2, n_ctx=1024, n_threads=1) as pool:
        yield pool


@pytest.fixture(scope="module")
def guarded(busy: LlamaPool) -> Iterator[HttpServer]:
    with busy.serve(api_keys=KEYS, max_per_client=4) as server:
        yield server


@pytest.fixture
def ask(busy: LlamaPool) -> Iterator[Callable[..., None]]:
    """Sends a request to a paused engine, and leaves at the end of the test."""
    connections: list[socket.socket] = []

    def start(server: HttpServer, key: str = "", more: dict[str, Any] | None = None) -> None:
        n = n_requests(busy)
        connections.append(connect(server.url))
        data = request_bytes("/v1/completions", {**LONG, **(more or {})})
        connections[-1].sendall(data.replace(b"Host", f"X-Api-Key: {key}\r\nHost".encode(), 1))
        wait_for(lambda: n_requests(busy) > n)

    engine_of(busy).pause()
    yield start
    for connection in connections:
        connection.close()
    engine_of(busy).resume()
    wait_for(lambda: n_requests(busy) == 0)


# Fair shares


def test_a_key_cannot_hold_all_slots(
    busy: LlamaPool, guarded: HttpServer, ask: Callable[..., None]
) -> None:
    for _ in range(3):
        ask(guarded, "key-of-a")
    ask(guarded, "plain")
    engine = engine_of(busy)
    engine.resume()
    wait_for(lambda: len(engine.scheduler.running) == 2)
    engine.pause()
    assert sorted(request.client for request in engine.scheduler.running) == ["a", "key-4"]


def test_keys_of_one_name_are_one_client(
    busy: LlamaPool, guarded: HttpServer, ask: Callable[..., None]
) -> None:
    ask(guarded, "key-of-a")
    ask(guarded, "second-of-a")
    assert {request.client for request in engine_of(busy).active_requests} == {"a"}


@pytest.mark.parametrize(
    ("key", "asked", "priority"),
    [
        ("key-of-b", None, 2), ("key-of-b", 1, 1), ("key-of-b", 5, 2), ("key-of-b", -3, -3),
        ("key-of-a", None, 0), ("key-of-a", 5, 0), ("plain", -1, -1),
    ],
)  # fmt: skip
def test_a_request_may_lower_the_priority_of_its_key(
    busy: LlamaPool, guarded: HttpServer, ask: Callable[..., None],
    key: str, asked: int | None, priority: int,
) -> None:  # fmt: skip
    ask(guarded, key, {"priority": asked})
    assert [request.priority for request in engine_of(busy).active_requests] == [priority]


@pytest.mark.parametrize("value", ["1", 1.5, True, [], {}, 2**31, -(2**70)])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages"])
def test_a_priority_that_is_none_is_400(url: str, path: str, value: Any) -> None:
    reply = post(url.removesuffix("/v1") + path, {"prompt": "x", "priority": value})
    assert reply.status == 400
    assert "priority must be an integer" in reply.json["error"]["message"]


def test_without_keys_addresses_are_clients_and_nobody_goes_first(
    busy: LlamaPool, ask: Callable[..., None]
) -> None:
    with busy.serve() as server:
        ask(server, more={"priority": 7})
        (request,) = engine_of(busy).active_requests
        assert (request.client, request.priority) == ("127.0.0.1", 0)


def test_a_client_with_too_many_requests_gets_429_and_others_do_not(
    guarded: HttpServer, ask: Callable[..., None]
) -> None:
    for key in ("key-of-a", "second-of-a", "key-of-a", "key-of-a"):
        ask(guarded, key)
    reply = post(f"{guarded.url}/v1/completions", SHORT, **{"x-api-key": "second-of-a"})
    assert reply.status == 429
    assert reply.error["code"] == "rate_limit_exceeded"
    assert int(reply.headers["retry-after"]) >= 1
    assert "x-should-retry" not in reply.headers
    ask(guarded, "plain")


def test_answers_of_one_request_count_too(guarded: HttpServer) -> None:
    for _ in range(2):  # nothing is left of a refused one
        for n, status in ((4, 200), (5, 400)):
            body = {**SHORT, "n": n}
            reply = post(f"{guarded.url}/v1/completions", body, **{"x-api-key": "plain"})
            assert reply.status == status
    assert "it may have 4" in reply.error["message"]


# Keys


def test_the_key_file_has_keys_names_and_priorities(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# comment\n\none\ntwo chat\n  three\tbatch   -1 \n", encoding="utf-8")
    assert read_key_file(file) == [
        ApiKey("one"),
        ApiKey("two", "chat"),
        ApiKey("three", "batch", -1),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{CANARY} name x", "must be an integer"), (f"{CANARY} name 1.5", "must be an integer"),
        (f"{CANARY} name 1 more", "4 words"), (f"{CANARY} name {2**31}", "must be from"),
        (f"key name {CANARY}", "must be an integer"), ("good", "there twice"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_told_by_its_number_and_not_shown(
    tmp_path: Path, line: str, message: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"good\n\n{line}\n", encoding="utf-8")
    with pytest.raises(ValidationError, match=message) as caught:
        read_key_file(file)
    assert "line 3" in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_key_file_without_keys_or_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"# nothing\n")
    with pytest.raises(ValidationError, match="has no key"):
        read_key_file(file)
    file.write_bytes(b"\xff" + CANARY.encode())
    with pytest.raises(ValidationError, match="not UTF-8") as caught:
        read_key_file(file)
    assert CANARY not in str(caught.value)


def test_no_repr_and_no_error_shows_a_key(tiny_model: Path) -> None:
    app = create_app(tiny_model, api_keys=[CANARY, ApiKey(CANARY, "x")])
    assert CANARY not in repr(app.state.server.settings)
    assert CANARY not in repr(ApiKey(CANARY))
    for wrong in ([CANARY, 5], [[CANARY]]):
        with pytest.raises(ValidationError, match="api_keys: item") as caught:
            create_app(tiny_model, api_keys=wrong)  # type: ignore[arg-type]
        assert CANARY not in str(caught.value)


# Time


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_504(
    busy: LlamaPool, ask: Callable[..., None], stream: bool
) -> None:
    with busy.serve(max_request_s=0.05) as server:  # the engine is paused
        reply = post(f"{server.url}/v1/completions", {**LONG, "stream": stream})
    if stream:
        assert reply.status == 200
        error = reply.events[-1]["error"]
    else:
        assert reply.status == 504
        assert reply.headers["x-should-retry"] == "false"
        error = reply.error
    assert (error["type"], error["code"]) == ("timeout_error", "timeout")
    wait_for(lambda: n_requests(busy) == 0)


def test_a_model_that_answers_one_at_a_time_has_the_limit_too() -> None:
    with (
        Llama(model_path(), n_ctx=1024, n_threads=1) as llm,
        llm.serve(max_request_s=0.001) as server,
    ):
        assert post(f"{server.url}/v1/completions", LONG).status == 504


@pytest.mark.parametrize(
    ("status", "should_retry", "retry_after"),
    [
        (400, None, None), (401, None, None), (404, None, None), (408, "false", None),
        (413, None, None), (429, None, "1"), (500, "false", None), (501, "false", None),
        (503, None, "5"), (504, "false", None),
    ],
)  # fmt: skip
def test_clients_are_told_whether_to_retry(
    status: int, should_retry: str | None, retry_after: str | None
) -> None:
    headers = ApiError(status, "x").headers
    assert headers.get("x-should-retry") == should_retry
    assert headers.get("Retry-After") == retry_after


# Requests that no route takes


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"), ("POST", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("PUT", "/health", 405, "method_not_allowed"),
    ],
)  # fmt: skip
def test_what_no_route_takes_has_the_error_of_its_status(
    url: str, method: str, path: str, status: int, code: str
) -> None:
    reply = send(method, url.removesuffix("/v1") + path)
    assert reply.status == status
    assert (reply.error["type"], reply.error["code"]) == ("not_found_error", code)
    assert reply.headers["x-request-id"].startswith("req_")
    assert ("allow" in reply.headers) is (status == 405)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("POST", "/v1/messages/nothing", 404, "not_found_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages", 400, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", 400, "invalid_request_error"),
    ],
)
def test_errors_of_messages_have_anthropics_shape_and_the_request_id(
    url: str, method: str, path: str, status: int, kind: str
) -> None:
    reply = send(method, url.removesuffix("/v1") + path, b"{}")
    assert reply.status == status
    assert reply.json.keys() == {"type", "error", "request_id"}
    assert reply.json["error"]["type"] == kind
    assert reply.json["request_id"] == reply.headers["request-id"]


def test_a_stream_of_messages_that_fails_has_the_request_id(
    busy: LlamaPool, ask: Callable[..., None]
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9, "stream": True}
    with busy.serve(max_request_s=0.05) as server:
        reply = post(f"{server.url}/v1/messages", body)
    assert reply.events[-1]["type"] == "error"
    assert reply.events[-1]["request_id"] == reply.headers["request-id"]


# Addresses, TLS, proxies


@pytest.mark.behaviour(
    "basics: listens on two addresses, with key and streams on each",
)
def test_a_server_listens_on_several_addresses(pool: LlamaPool, tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")
    hosts = ["127.0.0.1", *[path] * hasattr(socket, "AF_UNIX")]
    with pool.serve(hosts, api_keys=["k"]) as server:
        assert [url.partition(":")[0] for url in server.urls] == ["http", "unix"][: len(hosts)]
        assert get(f"{server.url}/props").status == 401
        assert get(f"{server.url}/props", **{"x-api-key": "k"}).status == 200
        for _ in hosts[1:]:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(path)
                connection.sendall(b"GET /props HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert connection.recv(4096).startswith(b"HTTP/1.1 401")
    assert not Path(path).exists()


def test_one_address_that_cannot_be_used_closes_the_others(pool: LlamaPool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(LlamaError, match="cannot listen on"):
        pool.serve(["127.0.0.1", "no-such-host.invalid"], port)
    with pool.serve("127.0.0.1", port) as server:
        assert get(f"{server.url}/health").status == 200
    wrong: Any
    for wrong in ([], [5]):
        with pytest.raises(ValidationError, match="host"):
            pool.serve(wrong, port)


def test_https_with_a_certificate(pool: LlamaPool, tmp_path: Path) -> None:
    files = written(tmp_path, key=KEY, cert=CERTIFICATE)
    with pool.serve(ssl_key_file=files["key"], ssl_cert_file=str(files["cert"])) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with connect(f"http://127.0.0.1:{server.port}") as plain, context.wrap_socket(plain) as tls:
            found = tls.getpeercert(binary_form=True)
            assert found == ssl.PEM_cert_to_DER_cert(CERTIFICATE)
            tls.sendall(request_bytes("/v1/completions", {**SHORT, "stream": True}))
            received = b""
            while b"data: [DONE]\n\n" not in received:
                received += tls.recv(4096)
            assert received.startswith(b"HTTP/1.1 200")
        with connect(f"http://127.0.0.1:{server.port}") as connection:  # without TLS
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not connection.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("key", "certificate", "message"),
    [
        (OTHER_KEY, CERTIFICATE, "not that of the certificate"),
        (ENCRYPTED_KEY, CERTIFICATE, "encrypted; decrypt it first"),
        ("nonsense", CERTIFICATE, "cannot be used"), (KEY, "nonsense", "cannot be used"),
        (KEY, KEY, "cannot be used"), (None, CERTIFICATE, "cannot read --ssl-key-file"),
        (KEY, None, "cannot read --ssl-cert-file"),
    ],
)  # fmt: skip
def test_files_that_tls_cannot_use_are_told_before_models_load(
    tmp_path: Path, key: str | None, certificate: str | None, message: str
) -> None:
    texts = {"key": key, "cert": certificate}
    written(tmp_path, **{name: text for name, text in texts.items() if text is not None})
    app = create_app(
        tmp_path / "missing.gguf",
        ssl_key_file=tmp_path / "key.pem",
        ssl_cert_file=tmp_path / "cert.pem",
    )
    with pytest.raises(LlamaError, match=message):
        HttpServer(app, port=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"ssl_key_file": "x"}, {"ssl_cert_file": "x"}, {"max_per_client": 0}, {"max_request_s": 0},
        {"api_prefix": "llm"}, {"api_prefix": "/llm/"}, {"api_prefix": "/"}, {"log_requests": "x"},
        {"trusted_proxies": "127.0.0.1"}, {"api_prefix": 5}, {"max_per_client": 1.5},
    ],
)  # fmt: skip
def test_settings_of_the_guard_are_checked(tiny_model: Path, settings: Any) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        create_app(tiny_model, **settings)


@pytest.mark.parametrize(
    ("trusted", "client"),
    [([], "127.0.0.1"), (["10.0.0.1"], "127.0.0.1"), (["127.0.0.1"], "9.8.7.6")],
)
def test_forwarded_addresses_count_only_from_trusted_proxies(
    busy: LlamaPool, ask: Callable[..., None], trusted: list[str], client: str
) -> None:
    with busy.serve(trusted_proxies=trusted) as server:
        ask(server, "x\r\nX-Forwarded-For: 9.8.7.6")
        assert [request.client for request in engine_of(busy).active_requests] == [client]


def test_all_paths_have_the_prefix(pool: LlamaPool) -> None:
    with pool.serve(api_prefix="/llm/one") as server:
        assert server.url.endswith("/llm/one")
        assert get(f"{server.url}/health").status == 200
        assert post(f"{server.url}/v1/completions", SHORT).status == 200
        assert post(f"{server.url}/v1/messages/x", {}).json["type"] == "error"
        assert get(server.url.removesuffix("/llm/one") + "/health").status == 404


def test_many_and_long_headers_are_refused(url: str) -> None:
    with connect(url) as connection:
        lines = b"".join(b"x-%d: y\r\n" % i for i in range(10_000))
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + lines)
        try:
            status = int(connection.recv(65536).split()[1])
        except (ConnectionResetError, BrokenPipeError):
            return  # it was closed before everything was read
    assert status in (400, 431)


# The log


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[int], list[dict[str, Any]]]:
    """Waits for the lines of the request log."""
    caplog.set_level(logging.INFO, "llama_cffi.server.requests")

    def found(n: int) -> list[dict[str, Any]]:
        def messages() -> list[str]:
            records = [*caplog.records]
            return [r.getMessage() for r in records if r.name == "llama_cffi.server.requests"]

        wait_for(lambda: len(messages()) >= n)
        return [json.loads(message) for message in messages()]

    return found


def test_each_request_is_a_line_of_json(
    busy: LlamaPool, lines: Callable[[int], list[dict[str, Any]]]
) -> None:
    key = {"x-api-key": "key-of-a"}
    with busy.serve(api_keys=KEYS, log_requests=True, aliases=["demo"]) as server:
        done = post(f"{server.url}/v1/completions", {**SHORT, "n": 2}, **key)
        streamed = post(f"{server.url}/v1/completions", {**SHORT, "stream": True}, **key)
        post(f"{server.url}/v1/completions", {"prompt": 5}, **key)
        post(f"{server.url}/v1/completions", SHORT)
        get(f"{server.url}/nothing")
        get(f"{server.url}/health")
    found = lines(6)
    assert [line["status"] for line in found] == [200, 200, 400, 401, 404, 200]
    assert [line["end"] for line in found] == ["done", "done", "error", "error", "error", "done"]
    assert [line["key"] for line in found] == ["a", "a", "a", None, None, None]
    assert [line["error"] for line in found][2:5] == [
        "invalid_request_error", "authentication_error", "not_found_error",
    ]  # fmt: skip
    first = found[0]
    assert first["id"] == done.headers["x-request-id"]
    assert (first["method"], first["path"], first["model"]) == ("POST", "/v1/completions", "demo")
    usage = done.json["usage"]
    assert first["completion_tokens"] == usage["completion_tokens"] == 4
    assert first["prompt_tokens"] == 2 * usage["prompt_tokens"]  # of two generations
    assert first["cached_tokens"] <= first["prompt_tokens"]
    assert first["finish_reason"] == "length"
    for name in ("queue_ms", "prefill_ms", "decode_ms"):
        assert 0 <= first[name] <= first["ms"]
    assert found[1]["id"] == streamed.headers["x-request-id"]
    assert found[1]["completion_tokens"] == 2
    assert "prompt_tokens" not in found[2]


def test_the_log_tells_that_a_client_left(
    busy: LlamaPool, ask: Callable[..., None], lines: Callable[[int], list[dict[str, Any]]]
) -> None:
    with busy.serve(log_requests=True) as server:
        with connect(server.url) as connection:
            connection.sendall(request_bytes("/v1/completions", {**LONG, "stream": True}))
            assert connection.recv(12) == b"HTTP/1.1 200"
        (line,) = lines(1)
    assert (line["end"], line["status"], line["error"]) == ("client_left", 200, None)


def test_without_the_setting_nothing_is_logged(
    pool: LlamaPool, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        post(f"{url}/completions", SHORT)
        get(f"{url}/nothing")
    assert not [r for r in caplog.records if r.name.startswith("llama_cffi")]


def test_no_log_has_prompts_answers_or_secrets(
    busy: LlamaPool,
    lines: Callable[[int], list[dict[str, Any]]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Strings in headers, query and body of good, bad and failing requests."""
    caplog.set_level(logging.INFO)

    def fail(*_: object) -> None:
        raise KeyError(CANARY)

    headers = {"authorization": f"Bearer {CANARY}", "x-other": CANARY, "cookie": CANARY}
    message = [{"role": "user", "content": CANARY}]
    bodies: list[tuple[str, Any]] = [
        ("/v1/completions", {"prompt": CANARY, "user": CANARY, "stop": CANARY, "max_tokens": 1}),
        ("/v1/completions", {"prompt": CANARY, "stream": True, "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": message, "max_tokens": 1, CANARY: CANARY}),
        ("/v1/messages", {"messages": message, "max_tokens": 1, "system": CANARY}),
        ("/v1/responses", {"input": CANARY, "max_output_tokens": 1, "metadata": {"a": CANARY}}),
        ("/v1/completions", {"prompt": CANARY, "grammar": CANARY}),
        ("/v1/completions", {"prompt": CANARY, "priority": CANARY}),
        ("/v1/completions", {"prompt": CANARY * 900}),
        ("/v1/completions", {"prompt": CANARY, "model": CANARY, "max_tokens": 1}),
        ("/v1/embeddings", {"input": CANARY}),
        ("/tokenize", {"content": CANARY}),
        ("/nothing", {"content": CANARY}),
        ("/v1/completions", CANARY),
        ("/v1/completions", {"prompt": CANARY, "max_tokens": 10**4, "temperature": CANARY}),
    ]
    statuses = []
    with busy.serve(api_keys=[ApiKey(CANARY, "mine")], log_requests=True) as server:
        for path, body in bodies:
            statuses.append(post(f"{server.url}{path}?secret={CANARY}", body, **headers).status)
        wrong = {**headers, "authorization": f"Bearer wrong-{CANARY}"}
        statuses.append(post(f"{server.url}/v1/completions", SHORT, **wrong).status)
        monkeypatch.setattr(tokens, "take", fail)
        statuses.append(post(f"{server.url}/tokenize", {"content": CANARY}, **headers).status)
    found = lines(len(statuses))
    assert [line["status"] for line in found] == statuses
    assert {200, 400, 401, 404, 500} <= {*statuses}
    assert "KeyError" in caplog.text
    assert CANARY not in caplog.text


def test_a_line_break_in_a_path_stays_in_its_line(
    pool: LlamaPool, lines: Callable[[int], list[dict[str, Any]]]
) -> None:
    with pool.serve(log_requests=True) as server:
        get(f'{server.url}/x%0A{{"end":%20"done"}}%1b[31m')
        (line,) = lines(1)
    assert line["path"] == '/x\n{"end": "done"}\x1b[31m'


def test_many_threads_share_the_log_and_the_limits(pool: LlamaPool) -> None:
    statuses: list[int] = []
    with pool.serve(max_per_client=2) as server:

        def run() -> None:
            for _ in range(4):
                statuses.append(post(f"{server.url}/v1/completions", SHORT).status)

        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {*statuses} <= {200, 429}
        assert not server._state._n_of
        assert post(f"{server.url}/v1/completions", SHORT).status == 200


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/embeddings", "input"), ("/embedding", "content"), ("/v1/completions", "prompt")],
)
def test_keys_take_turns_where_one_request_runs_at_a_time(path: str, field: str) -> None:
    order: list[str] = []

    def ask(name: str) -> None:
        body = {field: "a cat", "max_tokens": 1}
        assert post(f"{server.url}{path}", body, **{"x-api-key": name[0]}).status == 200
        order.append(name)

    with (
        Llama(model_path(), n_ctx=64, n_threads=1, embeddings=True) as llm,
        llm.serve(api_keys=[ApiKey(name, name) for name in "ab"]) as server,
    ):
        lock: Any = llm.engine if path == "/v1/completions" else llm.embedder._context
        lock = lock._lock
        asked = ["a1", "a2", "a3", "b1", "b2"]
        threads = [threading.Thread(target=ask, args=(name,)) for name in asked]
        with lock.acquire():
            for i, thread in enumerate(threads):
                thread.start()
                wait_for(lambda i=i: len(lock.waiting) == i + 1)  # type: ignore[misc]
            waiting = [waiter.client for waiter in lock.waiting]
        for thread in threads:
            thread.join()
    assert waiting == ["a", "b", "a", "b", "a"]
    assert sorted(order) == asked
