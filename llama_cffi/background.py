"""Blocking calls beside an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

__all__ = ["stream_async", "whole_async"]

T = TypeVar("T")
_END: Any = object()


async def whole_async(call: Callable[[], T]) -> T:
    """Return what *call* returns; it runs in a thread."""
    return await asyncio.to_thread(call)


async def stream_async(start: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
    """Yield what the iterator yields that *start* makes; each step runs in a thread.

    Leaving the iteration, or cancelling its task, closes the iterator after the step that runs.
    """
    iterator = await asyncio.to_thread(start)
    step: asyncio.Future[T] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, iterator, _END))
            item = await asyncio.shield(step)
            if item is _END:
                return
            yield item
    finally:
        if step is not None and not step.done():
            await asyncio.wait([step])
        close = getattr(iterator, "close", None)
        if close is not None:
            await asyncio.to_thread(close)
