"""StreamStore: what is kept of named streams, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from starlette.types import Receive, Send

from llama_cffi import ValidationError
from llama_cffi.server.errors import ApiError
from llama_cffi.server.stream_store import RecordedStream, StreamStore

HEADERS = [(b"content-type", b"text/event-stream")]
START = {"type": "http.response.start", "status": 200, "headers": HEADERS}
Answer = Callable[[Receive, Send], Awaitable[None]]


def answer(*parts: bytes, then: Callable[[Receive], Awaitable[object]] | None = None) -> Answer:
    """An answer of these parts; *then* is awaited before its end."""

    async def found(receive: Receive, send: Send) -> None:
        await send(START)
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if then is not None:
            await then(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return found


async def there() -> dict[str, Any]:
    """`receive` of a client that stays."""
    await asyncio.Event().wait()
    return {}


async def gone() -> dict[str, Any]:
    """`receive` of a client that has left."""
    return {"type": "http.disconnect"}


async def nothing(*_: object) -> None:
    pass


async def forever(*_: object) -> None:
    await asyncio.Event().wait()


async def read(stream: RecordedStream, start: int = 0) -> bytes:
    return b"".join([part async for part in stream.read(start)])


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def test_only_the_last_bytes_are_kept() -> None:
    async def test() -> None:
        stream = StreamStore(max_bytes=10).begin(None, "x")
        await stream.serve(answer(b"01234567", b"89abc", b""), nothing, gone, nothing)
        assert (stream.first, stream.n_bytes) == (3, 13)
        assert await read(stream, 3) == b"3456789abc"
        assert await read(stream, 13) == b""
        for start in (0, 2, 14):
            with pytest.raises(ApiError, match=f"from={start}.* 3 to 13"):
                await read(stream, start)

    run(test())


def test_who_reads_gets_what_is_still_to_come_and_delays_nobody() -> None:
    async def test() -> None:
        stream, slow_may_go_on = StreamStore(max_bytes=4).begin(None, "x"), asyncio.Event()
        errors: list[str] = []

        async def slow() -> None:
            try:
                async for _ in stream.read(0):
                    await slow_may_go_on.wait()
            except ApiError as error:
                errors.append(error.message)

        async def much(receive: Receive, send: Send) -> None:
            await send(START)
            for part in (b"0123", b"4567", b"89ab"):
                await send({"type": "http.response.body", "body": part})
                for _ in range(10):  # who reads has time for it
                    await asyncio.sleep(0)

        readers = [asyncio.ensure_future(read(stream, 0)), asyncio.ensure_future(slow())]
        await asyncio.sleep(0)
        await stream.serve(much, nothing, there, nothing)
        assert await readers[0] == b"0123456789ab"
        slow_may_go_on.set()
        await readers[1]
        assert "from=4 is outside of the bytes 8 to 12" in errors[0]

    run(test())


def test_a_stream_goes_on_without_its_client_until_it_is_stopped() -> None:
    async def test() -> None:
        store = StreamStore()
        for receive, show in ((gone, forever), (there, nothing)):  # left, and cut as too slow
            stream = store.begin(None, "x")
            work = asyncio.ensure_future(
                stream.serve(answer(b"0", then=lambda receive: receive()), show, receive, nothing)
            )
            for _ in range(20):
                await asyncio.sleep(0)
            assert not work.done()
            assert stream.ended_s is None
            assert store.stop(None, "x")
            await work
            assert stream.ended_s is not None
            assert not store.stop(None, "x")

    run(test())


def test_an_answer_that_fails_ends_the_stream_for_all_who_read() -> None:
    async def fail(_: Receive) -> None:
        raise RuntimeError("broken")

    async def test() -> None:
        stream = StreamStore().begin(None, "x")
        reader = asyncio.ensure_future(read(stream))
        with pytest.raises(RuntimeError, match="broken"):
            await stream.serve(answer(b"0", then=fail), nothing, there, nothing)
        assert await reader == b"0"

    run(test())


def test_what_is_no_stream_goes_to_the_client_and_is_not_kept() -> None:
    async def refuse(_: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    async def test() -> None:
        store, sent = StreamStore(), list[Any]()

        async def send(message: Any) -> None:
            sent.append(message)

        stream = store.begin(None, "x")
        await stream.serve(refuse, forever, there, send)
        store.end(None, stream)
        assert [message.get("status", message.get("body")) for message in sent] == [400, b"no"]
        assert len(store) == 0

    run(test())


def test_streams_are_limited_and_the_oldest_that_has_ended_goes_first() -> None:
    async def test() -> None:
        store = StreamStore(max_streams=2)
        streams = [store.begin(None, name) for name in "ab"]
        with pytest.raises(ApiError, match="2 named streams") as refused:
            store.begin(None, "c")
        assert refused.value.status == 429
        assert store.begin(None, "b") is not streams[1]  # takes the place of its namesake
        (b,) = store.find(None, ["b"])
        await b.serve(answer(b"0"), nothing, gone, nothing)
        store.end(None, b)
        store.begin("somebody", "b")
        assert [s.name for s in store.find(None, ["a", "b", "c"])] == ["a"]
        assert len(store.find("somebody", ["a", "b"])) == 1

    run(test())


def test_streams_are_forgotten_some_time_after_their_end() -> None:
    async def test() -> None:
        store = StreamStore(kept_s=0)
        for is_replaced in (True, False):
            stream = store.begin(None, "x")
            await stream.serve(answer(b"0"), nothing, gone, nothing)
            store.end(None, stream)
            assert store.find(None, ["x"]) == [stream]
            other = store.begin(None, "x") if is_replaced else None
            await asyncio.sleep(0.01)
            assert store.find(None, ["x"]) == ([other] if other else [])

    run(test())


@pytest.mark.parametrize("wrong", [{"max_streams": 0}, {"max_bytes": 0}, {"kept_s": -1}])
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        StreamStore(**wrong)
