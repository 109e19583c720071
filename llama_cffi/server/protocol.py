"""Limits on the head of a request, which uvicorn's parsers do not have: size and time."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from .errors import ApiError, openai_error
from .sse import dumps

__all__ = ["limited_protocol"]

_BASE: Any = AutoHTTPProtocol  # httptools' parser where it is installed, else h11's
_NAMES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def limited_protocol(max_head_bytes: int, timeout_s: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol class with limits.

    Args:
        max_head_bytes: Size limit of the request line and headers; what arrives in one piece may
            be somewhat more.
        timeout_s: Seconds in which they must arrive, also on a connection that sends nothing.
    """

    class LimitedProtocol(_BASE):  # type: ignore[misc]
        _n_bytes = 0
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            is_head = before is None or before.response_complete
            if is_head:
                self._n_bytes += len(data)
                self._await_head()
            super().data_received(data)
            if self.cycle is not before:
                self._stop_waiting()
            elif is_head and self._n_bytes > max_head_bytes:
                self._refuse(431, f"the headers have more than {max_head_bytes:,} bytes")

        def send_400_response(self, msg: str) -> None:
            """Answer what is not HTTP."""
            self._refuse(400, f"the request is not valid HTTP: {msg}")

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(timeout_s, self._give_up)

        def _stop_waiting(self) -> None:
            self._n_bytes = 0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            if self._n_bytes:
                self._refuse(408, f"the headers did not arrive within {timeout_s:g} s")
            self.transport.close()

        def _refuse(self, status: int, message: str) -> None:
            self._stop_waiting()
            if self.transport.is_closing():
                return
            body = dumps(openai_error(ApiError(status, message)))
            head = (
                f"HTTP/1.1 {status} {_NAMES[status]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode("ascii") + body)
            self.transport.close()

    return LimitedProtocol
