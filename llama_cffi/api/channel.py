"""Items of several producers, in the order in which they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Generic, TypeVar

__all__ = ["Channel", "between"]

T = TypeVar("T")


class Channel(Generic[T]):
    """Joins generators, and what other threads put between their items."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[T | None] = asyncio.Queue()  # None: a generator has ended

    def put_threadsafe(self, item: T) -> None:
        """Add an item, from any thread."""
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def read(self, sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        """Yield the items of all *sources* until they end; the first error ends the others."""
        tasks = [asyncio.ensure_future(self._pump(source)) for source in sources]
        n_open = len(tasks)
        try:
            while n_open:
                if (item := await self._items.get()) is not None:
                    yield item
                    continue
                n_open -= 1
                for task in tasks:
                    if task.done():
                        task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, source: AsyncGenerator[T, None]) -> None:
        # Not directly: what another thread has put before is still among the loop's callbacks.
        put = self._items.put_nowait
        try:
            async with aclosing(source):
                async for item in source:
                    self._loop.call_soon(put, item)
        finally:
            self._loop.call_soon(put, None)


async def between(
    first: Iterable[T], middle: AsyncGenerator[T, None], last: Callable[[], Iterable[T]]
) -> AsyncGenerator[T, None]:
    """Yield the items of *first*, of *middle*, and of what *last* returns when that has ended."""
    for item in first:
        yield item
    async with aclosing(middle):
        async for item in middle:
            yield item
    for item in last():
        yield item
