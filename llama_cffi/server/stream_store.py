"""Streams that clients have named: they go on without a client, and can be read again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeAlias

from starlette.types import Message, Receive, Send

from ..validation import check_float, check_int
from .errors import ApiError

__all__ = ["RecordedStream", "StreamStore", "until_left"]

_Key: TypeAlias = "tuple[str | None, str]"
_EVENTS = b"text/event-stream"


class RecordedStream:
    """A stream of events that goes on when its client leaves; its last bytes are kept.

    All who read it, its first client too, do so at their own pace: it waits for nobody.

    Args:
        name: Its name.
        max_bytes: Most bytes that are kept, the latest ones.

    Attributes:
        name: Its name.
        first: The offset of the first byte that is kept.
        n_bytes: Bytes so far.
        has_begun: Whether the response has begun; before, its model is loaded.
        started_s: When it was asked for, Unix time.
        ended_s: When it ended, Unix time; None: it goes on.
    """

    def __init__(self, name: str, max_bytes: int) -> None:
        self.name, self._max_bytes = name, max_bytes
        self.first = self.n_bytes = 0
        self.has_begun = False
        self.started_s = time.time()
        self.ended_s: float | None = None
        self._kept = bytearray()
        self._changed, self._stopped = asyncio.Event(), asyncio.Event()

    def stop(self) -> None:
        """End it as if its client had left."""
        self._stopped.set()

    async def serve(
        self,
        answer: Callable[[Receive, Send], Awaitable[None]],
        show: Callable[[], Awaitable[None]],
        receive: Receive,
        send: Send,
    ) -> None:
        """Record an answer to its end, and show it to the client while that is there.

        Args:
            answer: Answers the request.
            show: Sends the stream to the client.
            receive: ASGI's, of the client.
            send: ASGI's, of the client, for an answer that is no stream.
        """
        is_stream = False

        async def record(message: Message) -> None:
            nonlocal is_stream
            if message["type"] == "http.response.start":
                is_stream = dict(message["headers"]).get(b"content-type", b"").startswith(_EVENTS)
                self.has_begun = is_stream
                self._change()
            if not is_stream:
                await send(message)
            elif message["type"] == "http.response.body":
                self._add(message["body"])

        async def stopped() -> Message:
            await self._stopped.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await answer(stopped, record)
            finally:
                self.ended_s = time.time()
                self._change()

        async def follow() -> None:
            while not self.has_begun and self.ended_s is None:
                await self._changed.wait()
            if self.has_begun:
                await show()

        work = asyncio.ensure_future(run())
        client, left = asyncio.ensure_future(follow()), asyncio.ensure_future(until_left(receive))
        try:
            await asyncio.wait({client, left}, return_when=asyncio.FIRST_COMPLETED)
            client.cancel()
            await work
        finally:
            for task in (work, client, left):
                task.cancel()
            await asyncio.wait({work, client, left})

    async def read(self, offset: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes from *offset* on, and those to come, until the end.

        Raises:
            ApiError: The bytes at the offset are no longer kept, or not there yet.
        """
        while True:
            self.check(offset)
            changed = self._changed
            if data := bytes(self._kept[offset - self.first :]):
                offset += len(data)
                yield data
            elif self.ended_s is not None:
                return
            else:
                await changed.wait()

    def check(self, offset: int) -> None:
        """Refuse an offset that cannot be read.

        Raises:
            ApiError: It is before or after the bytes that are kept.
        """
        if not self.first <= offset <= self.n_bytes:
            raise ApiError(
                400,
                f"from={offset} is outside of the bytes {self.first} to {self.n_bytes} that are "
                f"kept of the stream {self.name!r:.60}; send the request again",
                param="from",
            )

    def _add(self, data: bytes) -> None:
        self._kept += data
        self.n_bytes += len(data)
        del self._kept[: max(0, len(self._kept) - self._max_bytes)]
        self.first = self.n_bytes - len(self._kept)
        self._change()

    def _change(self) -> None:
        """Wake all who read."""
        self._changed.set()
        self._changed = asyncio.Event()


class StreamStore:
    """Keeps named streams while they run, and some time longer.

    Args:
        max_streams: Most streams.
        max_bytes: Most bytes of a stream that are kept.
        kept_s: Seconds after its end until a stream is forgotten.

    Raises:
        ValidationError: A limit is out of range.
    """

    def __init__(
        self, max_streams: int = 64, max_bytes: int = 4 << 20, kept_s: float = 300.0
    ) -> None:
        self._max_streams = check_int("max_streams", max_streams, 1)
        self._max_bytes = check_int("max_bytes", max_bytes, 1)
        self._kept_s = check_float("kept_s", kept_s, 0, 1e6)
        self._streams: dict[_Key, RecordedStream] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._streams)

    def begin(self, owner: str | None, name: str) -> RecordedStream:
        """Return a new stream; an older one of the same owner and name is stopped.

        Args:
            owner: Who alone can find it; None: everybody.
            name: Its name.

        Raises:
            ApiError: Too many are running.
        """
        self.stop(owner, name)
        if len(self) >= self._max_streams:
            ended = [key for key, stream in self._streams.items() if stream.ended_s is not None]
            if not ended:
                raise ApiError(
                    429,
                    f"{len(self)} named streams are running, the most that are possible; try again "
                    "later, or leave out X-Conversation-Id",
                    "rate_limit_error", code="rate_limit_exceeded",
                )  # fmt: skip
            del self._streams[ended[0]]
        stream = self._streams[owner, name] = RecordedStream(name, self._max_bytes)
        return stream

    def end(self, owner: str | None, stream: RecordedStream) -> None:
        """Forget a stream that has ended: later, or now if it never began."""

        def forget() -> None:
            if self._streams.get((owner, stream.name)) is stream:
                del self._streams[owner, stream.name]

        if stream.has_begun:
            asyncio.get_running_loop().call_later(self._kept_s, forget)
        else:
            forget()

    def find(self, owner: str | None, names: Sequence[str]) -> list[RecordedStream]:
        """Return the streams of these names that are kept."""
        found = (self._streams.get((owner, name)) for name in names)
        return [stream for stream in found if stream is not None]

    def stop(self, owner: str | None, name: str) -> bool:
        """Stop and forget a stream; return whether there was one."""
        stream = self._streams.pop((owner, name), None)
        if stream is None:
            return False
        stream.stop()
        return True


async def until_left(receive: Receive) -> None:
    """Wait until the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
