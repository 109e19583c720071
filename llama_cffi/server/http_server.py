"""HttpServer: an app on uvicorn in a thread."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import uvicorn

from ..errors import LlamaError
from ..validation import check_float, check_int, check_str
from .call import ServerState
from .protocol import limited_protocol

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from typing_extensions import Self

__all__ = ["HttpServer"]

_MAX_HEADERS = 64 * 1024  # long keys and cookies
_POLL_S = 0.02
_CUT_S = 5.0  # for clients to get the error


class HttpServer:
    """A running server; `close`, or leaving a `with` block, stops it.

    Args:
        app: From `create_app`; its models are loaded now.
        host: The address to listen on; 0.0.0.0 and :: are all of this machine's.
        port: The port; 0: a free one.

    Raises:
        ModelLoadError: A model cannot be loaded.
        LlamaError: The address is in use, or not one of this machine's.
    """

    def __init__(self, app: Starlette, host: str = "127.0.0.1", port: int = 8080) -> None:
        check_str("host", host)
        check_int("port", port, 0, 65535)
        self._state: ServerState = app.state.server
        listener = _listen(host, port)
        try:
            self._state.models.open()
        except BaseException:
            listener.close()
            raise
        self.host, self.port = host, int(listener.getsockname()[1])
        timeout_s = self._state.settings.body_timeout_s
        config = uvicorn.Config(
            app,
            http=limited_protocol(_MAX_HEADERS, timeout_s),
            log_config=None,
            access_log=False,
            ws="none",
            server_header=False,
            h11_max_incomplete_event_size=_MAX_HEADERS,
            timeout_graceful_shutdown=int(_CUT_S),
        )
        self._server = uvicorn.Server(config)
        self._listener = listener
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="llama_cffi-server", daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise LlamaError("the server has stopped while it started; see the log")
            time.sleep(_POLL_S / 10)

    @property
    def url(self) -> str:
        """Where it can be reached on this machine: http://HOST:PORT."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

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
            self._listener.close()

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
        self._server.run(sockets=[self._listener])


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        LlamaError: The address is in use, or not one of this machine's.
    """
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as e:
        raise LlamaError(
            f"cannot listen on {host}:{port}: {e.strerror or e}; choose another port, or 0 for a "
            "free one"
        ) from e
