"""Items of several generators, in the order in which they come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator

import pytest

from llama_cffi.api.channel import Channel


async def script(name: str, turns: list[asyncio.Event]) -> AsyncGenerator[str, None]:
    for i, turn in enumerate(turns):
        await turn.wait()
        yield f"{name}{i}"


def test_items_are_interleaved_as_they_come() -> None:
    async def read() -> list[str]:
        turns = [asyncio.Event() for _ in range(4)]
        sources = [script("a", turns[0::2]), script("b", turns[1::2])]
        found = []
        turns[0].set()
        async for item in Channel[str]().read(sources):
            found.append(item)
            if len(found) < 4:
                turns[len(found)].set()
        return found

    assert asyncio.run(read()) == ["a0", "b0", "a1", "b1"]


def test_other_threads_put_items_between() -> None:
    async def read() -> list[str]:
        channel, turn = Channel[str](), asyncio.Event()
        found = []
        thread = threading.Thread(target=channel.put_threadsafe, args=("x",))
        thread.start()
        async for item in channel.read([script("a", [turn])]):
            found.append(item)
            turn.set()
        thread.join()
        return found

    assert asyncio.run(read()) == ["x", "a0"]


def test_the_first_error_ends_the_others() -> None:
    async def fails() -> AsyncGenerator[str, None]:
        yield "f"
        raise ValueError("broken")

    async def read() -> None:
        waits = script("a", [asyncio.Event()])
        async for _ in Channel[str]().read([waits, fails()]):
            pass
        raise AssertionError

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(read())
