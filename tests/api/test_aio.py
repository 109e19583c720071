"""Blocking calls from asyncio: their threads."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest
from support.children import Child

from llama_cffi.api.aio import stream_async, whole_async


def test_a_thread_is_used_again() -> None:
    async def main() -> set[int]:
        return {await whole_async(threading.get_ident) for _ in range(20)}

    assert len(asyncio.run(main())) < 20


def test_calls_that_wait_for_a_later_one_do_not_block_it() -> None:
    """As many as would fill the event loop's executor."""
    released = threading.Event()

    async def main() -> list[bool]:
        waiting = [asyncio.ensure_future(whole_async(released.wait)) for _ in range(100)]
        await asyncio.sleep(0.01)
        await whole_async(released.set)
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == [True] * 100


def test_errors_come_in_their_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("after one")

    found: list[int] = []

    async def main() -> None:
        async for item in stream_async(items):
            found.append(item)

    with pytest.raises(ValueError, match="after one"):
        asyncio.run(main())
    assert found == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_starts_threads_of_its_own(child: Child) -> None:
    ended = child(
        """
        import asyncio, os
        from llama_cffi.api.aio import whole_async

        def call():
            return asyncio.run(whole_async(lambda: 7))

        assert call() == 7
        if (pid := os.fork()) == 0:
            os._exit(call())
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
        timeout=30,
    )
    assert ended.stdout == "7\n", ended.stderr
