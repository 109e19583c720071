"""HTTP client of the fetcher: retries, redirects, credentials, proxies, CA bundles.

All network access goes through `Client`, so the offline switch is checked here.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import logging
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    InvalidURL,
)
from typing import Any, TypeVar

from ..errors import FetchError
from ..progress import calling_after, telling_if_slow
from .faults import CHECK_NETWORK, HttpStatusError, OfflineError, UnreachableError, offline

__all__ = ["Client", "TransientError", "blocks", "host", "join", "redact", "retrying"]

_log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
RETRIES = 3
BACKOFF_S = 0.5
# A server that sends less than this in a window is given up, so that the lock is free for others.
SLOW_WINDOW_S = 30.0
SLOW_BYTES = 30 << 10
# npm's and GitHub's documents have well under 2 MB; parsed JSON takes up to 20 times its length.
MAX_JSON_BYTES = 16 << 20
_BLOCK = 1 << 18
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_T = TypeVar("_T")


class TransientError(Exception):
    """One try failed; another may succeed."""


def redact(url: str) -> str:
    """Remove user, password and query from *url*, for messages and receipts."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return repr(url.rpartition("@")[2].partition("?")[0])
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def host(url: str) -> str:
    """Return user, host and port of *url*; empty if it is not an address."""
    try:
        return urllib.parse.urlsplit(url).netloc
    except ValueError:
        return ""


def join(base: str, path: str) -> str:
    """Append *path* to *base* with exactly one slash between them."""
    return f"{base.rstrip('/')}/{path.lstrip('/')}"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects; never send a token to another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            raise FetchError(
                f"{redact(req.full_url)} redirects from {req.type} to {redact(newurl)}, which "
                "is refused. Check the mirror or proxy in between."
            )
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and _origin(req.full_url) != _origin(newurl):
            new.remove_header("Authorization")
        return new


@functools.lru_cache(maxsize=4)
def _context(cafile: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()  # reads SSL_CERT_FILE and SSL_CERT_DIR
    if cafile:
        try:
            context.load_verify_locations(cafile=cafile)
        except OSError as e:
            raise FetchError(
                f"the CA file {cafile} from npm's configuration cannot be read: {e}. "
                "Correct `cafile` in .npmrc."
            ) from e
    return context


@contextlib.contextmanager
def _limited(connection: HTTPConnection) -> Iterator[None]:
    """Break off a connection whose status and headers take longer than TIMEOUT_S altogether.

    The timeout of a socket begins anew with every byte.

    Raises:
        TimeoutError: They did.
    """
    sock, limit = connection.sock, TIMEOUT_S
    is_late = threading.Event()

    def break_off() -> None:
        is_late.set()
        with contextlib.suppress(OSError):
            # Not SSLSocket's own, which would leave the reading thread without a TLS state.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    with calling_after(limit, break_off):
        yield
    if is_late.is_set():
        raise TimeoutError(f"the headers took longer than {limit:.0f} s")


class _Http(HTTPConnection):
    def getresponse(self) -> HTTPResponse:
        with _limited(self):
            return super().getresponse()


class _Https(HTTPSConnection):
    def getresponse(self) -> HTTPResponse:
        with _limited(self):
            return super().getresponse()


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Http, req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._own = context

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Https, req, context=self._own)


@dataclass(frozen=True)
class Client:
    """An HTTP client.

    Attributes:
        cafile: CA file to trust besides the system's, if any.
        proxies: Proxy by scheme; those of the environment win.
    """

    cafile: str | None = None
    proxies: Mapping[str, str] = field(default_factory=dict)

    def _opener(self) -> urllib.request.OpenerDirector:
        return urllib.request.build_opener(
            urllib.request.ProxyHandler({**self.proxies, **urllib.request.getproxies()}),
            _HttpHandler(),
            _HttpsHandler(_context(self.cafile)),
            _Redirects(),
        )

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Any:
        """Open *url* once and return the response.

        Raises:
            OfflineError: LLAMA_CFFI_OFFLINE is set.
            HttpStatusError: A status that no retry will change, such as 401 or 404.
            UnreachableError: The certificate is not trusted, or the host does not exist.
            TransientError: The request may succeed if tried again.
        """
        if offline():
            raise OfflineError(
                f"LLAMA_CFFI_OFFLINE is set, so {redact(url)} was not requested. "
                "Unset it, or fetch the build on a machine with a network."
            )
        request = _request(url, headers or {})
        try:
            with telling_if_slow(f"an answer from {urllib.parse.urlsplit(url).hostname}"):
                return self._opener().open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as e:
            status, reason = e.code, e.reason
            e.close()
            if status in _TRANSIENT:
                raise TransientError(f"HTTP {status} {reason}") from None
            raise HttpStatusError(
                f"GET {redact(url)} answered HTTP {status} {reason}.{_hint(status)}", status
            ) from None
        except urllib.error.URLError as e:
            if isinstance(e.reason, ssl.SSLCertVerificationError):
                raise UnreachableError(
                    f"GET {redact(url)}: the certificate is not trusted ({e.reason}). "
                    "Set SSL_CERT_FILE to your organisation's CA bundle."
                ) from e
            if getattr(e.reason, "errno", None) == socket.EAI_NONAME:  # no retry will help
                raise UnreachableError(
                    f"GET {redact(url)}: there is no host {urllib.parse.urlsplit(url).hostname} "
                    f"({e.reason}). {CHECK_NETWORK}"
                ) from e
            raise TransientError(str(e.reason)) from e
        except FetchError:  # a redirect that is refused
            raise
        except (InvalidURL, ValueError) as e:
            raise FetchError(
                f"GET {redact(url)}: the address, or one that it redirects to, is invalid: {e}. "
                "Check the registry or mirror."
            ) from e
        except (OSError, HTTPException) as e:
            raise TransientError(f"{type(e).__name__}: {e}") from e

    def json(self, url: str, headers: Mapping[str, str] | None = None) -> Any:
        """Get *url* and parse its JSON body, with retries.

        Raises:
            UnreachableError: No try succeeded.
            HttpStatusError: A status that no retry will change, such as 401 or 404.
            FetchError: The body is not JSON, or has more than MAX_JSON_BYTES.
        """

        def once() -> bytes:
            body = bytearray()
            with self.open(url, headers) as response:
                for block in blocks(response):
                    body += block
                    if len(body) > MAX_JSON_BYTES:
                        raise FetchError(
                            f"GET {redact(url)} answered with more than {MAX_JSON_BYTES:,} bytes "
                            "of JSON. Check the address of the registry or mirror."
                        )
            return bytes(body)

        body = retrying(url, once)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as e:
            raise FetchError(
                f"GET {redact(url)} did not answer with JSON but with {body[:60]!r}. "
                "Check for a login page in between or a wrong mirror address."
            ) from e


def blocks(response: Any) -> Iterator[bytes]:
    """Yield a response's body as it arrives.

    Raises:
        TransientError: The connection broke off, or the server is slower than SLOW_BYTES in
            SLOW_WINDOW_S.
    """
    since, got = time.monotonic(), 0
    while True:
        try:
            # read1: bytes reach the file as they arrive, in case this process is killed.
            block = response.read1(_BLOCK)
        except (OSError, HTTPException, ValueError) as e:
            raise TransientError(f"the response broke off: {e}") from e
        if not block:
            return
        yield block
        got += len(block)
        passed = time.monotonic() - since
        if passed >= SLOW_WINDOW_S:
            if got < SLOW_BYTES:
                raise TransientError(f"too slow: {got:,} bytes in {passed:.0f} s")
            since, got = time.monotonic(), 0


def retrying(url: str, once: Callable[[], _T]) -> _T:
    """Call *once* until it raises no `TransientError`, 1 + RETRIES times at most, with back-off.

    Raises:
        UnreachableError: Every try failed; the message gives the last cause.
    """
    for n in range(RETRIES + 1):
        try:
            return once()
        except TransientError as e:
            if n == RETRIES:
                raise UnreachableError(
                    f"GET {redact(url)} failed {n + 1} times, the last time with: {e}. "
                    + CHECK_NETWORK
                ) from e
            _log.info("GET %s: %s; trying again", redact(url), e)
            time.sleep(BACKOFF_S * 2**n)
    raise AssertionError("unreachable")


def _request(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        parts = urllib.parse.SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise FetchError(f"{redact(url)} is not an http(s) address. Correct the mirror setting.")
    user, at, host = parts.netloc.rpartition("@")
    url = urllib.parse.urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    all_headers = {"User-Agent": "llama-cffi", **headers}
    if at:  # urllib does not support user:password@ in an address
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        all_headers.setdefault("Authorization", f"Basic {token}")
    return urllib.request.Request(url, headers=all_headers)


def _hint(status: int) -> str:
    if status in (401, 403):
        return (
            " The server requires a login or limits requests: set a token in .npmrc (npm) or "
            "GITHUB_TOKEN (GitHub)."
        )
    if status == 407:
        return " The proxy requires a login: put it into HTTPS_PROXY."
    return ""
