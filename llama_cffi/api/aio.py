"""Blocking calls from asyncio, each in a thread that no other call uses meanwhile.

The event loop's executor could deadlock: calls that wait for an engine would fill it, and the call
that holds the engine would find no free thread. Threads are used again, because starting one takes
as long as a few tokens of a small model.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from contextvars import copy_context
from typing import Any, TypeVar

from ..generation.cancellation import CancelScope
from ..media import Audio, Image, is_media_part

__all__ = ["prepared_async", "stream_async", "whole_async"]

T = TypeVar("T")
_END: Any = object()
_LONG = 20_000  # characters: some 10 ms of rendering and tokenizing
_MAX_THREADS = 2**20  # no limit


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Return the executor, which starts a thread when none is idle."""
    return ThreadPoolExecutor(_MAX_THREADS, "llama_cffi-background")


if hasattr(os, "register_at_fork"):  # a child has none of the threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


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

    _threads().submit(copy_context().run, work)
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


async def prepared_async(prepare: Callable[[], T], prompt: object) -> T:
    """Return what *prepare* does; where that takes long, the event loop goes on meanwhile.

    Args:
        prepare: Renders and tokenizes.
        prompt: What it does that with: a text, or messages. Pictures and sounds take long.
    """
    return await whole_async(prepare) if _n_characters(prompt) > _LONG else prepare()


def _n_characters(prompt: object, depth: int = 4) -> int:
    """Return the length of a text, or of the contents of messages: messages, parts, text.

    A picture or sound, which is loaded and divided into patches, counts as a long text.
    """
    if isinstance(prompt, str):
        return len(prompt)
    if isinstance(prompt, (Image, Audio)) or is_media_part(prompt):
        return _LONG + 1
    if isinstance(prompt, Mapping):
        content = prompt.get("content") or prompt.get("text")
        return _n_characters(content, depth - 1) if depth else 0
    if isinstance(prompt, (list, tuple)) and depth and prompt and not isinstance(prompt[0], int):
        return sum(_n_characters(item, depth - 1) for item in prompt)
    return 0
