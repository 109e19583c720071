"""Addresses that must not be reached, and a real server that answers in all wrong ways."""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.certificates import CERTIFICATE, KEY, written

from llama_cffi import FetchError, ValidationError
from llama_cffi.media import MediaPolicy, load_image
from llama_cffi.media import fetch as fetch_module
from llama_cffi.media.fetch import fetch, is_public

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(100)
PRIVATE = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "::", "::1",
    "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    "2002:7f00:1::", "2002:a00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:db8::1",
    "fec0::1", "2002:808:808::", "64:ff9b:1::808:808", "::8.8.8.8", "4000::1",
    "2606:4700:4700::1111%eth0", "0177.0.0.1", "2130706433", "8.8.8.8:80", "nonsense", "",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_what_an_ipv6_address_embeds_counts(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    assert not is_public(str(ipaddress.IPv6Address(0xFFFF << 32 | number)))
    nat64 = ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | number)
    assert is_public(str(nat64)) == is_public(str(address))
    assert not is_public(str(ipaddress.IPv6Address(0x2002 << 112 | number << 80)))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.org/cat.png", "only https addresses"),
        ("https://user:secret@example.org/", "user name or password"),
        ("https://user@example.org/", "user name or password"),
        ("https:///cat.png", "no valid address"),
        ("https://example.org:0/", "port 0"),
        ("https://example.org:99999/", "no valid address"),
        ("https://[::1/", "no valid address"),
        ("https://exa mple.org/", "no valid address"),
        ("https://example.org/\r\nHost: x", "no valid address"),
    ],
)
def test_addresses_that_are_refused(url: str, reason: str) -> None:
    def never(host: str, port: int) -> Sequence[str]:
        raise AssertionError("nothing is resolved")

    with pytest.raises(ValidationError, match=reason):
        fetch(url, MediaPolicy(), "image", 100, resolve=never)


@pytest.mark.parametrize("address", PRIVATE)
def test_names_of_private_addresses(address: str) -> None:
    """Also if only one of several addresses is private."""
    for found in ([address], ["8.8.8.8", address]):
        with pytest.raises(ValidationError, match="not on the public internet"):
            fetch(
                "https://rebinding.example/",
                MediaPolicy(),
                "image",
                100,
                resolve=lambda *_, found=found: found,  # type: ignore[misc]
            )


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/", "https://[::1]/", "https://localhost/", "https://2130706433/"]
)
def test_local_addresses_by_the_systems_resolver(url: str) -> None:
    with pytest.raises((ValidationError, FetchError), match=r"not on the public|cannot find"):
        fetch(url, MediaPolicy(), "image", 100)


def test_hosts_that_are_allowed() -> None:
    policy = MediaPolicy(urls=("Images.example.org",))
    asked = []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        raise OSError("no such host")

    with pytest.raises(ValidationError, match=r"'example\.org' is not among the hosts"):
        fetch("https://example.org/", policy, "image", 100, resolve=resolve)
    with pytest.raises(ValidationError, match="not among the hosts"):
        fetch("https://images.example.org.evil.example/", policy, "image", 100, resolve=resolve)
    with pytest.raises(FetchError, match="cannot find the host"):
        fetch("https://images.EXAMPLE.org./x", policy, "image", 100, resolve=resolve)
    assert asked == [("images.example.org.", 443)]
    with pytest.raises(ValidationError, match="addresses are not fetched here"):
        load_image("https://example.org/cat.png", MediaPolicy(urls=False))


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self) -> None:
        name, _, value = self.path[1:].partition("/")
        if name == "drip":  # one byte of the headers at a time
            with contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200:
                    self.connection.sendall(bytes([byte]))
                    time.sleep(0.05)
            return
        if name == "nowhere":
            self.send_response(302)
            self.end_headers()
            return
        if name == "redirect":
            self.send_response(302)
            self.send_header("Location", value.replace("$", "/"))
            self.end_headers()
            return
        self.send_response(int(value) if name == "status" else 200)
        kind = "text/html" if name == "html" else "image/png"
        self.send_header("Content-Type", kind)
        length = {"long": 10**9, "short": 500}.get(name)
        if length:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        try:
            self.wfile.write(f"host {self.headers['Host']} ".encode() if name == "host" else b"")
            if name == "endless":
                while True:
                    self.wfile.write(bytes(2**16))
            if name == "slow":
                for _ in range(100):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.05)
            self.wfile.write(PICTURE)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an https server for localhost."""
    files = written(tmp_path_factory.mktemp("tls"), cert=CERTIFICATE, key=KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["cert"], files["key"])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Take 127.0.0.1 for public, and trust the test's certificate."""
    monkeypatch.setattr(fetch_module, "is_public", lambda address: address == "127.0.0.1")
    return ssl.create_default_context(cadata=CERTIFICATE)


def get(
    port: int, path: str, context: ssl.SSLContext, policy: MediaPolicy | None = None
) -> fetch_module.Fetched:
    url = f"https://localhost:{port}/{path}"
    return fetch(
        url, policy or MediaPolicy(), "image", 1_000, resolve=resolve_local, context=context
    )


def resolve_local(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"] if host == "localhost" else ["10.0.0.1"]


def test_a_picture(port: int, trusting: ssl.SSLContext) -> None:
    assert get(port, "picture", trusting).data == PICTURE
    # The name counts for TLS and Host, although the connection goes to the address.
    assert get(port, "host", trusting).data.startswith(f"host localhost:{port} ".encode())


def test_redirects_are_checked_again(port: int, trusting: ssl.SSLContext) -> None:
    here = f"https:$$localhost:{port}$picture"
    assert get(port, f"redirect/{here}", trusting).data == PICTURE
    with pytest.raises(ValidationError, match="not on the public internet"):
        get(port, "redirect/https:$$metadata.internal$", trusting)
    with pytest.raises(ValidationError, match="not on the public internet"):
        get(port, "redirect/https:$$10.0.0.1$", trusting)
    with pytest.raises(ValidationError, match="only https addresses"):
        get(port, "redirect/http:$$localhost$", trusting)
    with pytest.raises(ValidationError, match="only https addresses"):
        get(port, "redirect/file:$$$etc$passwd", trusting)
    loop = f"redirect/https:$$localhost:{port}$redirect$https:$$localhost:{port}$redirect$x"
    with pytest.raises((FetchError, ValidationError)):
        get(port, loop, trusting)
    with pytest.raises(FetchError, match="more than 0 redirects"):
        get(port, f"redirect/{here}", trusting, MediaPolicy(max_redirects=0))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("html", "sent text/html, not image data"),
        ("status/404", "answered with 404"),
        ("status/500", "answered with 500"),
        ("nowhere", "answered with 302"),
        ("long", "has 1,000,000,000 bytes; at most 1,000"),
        ("short", "sent 108 of 500 bytes"),
        ("endless", "has more than 1,000 bytes"),
    ],
)
def test_wrong_answers(port: int, trusting: ssl.SSLContext, path: str, reason: str) -> None:
    with pytest.raises(FetchError, match=reason):
        get(port, path, trusting)


@pytest.mark.parametrize("path", ["slow", "drip"])
def test_slow_answers(port: int, trusting: ssl.SSLContext, path: str) -> None:
    with pytest.raises(FetchError, match=r"too slow: no answer within 0.5 s"):
        get(port, path, trusting, MediaPolicy(timeout_s=0.5))


def test_slow_resolvers() -> None:
    done = threading.Event()

    def resolve(host: str, port: int) -> Sequence[str]:
        done.wait(60)
        return ["8.8.8.8"]

    with pytest.raises(FetchError, match=r"cannot find the host 'example\.org' in time"):
        fetch("https://example.org/", MediaPolicy(timeout_s=0.1), "image", 100, resolve=resolve)
    done.set()


def test_names_are_resolved_once(port: int, trusting: ssl.SSLContext) -> None:
    """A resolver that names a public address first and a private one later gains nothing."""
    asked: list[str] = []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    url = f"https://localhost:{port}/picture"
    found = fetch(url, MediaPolicy(), "image", 1_000, resolve=resolve, context=trusting)
    assert found.data == PICTURE
    assert asked == ["localhost"]


def test_the_next_address_is_tried(
    port: int, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "is_public", lambda _: True)
    url = f"https://localhost:{port}/picture"
    found = fetch(
        url, MediaPolicy(), "image", 1_000, context=trusting,
        resolve=lambda *_: ["127.0.0.2", "127.0.0.1"],
    )  # fmt: skip
    assert found.data == PICTURE


@settings(max_examples=300)
@given(st.text(max_size=40), st.sampled_from(["https://", "https://a.example/", "https:", ""]))
def test_addresses_of_nonsense(text: str, start: str) -> None:
    with pytest.raises((ValidationError, FetchError)):
        fetch(start + text, MediaPolicy(), "image", 100, resolve=lambda *_: ["10.0.0.1"])


def test_certificates_are_verified(port: int, trusting: ssl.SSLContext) -> None:
    with pytest.raises(FetchError, match=r"(?i)certificate"):
        get(port, "picture", ssl.create_default_context())
    url = f"https://other.example:{port}/picture"
    with pytest.raises(FetchError, match=r"(?i)certificate|hostname"):
        fetch(
            url, MediaPolicy(), "image", 1_000, context=trusting, resolve=lambda *_: ["127.0.0.1"]
        )


def test_proxies_of_the_environment_are_not_used(
    port: int, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get(port, "picture", trusting).data == PICTURE
