"""Server-sent events: encoding, comments that keep connections alive, and slow readers.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.types import Send

__all__ = ["dumps", "event", "send_events"]

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
]
# Events that may be written in one turn of the event loop, in which no other stream is served and
# a lost connection goes unnoticed.
_BURST = 4
_PING = b": ping\n\n"
# `json.dumps` would make an encoder for each event.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_LOWEST = -9999.0  # OpenAI's log-probability of what is next to impossible


def dumps(value: object) -> bytes:
    """Return a value as JSON in UTF-8; numbers that JSON cannot write become finite ones."""
    try:
        text = _encode(value)
    except ValueError:
        text = _encode(_finite(value))
    return text.encode("utf-8", "replace")


def event(data: object, name: str | None = None) -> bytes:
    """Return an event, whose data is *data* as JSON."""
    head = b"" if name is None else b"event: %s\n" % name.encode()
    return b"%sdata: %s\n\n" % (head, dumps(data))


async def send_events(
    send: Send,
    events: AsyncGenerator[bytes, None],
    on_error: Callable[[Exception], bytes],
    *,
    headers: Mapping[str, str],
    ping_s: float,
    send_timeout_s: float,
) -> None:
    """Send the headers of a stream, then *events*.

    While a client does not read, `send` waits, and so does the generator; the engine goes on, and
    keeps the tokens of this answer only. After *send_timeout_s* the task is cancelled.

    Args:
        send: ASGI's.
        events: Encoded.
        on_error: Returns the last event after an exception.
        headers: More headers.
        ping_s: Seconds without an event until a comment is sent; infinite: none is sent.
        send_timeout_s: Seconds until a client that reads nothing is given up.
    """
    more = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *more]})
    wire = _Wire(send)
    beat = asyncio.ensure_future(wire.beat(ping_s, send_timeout_s, asyncio.current_task()))
    try:
        async with aclosing(events):
            try:
                n = 0
                async for data in events:
                    await wire.write(data)
                    n += 1
                    if n % _BURST == 0:
                        await asyncio.sleep(0)
            except Exception as error:
                await wire.write(on_error(error))
    finally:
        beat.cancel()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Wire:
    """Writes to a client, and watches how long that takes."""

    def __init__(self, send: Send) -> None:
        self._send, self._lock = send, asyncio.Lock()
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()
        self._is_sending = False

    async def write(self, data: bytes) -> None:
        async with self._lock:
            self._last, self._is_sending = self._clock(), True
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._last, self._is_sending = self._clock(), False

    async def beat(self, ping_s: float, timeout_s: float, task: asyncio.Task[Any] | None) -> None:
        """Send comments while there are no events; cancel *task* when the client does not read."""
        while True:
            limit = timeout_s if self._is_sending else ping_s
            left = self._last + limit - self._clock()
            if left > 0:
                await asyncio.sleep(min(left, ping_s, timeout_s))
            elif not self._is_sending:
                # Not here: this task must see when it takes too long.
                self._ping = asyncio.ensure_future(self.write(_PING))
                await asyncio.sleep(0)
            elif task is not None:
                task.cancel()
                return


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return -_LOWEST if value > 0 else _LOWEST
    return value
