"""Server-sent events, without a server."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest

from llama_cffi.server.sse import dumps, event, send_events

OPTIONS: dict[str, Any] = {"headers": {}, "ping_s": 60.0, "send_timeout_s": 60.0}


def test_events_hold_json_on_one_line() -> None:
    assert event({"a": "x\n\ny é"}) == b'data: {"a":"x\\n\\ny \xc3\xa9"}\n\n'
    assert event([1], "ping") == b"event: ping\ndata: [1]\n\n"


def test_json_has_only_finite_numbers() -> None:
    data = {"a": [-math.inf, math.inf, math.nan, 1.5], "b": {"c": (-math.inf,)}}
    assert json.loads(dumps(data)) == {"a": [-9999, 9999, -9999, 1.5], "b": {"c": [-9999]}}


def test_a_name_that_utf8_cannot_write_breaks_nothing() -> None:
    assert json.loads(dumps("a\ud800")) == "a?"


async def numbers(n: int, error: Exception | None = None) -> AsyncGenerator[bytes, None]:
    for i in range(n):
        yield event(i)
    if error is not None:
        raise error


def test_an_exception_becomes_the_last_event() -> None:
    sent: list[Any] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    def told(error: Exception) -> bytes:
        return event(str(error))

    asyncio.run(send_events(send, numbers(2, OSError("gone")), told, **OPTIONS))
    bodies = [message.get("body") for message in sent[1:]]
    assert bodies == [b"data: 0\n\n", b"data: 1\n\n", b'data: "gone"\n\n', b""]
    assert [message.get("more_body") for message in sent[1:]] == [True, True, True, False]


def test_a_client_that_never_reads_is_given_up_and_its_events_end() -> None:
    ended = []

    async def send(message: MutableMapping[str, Any]) -> None:
        if message.get("body"):
            await asyncio.Event().wait()

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield event(1)
        finally:
            ended.append(True)

    async def run() -> None:
        options = {**OPTIONS, "send_timeout_s": 0.05}
        with pytest.raises(asyncio.CancelledError):
            await asyncio.ensure_future(send_events(send, events(), repr_of, **options))

    asyncio.run(run())
    assert ended == [True]


def repr_of(error: Exception) -> bytes:
    return repr(error).encode()


def test_a_silent_stream_gets_comments_between_events() -> None:
    sent: list[bytes] = []
    done = asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))
        if sent.count(b": ping\n\n") == 3:
            done.set()

    async def events() -> AsyncGenerator[bytes, None]:
        yield event("first")
        await done.wait()
        yield event("last")

    asyncio.run(send_events(send, events(), repr_of, **{**OPTIONS, "ping_s": 0.01}))
    assert sent[1] == event("first")
    assert sent[-2] == event("last")
