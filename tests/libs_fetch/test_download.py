from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import os
import shutil
import socket
import socketserver
import sys
import threading
import time
import tracemalloc
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.errors import FetchError
from llama_cffi.libs_fetch import download as module
from llama_cffi.libs_fetch import http
from llama_cffi.libs_fetch.download import RemoteFile, download, sri
from llama_cffi.libs_fetch.faults import HttpStatusError, OfflineError, UnreachableError
from llama_cffi.libs_fetch.http import Client, redact

BODY = os.urandom(300_000)
HASH = sri("sha512", hashlib.sha512(BODY).hexdigest())


@pytest.fixture
def file(server: Any) -> Any:
    server.replies["/f.tgz"] = server.Reply(BODY)
    return server.replies["/f.tgz"]


def get(server: Any, tmp_path: Path, **facts: Any) -> Path:
    remote = RemoteFile((f"{server.url}/f.tgz",), **{"integrity": HASH, "size": len(BODY), **facts})
    return download(Client(), remote, tmp_path / "f.part", progress=False)


def test_a_file_is_downloaded_completely(server: Any, file: Any, tmp_path: Path) -> None:
    assert get(server, tmp_path).read_bytes() == BODY
    assert get(server, tmp_path, size=None).read_bytes() == BODY


def test_a_truncated_download_is_resumed(server: Any, file: Any, tmp_path: Path) -> None:
    file.cut = 100_000
    assert get(server, tmp_path).read_bytes() == BODY
    ranges = [headers.get("Range") for headers in server.asked("/f.tgz")]
    assert ranges == [None, "bytes=100000-"]


def test_a_partial_download_of_an_earlier_process_is_resumed(
    server: Any, file: Any, tmp_path: Path
) -> None:
    (tmp_path / "f.part").write_bytes(BODY[:250_000])
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked("/f.tgz")[0]["Range"] == "bytes=250000-"


def test_a_complete_partial_download_needs_no_network(
    server: Any, file: Any, tmp_path: Path
) -> None:
    (tmp_path / "f.part").write_bytes(BODY)
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.seen == []


def test_a_server_that_answers_200_to_range_starts_over(
    server: Any, file: Any, tmp_path: Path
) -> None:
    file.ranges = False
    (tmp_path / "f.part").write_bytes(b"x" * 1000)
    assert get(server, tmp_path).read_bytes() == BODY


def test_a_partial_download_that_is_too_long_or_answered_416_starts_over(
    server: Any, file: Any, tmp_path: Path
) -> None:
    (tmp_path / "f.part").write_bytes(BODY + b"more")
    assert get(server, tmp_path).read_bytes() == BODY
    (tmp_path / "f.part").write_bytes(BODY)
    assert get(server, tmp_path, size=None).read_bytes() == BODY  # answered 416


def test_a_resume_at_another_offset_starts_over(server: Any, file: Any, tmp_path: Path) -> None:
    file.headers["Content-Range"] = "bytes 0-299999/300000"
    file.ranges, file.status = False, 206
    (tmp_path / "f.part").write_bytes(BODY[:10])
    assert get(server, tmp_path).read_bytes() == BODY
    assert [headers.get("Range") for headers in server.asked("/f.tgz")] == ["bytes=10-", None]


def test_a_wrong_hash_deletes_the_file_and_gives_both_hashes(
    server: Any, file: Any, tmp_path: Path
) -> None:
    wrong = sri("sha512", hashlib.sha512(b"other").hexdigest())
    with pytest.raises(FetchError) as caught:
        get(server, tmp_path, integrity=wrong)
    text = str(caught.value)
    assert wrong in text
    assert HASH in text
    assert f"{server.url}/f.tgz" in text
    assert "300,000 bytes" in text
    assert list(tmp_path.glob("f.part")) == []


def test_a_partial_download_with_wrong_bytes_is_detected(
    server: Any, file: Any, tmp_path: Path
) -> None:
    (tmp_path / "f.part").write_bytes(b"y" * 1000)
    with pytest.raises(FetchError, match="wrong hash"):
        get(server, tmp_path)
    assert get(server, tmp_path).read_bytes() == BODY


def test_a_wrong_length_is_refused(server: Any, file: Any, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"300,000 bytes long, expected 299,999"):
        get(server, tmp_path, size=len(BODY) - 1)


def test_a_download_that_always_breaks_off_reports_the_bytes_received(
    server: Any, file: Any, tmp_path: Path
) -> None:
    file.body, file.say_length = BODY[:1000], False
    with pytest.raises(UnreachableError, match=r"416|1,000 of 300,000"):
        get(server, tmp_path)


@pytest.mark.parametrize("failures", [1, 3])
def test_a_few_500s_are_retried(server: Any, file: Any, tmp_path: Path, failures: int) -> None:
    file.failures = failures
    assert get(server, tmp_path).read_bytes() == BODY
    assert len(server.asked("/f.tgz")) == failures + 1


def test_endless_500s_are_an_error_that_names_the_address(
    server: Any, file: Any, tmp_path: Path
) -> None:
    file.failures = 99
    with pytest.raises(
        UnreachableError, match=r"f\.tgz failed 4 times, the last time with: HTTP 500"
    ):
        get(server, tmp_path)


def test_404_is_final(server: Any, tmp_path: Path) -> None:
    with pytest.raises(HttpStatusError, match="HTTP 404"):
        get(server, tmp_path)
    assert len(server.seen) == 1


def test_the_second_address_is_tried_when_the_first_has_nothing(
    server: Any, file: Any, tmp_path: Path
) -> None:
    remote = RemoteFile((f"{server.url}/gone.tgz", f"{server.url}/f.tgz"), None, HASH)
    assert download(Client(), remote, tmp_path / "x").read_bytes() == BODY


def test_no_network_names_host_and_cause(tmp_path: Path) -> None:
    remote = RemoteFile(("http://127.0.0.1:9/f.tgz",), None, HASH)
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9/f\.tgz .*[Cc]onnection refused"):
        download(Client(), remote, tmp_path / "x")
    with pytest.raises(UnreachableError, match=r"no host nowhere\.invalid"):
        Client().json("http://nowhere.invalid/x")


def test_offline_sends_no_request(
    server: Any, file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CFFI_OFFLINE", "1")
    with pytest.raises(OfflineError, match="LLAMA_CFFI_OFFLINE"):
        get(server, tmp_path)
    assert server.seen == []


def test_a_full_disk_is_detected_before_the_download(
    server: Any, file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 990, 10))
    with pytest.raises(FetchError, match=r"300,000 bytes needed, 10 bytes free.*LLAMA_CFFI_CACHE"):
        get(server, tmp_path)
    assert server.seen == []


def test_a_disk_that_fills_up_during_the_download_keeps_no_file(
    server: Any, file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        (tmp_path / "f.part").write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(FetchError, match=r"300,000 bytes needed.*free"):
        get(server, tmp_path)
    assert not (tmp_path / "f.part").exists()


def test_credentials_in_an_address_are_sent_and_never_shown(
    server: Any, file: Any, tmp_path: Path
) -> None:
    url = f"{server.url}/f.tgz".replace("//", "//me:se%20cret@")
    download(Client(), RemoteFile((url,), None, HASH), tmp_path / "x")
    expected = base64.b64encode(b"me:se cret").decode()
    assert server.asked("/f.tgz")[0]["Authorization"] == f"Basic {expected}"
    assert redact(url + "?token=abc") == f"{server.url}/f.tgz"
    file.failures = 99
    with pytest.raises(UnreachableError) as caught:
        download(Client(), RemoteFile((url,), None, HASH), tmp_path / "y")
    assert "cret" not in str(caught.value)


def test_a_token_does_not_follow_a_redirect_to_another_host(
    server: Any, file: Any, tmp_path: Path
) -> None:
    other = type(server)()
    try:
        reply = type(file)
        other.replies["/f.tgz"] = reply(BODY)
        server.replies["/moved"] = reply(b"", 302, {"Location": f"{other.url}/f.tgz"})
        server.replies["/near"] = reply(b"", 302, {"Location": f"{server.url}/f.tgz"})
        for path in ("/moved", "/near"):
            url = server.url + path
            headers = {url: {"Authorization": "Bearer secret"}}
            download(Client(), RemoteFile((url,), None, HASH, headers), tmp_path / path[1:])
        assert "Authorization" not in other.asked("/f.tgz")[0]
        assert server.asked("/moved")[0]["Authorization"] == "Bearer secret"
        assert server.asked("/f.tgz")[0]["Authorization"] == "Bearer secret"
    finally:
        other.close()


def test_a_proxy_from_the_environment_is_used(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.replies["http://registry.invalid/f.tgz"] = server.Reply(BODY)
    monkeypatch.setenv("http_proxy", server.url)
    remote = RemoteFile(("http://registry.invalid/f.tgz",), None, HASH)
    assert download(Client(), remote, tmp_path / "x").read_bytes() == BODY
    monkeypatch.delenv("http_proxy")
    through_npmrc = Client(proxies={"http": server.url})
    assert download(through_npmrc, remote, tmp_path / "y").read_bytes() == BODY


def test_only_http_addresses_are_followed(tmp_path: Path) -> None:
    for url in ("file:///etc/passwd", "ftp://host/x", "relative"):
        with pytest.raises(FetchError, match="not an http"):
            Client().json(url)


def test_a_login_page_is_not_parsed_as_json(server: Any) -> None:
    server.replies["/x"] = server.Reply(b"<html>Please log in")
    with pytest.raises(FetchError, match=r"not answer with JSON but with b'<html>"):
        Client().json(f"{server.url}/x")


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    server: Any, file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        tty = True

        def isatty(self) -> bool:
            return self.tty

    remote = RemoteFile((f"{server.url}/f.tgz",), len(BODY), HASH)
    for tty, progress, drawn in ((True, True, True), (True, False, False), (False, True, True)):
        screen = Terminal()
        screen.tty = tty
        monkeypatch.setattr(sys, "stderr", screen)
        part = tmp_path / f"{tty}{progress}"
        part.write_bytes(BODY[:1000])
        download(Client(), remote, part, progress=progress)
        assert ("f.tgz" in screen.getvalue()) is drawn
        assert ("\r" in screen.getvalue()) is (drawn and tty)


def test_hashes_of_unknown_kinds_are_refused(server: Any, file: Any, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"no hash of sha512, sha384, sha256, only 'md5-abc'"):
        get(server, tmp_path, integrity="md5-abc")


def test_a_missing_ca_file_is_named(server: Any, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"absent\.pem"):
        Client(cafile=str(tmp_path / "absent.pem")).json(f"{server.url}/x")


class Raw:
    """A server that answers every request with what *answer* sends on the socket."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                got = b""
                while b"\r\n\r\n" not in got:
                    got += self.request.recv(65536) or b"\r\n\r\n"
                with contextlib.suppress(OSError):
                    answer(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def endless(connection: socket.socket, head: bytes = b"") -> None:
    """Send without end, and without a length."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + head)
    for _ in range(1 << 14):
        connection.sendall(b"[" * (1 << 16))


def test_an_endless_download_stops_at_the_expected_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2_000_000)
    part = tmp_path / "f.part"
    written: list[int] = []
    real = module.blocks

    def counted(response: Any) -> Iterator[bytes]:
        for block in real(response):
            written.append(part.stat().st_size)
            yield block

    monkeypatch.setattr(module, "blocks", counted)
    with Raw(endless) as server:
        for size, expected in ((300_000, "expected 300,000"), (None, "expected 2,000,000 at most")):
            remote = RemoteFile((f"{server.url}/f.tgz",), size, HASH)
            with pytest.raises(FetchError, match=rf"is more bytes long, {expected}.*deleted"):
                download(Client(), remote, part, progress=False)
            assert max(written) <= (size or 2_000_000)
            assert not part.exists()


def test_a_longer_declared_length_is_refused_before_a_byte_is_read(
    server: Any, file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "blocks", lambda _: pytest.fail("the body was read"))
    with pytest.raises(FetchError, match=r"300,000 bytes long, expected 299,999"):
        get(server, tmp_path, size=len(BODY) - 1)
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(FetchError, match=r"300,000 bytes long, expected 1,000 at most"):
        get(server, tmp_path, size=None)


def test_an_endless_json_document_is_refused() -> None:
    tracemalloc.start()
    try:
        with Raw(endless) as server, pytest.raises(FetchError, match=r"more than 16,777,216 bytes"):
            Client().json(f"{server.url}/x")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_server_that_sends_next_to_nothing_is_given_up(
    server: Any, file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "RETRIES", 0)
    monkeypatch.setattr(http, "SLOW_WINDOW_S", 0.05)
    monkeypatch.setattr(http, "SLOW_BYTES", 10**12)
    file.chunk_s = 0.1
    with pytest.raises(UnreachableError, match=r"failed 1 times, .* too slow: [\d,]+ bytes in"):
        get(server, tmp_path)
    assert 0 < (tmp_path / "f.part").stat().st_size < len(BODY)  # kept, to be resumed
    server.replies["/x"] = server.Reply(b"[" + b" " * 200_000 + b"]", chunk_s=0.1)
    with pytest.raises(UnreachableError, match="too slow"):
        Client().json(f"{server.url}/x")
    monkeypatch.setattr(http, "SLOW_BYTES", 1)
    assert get(server, tmp_path).read_bytes() == BODY


def test_a_server_that_drips_its_headers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "RETRIES", 0)
    monkeypatch.setattr(http, "TIMEOUT_S", 0.3)

    broken_off = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        try:
            for _ in range(200):
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            broken_off.set()

    with Raw(drip) as server:
        with pytest.raises(UnreachableError, match="the headers took longer than 0 s"):
            Client().json(f"{server.url}/x")
        assert broken_off.wait(5)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "ftp://127.0.0.1/f.tgz",
        "file:///etc/passwd",
        "data:application/json,{}",
        "gopher://x/",
        "//[::1",
        "http://[bad/x",
        "http://127.0.0.1:port/x",
        "http://127.0.0.1:99999/x",
        "http:///x",
        "http://\u00e9\u00e9/\u00e9",
        "/x y\tz",
        "",
    ],
)
def test_a_redirect_to_nowhere_or_another_scheme_is_an_error_of_ours(
    server: Any, tmp_path: Path, location: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "RETRIES", 0)
    server.replies["/f.tgz"] = server.Reply(b"", code, {"Location": location})
    with pytest.raises(FetchError):
        get(server, tmp_path)
    with pytest.raises(FetchError):
        Client().json(f"{server.url}/f.tgz")
    assert list(tmp_path.glob("*.part")) == []


def test_a_redirect_to_itself_ends(server: Any, tmp_path: Path) -> None:
    server.replies["/f.tgz"] = server.Reply(b"", 302, {"Location": "/f.tgz"})
    with pytest.raises(FetchError, match="302"):
        get(server, tmp_path)
    assert len(server.seen) < 20


def test_a_file_that_is_used_up_or_refused_is_deleted(
    server: Any, file: Any, tmp_path: Path
) -> None:
    remote = RemoteFile((f"{server.url}/f.tgz",), len(BODY), HASH)
    part = tmp_path / "f.part"
    with module.downloaded(Client(), remote, part, progress=False) as path:
        assert path.read_bytes() == BODY
    assert not part.exists()
    with (
        pytest.raises(FetchError, match="refused"),
        module.downloaded(Client(), remote, part, progress=False),
    ):
        raise FetchError("refused")
    assert not part.exists()
