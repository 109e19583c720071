"""Blocking calls from asyncio, each in a thread of its own.

The event loop's executor could deadlock: calls that wait for an engine would fill it, and the call
that holds the engine would find no free thread.
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
    """Return the result of *call*. Cancelling the task cancels its generation."""
    async with aclosing(stream_async(lambda: (call(),))) as values:
        # Read to the end, so that an iterator that *call* returned is not cancelled.
        (result,) = [value async for value in values]
        return result


async def stream_async(start: Callable[[], Iterable[T]]) -> AsyncGenerator[T, None]:
    """Yield the items of the iterable that *start* returns; *start* is called by the first `anext`.

    Items are queued until they are consumed. Leaving the iteration, or cancelling its task, cancels
    the generation without waiting for its end.
    """
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[tuple[T, BaseException | None]] = asyncio.Queue()
    scope = CancelScope()

    def put(value: T, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
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
            try:
                if error is not None:
                    raise error
            finally:
                del error  # its traceback refers to this frame, which holds the model
            if value is _END:
                return
            yield value
    finally:
        if value is not _END:
            scope.cancel()
