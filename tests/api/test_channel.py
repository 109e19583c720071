"""Channel: items of several producers."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from llama_cffi.api.channel import Channel


async def numbers(start: int, closed: list[int], error: bool = False) -> AsyncGenerator[int, None]:
    try:
        for i in range(3):
            await asyncio.sleep(0)
            yield start + i
        if error:
            raise KeyError(start)
        await asyncio.sleep(0)
    finally:
        closed.append(start)


def test_items_come_as_they_are_produced() -> None:
    async def read() -> list[int]:
        channel, closed = Channel[int](), list[int]()
        thread = threading.Thread(target=channel.put_threadsafe, args=[7])
        thread.start()
        thread.join()
        found = [i async for i in channel.read([numbers(10, closed), numbers(20, closed)])]
        assert sorted(closed) == [10, 20]
        return found

    assert asyncio.run(read()) == [7, 10, 20, 11, 21, 12, 22]


def test_an_error_and_leaving_close_all_sources() -> None:
    async def read(error: bool) -> None:
        channel, closed = Channel[int](), list[int]()
        sources = [numbers(10, closed, error), numbers(20, closed)]
        try:
            async with aclosing(channel.read(sources)) as items:
                async for _ in items:
                    if not error:
                        break
        finally:
            assert sorted(closed) == [10, 20]

    asyncio.run(read(False))
    with pytest.raises(KeyError):
        asyncio.run(read(True))


def test_what_a_thread_puts_before_an_item_comes_before_it() -> None:
    async def read() -> list[int]:
        channel, handed = Channel[int](), queue.SimpleQueue[int]()

        def work() -> None:
            channel.put_threadsafe(1)
            handed.put(2)

        async def source() -> AsyncGenerator[int, None]:
            thread = threading.Thread(target=work)
            thread.start()
            yield handed.get()  # without a turn of the event loop
            thread.join()

        return [i async for i in channel.read([source()])]

    assert asyncio.run(read()) == [1, 2]
