"""Blocking calls beside an event loop, each in a thread of its own.

Not in the loop's executor: callers that wait for an engine would fill it, and the one that has the
engine would find no thread to go on in.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from contextvars import copy_context
from typing import Any, TypeVar

from ..generation.cancellation import CancelScope

__all__ = ["stream_async", "whole_async"]

T = TypeVar("T")
_END: Any = object()


async def whole_async(call: Callable[[], T]) -> T:
    """Return what *call* returns. Cancelling the task ends the generation that it runs."""
    async with aclosing(stream_async(lambda: (call(),))) as values:
        # To the end: what it left under way, such as an iterator, is not to be cancelled.
        (found,) = [value async for value in values]
        return found


async def stream_async(start: Callable[[], Iterable[T]]) -> AsyncGenerator[T, None]:
    """Yield what the iterable gives that *start* returns; nothing runs before the first `anext`.

    What comes faster than it is taken waits here. Leaving the iteration, or cancelling its task,
    ends the generation behind it; neither waits for that.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[tuple[T, BaseException | None]] = asyncio.Queue()
    scope = CancelScope()

    def put(value: T, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            loop.call_soon_threadsafe(items.put_nowait, (value, error))

    def work() -> None:
        try:
            with scope:
                for value in start():
                    put(value, None)
            put(_END, None)
        except BaseException as error:
            put(_END, error)

    threading.Thread(target=copy_context().run, args=(work,), name="llama_cffi-background").start()
    value: T | None = None
    try:
        while True:
            value, error = await items.get()
            if error is not None:
                raise error
            if value is _END:
                return
            yield value
    finally:
        if value is not _END:
            scope.cancel()
