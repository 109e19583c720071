"""HttpServer: an app on uvicorn in a thread."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from ..errors import LlamaError, ValidationError
from ..validation import as_list, check_float, check_int, check_str
from .call import ServerState
from .protocol import limited_protocol

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from typing_extensions import Self

__all__ = ["HttpServer"]

_MAX_HEADERS = 64 * 1024  # long keys and cookies
_BACKLOG = 2048
_POLL_S = 0.02
_CUT_S = 5.0  # for clients to get the error


class HttpServer:
    """A running server; `close`, or leaving a `with` block, stops it.

    Args:
        app: From `create_app`; its models are loaded now.
        host: The address to listen on, or several; 0.0.0.0 and :: are all of this machine's. A path
            that ends with `.sock`: a Unix socket there.
        port: The port, also of further addresses; 0: a free one.

    Attributes:
        hosts: The addresses.
        port: The port; 0: there are only Unix sockets.

    Raises:
        ModelLoadError: A model cannot be loaded.
        LlamaError: An address is in use, or not one of this machine's; or the key and certificate
            cannot be used.
    """

    def __init__(
        self, app: Starlette, host: str | Sequence[str] = "127.0.0.1", port: int = 8080
    ) -> None:
        hosts = [host] if isinstance(host, str) else as_list("host", host)
        if not hosts:
            raise ValidationError("host has no address")
        for one in hosts:
            check_str("host", one)
        self.hosts: tuple[str, ...] = tuple(hosts)
        check_int("port", port, 0, 65535)
        self._state: ServerState = app.state.server
        settings = self._state.settings
        self.has_tls = settings.ssl_cert_file is not None
        if settings.ssl_cert_file is not None and settings.ssl_key_file is not None:
            _check_certificate(settings.ssl_cert_file, settings.ssl_key_file)
        self._listeners, self.port = _listen_all(self.hosts, port)
        try:
            self._state.models.open()
        except BaseException:
            self._close_listeners()
            raise
        config = uvicorn.Config(
            app,
            http=limited_protocol(_MAX_HEADERS, settings.body_timeout_s),
            log_config=None,
            access_log=False,
            ws="none",
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=[*settings.trusted_proxies],
            ssl_keyfile=settings.ssl_key_file,
            ssl_certfile=settings.ssl_cert_file,
            h11_max_incomplete_event_size=_MAX_HEADERS,
            timeout_graceful_shutdown=int(_CUT_S),
        )
        self._server = uvicorn.Server(config)
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="llama_cffi-server", daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                self._close_listeners()
                self._state.models.close()
                raise LlamaError("the server has stopped while it started; see the log")
            time.sleep(_POLL_S / 10)

    @property
    def url(self) -> str:
        """Where it can be reached on this machine: http://HOST:PORT, or unix:PATH."""
        return self.urls[0]

    @property
    def urls(self) -> list[str]:
        """The URLs of all its addresses."""
        return [self._url(host) for host in self.hosts]

    def _url(self, host: str) -> str:
        prefix = self._state.settings.api_prefix
        if _is_path(host):
            return f"unix:{host}"
        scheme = "https" if self.has_tls else "http"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}{prefix}"

    def close(self, drain_s: float = 0.0) -> None:
        """Stop the server, and free the models that it loaded. Calling it again does nothing.

        Args:
            drain_s: Seconds in which running requests may end; new ones get status 503. What runs
                then ends with an error.
        """
        check_float("drain_s", drain_s, 0, 1e9)
        self._state.drain()
        deadline = time.monotonic() + drain_s
        while self._state.calls and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(_POLL_S)
        self._state.cancel_all()
        with self._closing:
            self._server.should_exit = True
            self._thread.join()
            self._close_listeners()

    @property
    def is_running(self) -> bool:
        """Whether it accepts connections."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<HttpServer {self.url}{'' if self.is_running else ' closed'}>"

    def _run(self) -> None:
        self._server.run(sockets=self._listeners)

    def _close_listeners(self) -> None:
        _close_all(self.hosts, self._listeners)


def _check_certificate(certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> None:
    """Refuse files that TLS cannot use, before the models are loaded.

    Raises:
        LlamaError: One is missing or broken, the key is encrypted, or they do not fit together.
    """
    named = f"--ssl-cert-file {certificate} and --ssl-key-file {key}"
    for name, path in (("--ssl-cert-file", certificate), ("--ssl-key-file", key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as e:
            raise LlamaError(f"cannot read {name} {path}: {e.strerror}") from None

    def password() -> str:  # else OpenSSL would ask on the terminal
        raise LlamaError(
            f"--ssl-key-file {key} is encrypted; decrypt it first: openssl pkey -in {key}"
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password)
    except ssl.SSLError as e:
        what = {
            "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
            "NO_START_LINE": "one of them is not PEM",
        }.get(e.reason or "", e.reason or str(e))
        raise LlamaError(f"{named} cannot be used: {what}") from None


def _listen_all(hosts: Sequence[str], port: int) -> tuple[list[socket.socket], int]:
    """Return listening sockets, and the port of those that have one.

    Raises:
        LlamaError: An address is in use, or not one of this machine's.
    """
    listeners: list[socket.socket] = []
    port_of_all = 0
    try:
        for host in hosts:
            listeners.append(_listen(host, port_of_all or port))
            if not _is_path(host):
                port_of_all = int(listeners[-1].getsockname()[1])
    except BaseException:
        _close_all(hosts[: len(listeners)], listeners)
        raise
    return listeners, port_of_all


def _close_all(hosts: Sequence[str], listeners: Sequence[socket.socket]) -> None:
    for host, listener in zip(hosts, listeners, strict=True):
        listener.close()
        if _is_path(host):
            Path(host).unlink(missing_ok=True)


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        LlamaError: The address is in use, or not one of this machine's.
    """
    try:
        if _is_path(host):
            return _listen_at(Path(host))
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as e:
        where = host if _is_path(host) else f"{host}:{port}"
        raise LlamaError(
            f"cannot listen on {where}: {e.strerror or e}; choose another port, or 0 for a free one"
        ) from e


def _is_path(host: str) -> bool:
    return host.endswith(".sock")


def _listen_at(path: Path) -> socket.socket:
    """Return a listening Unix socket, which only this user can open.

    Raises:
        OSError: It cannot be made there, or another server listens on it.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("this system has no Unix sockets")
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise OSError("another server listens there")
            path.unlink()  # of a server that was killed
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
