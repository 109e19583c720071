"""Handle: what the caller of `InferenceEngine.submit` holds: the answer, as it comes or whole."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from ..answer import Answer, AnswerParams, Step, TextOutput
from ..errors import DecodeAbortedError
from ..interrupts import CANCEL, on_cancel
from .request import Request

if TYPE_CHECKING:
    from ..chains import Chain
    from ..stats import GenerationStats

__all__ = ["Handle"]


class Handle:
    """One submitted request.

    Iterating gives the text as it comes, `async for` too; leaving the iteration early cancels.
    `await handle` and `result()` give the whole text. One iteration at a time.

    Attributes:
        request: Its tokens, state and statistics.
        params: What the answer shall be like.
        output: Its text.
        future: Done when the request has ended; its result is the text, or the error.
    """

    def __init__(
        self, request: Request, params: AnswerParams, cancel: Callable[[Handle, str], None]
    ) -> None:
        self.request, self.params = request, params
        self.future: Future[str] = Future()
        self.future.set_running_or_notify_cancel()
        self.output: TextOutput
        self.chain: Chain | None = None
        self.answer: Answer | None = None
        # Whether each step is handed out; else only the end is.
        self.listens = request.callback is not None
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self.unsent: list[Step] = []
        self._ended = threading.Event()
        self._cancel = cancel

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self._ended.is_set()

    @property
    def text(self) -> str:
        """The answer so far."""
        return self.output.text

    @property
    def stats(self) -> GenerationStats:
        """Counts and times so far."""
        return self.request.stats

    def cancel(self) -> None:
        """End the request; what it has generated stays. Any thread may do this."""
        self._cancel(self, CANCEL)

    def result(self, timeout_s: float | None = None) -> str:
        """Wait for the end and return the whole text.

        Raises:
            TimeoutError: It has not ended in so many seconds; it goes on.
            DecodeAbortedError: It was cancelled, or its deadline passed; its `text` is what there
                was.
            GenerationError: It failed. What a callback or logits processor raised comes as it is.
        """
        try:
            ended = self._ended.wait(timeout_s)
        except KeyboardInterrupt:
            self.cancel()
            raise
        if not ended:
            raise TimeoutError(f"{self.request.id} has not ended after {timeout_s} s: {self!r}")
        return self.future.result()

    def steps(self) -> Generator[Step, None, GenerationStats]:
        """Yield each token with the text that it settled; return the statistics.

        Tokens that came before the first `next` are given as one. The errors are those of
        `result`; leaving early cancels.
        """
        on_cancel(lambda reason: self._cancel(self, reason))
        try:
            self.listens = True
            while not self.done and (step := self._steps.get()) is not None:
                yield step
            yield from filter(None, self._drain())
            if rest := self.output.take_rest():
                yield Step(None, rest)
            self.future.result()
            return self.request.stats
        finally:
            if not self.done:
                self.cancel()

    def _drain(self) -> Iterator[Step | None]:
        with suppress(queue.Empty):
            while True:
                yield self._steps.get_nowait()

    def __iter__(self) -> Iterator[str]:
        for step in self.steps():
            if step.text:
                yield step.text

    async def __aiter__(self) -> AsyncIterator[str]:
        changed = asyncio.Event()
        self._waiter = asyncio.get_running_loop(), changed
        self.listens = True
        try:
            ended = False
            while not ended:
                ended = self.done
                for step in self._drain():
                    if step is not None and step.text:
                        yield step.text
                if not ended:
                    await changed.wait()
                    changed.clear()
            if rest := self.output.take_rest():
                yield rest
            self.future.result()
        finally:
            self._waiter = None
            if not self.done:
                self.cancel()

    def __await__(self) -> Generator[object, None, str]:
        try:
            return (yield from asyncio.wrap_future(self.future).__await__())
        finally:
            if not self.done:
                self.cancel()

    # For the engine's thread

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop in which somebody waits for steps."""
        return None if self._waiter is None else self._waiter[0]

    def put(self, step: Step) -> None:
        """Hand out a step."""
        self._steps.put(step)

    def wake(self) -> None:
        """Tell the coroutine that waits; in its event loop."""
        if self._waiter is not None:
            self._waiter[1].set()

    def end(self) -> None:
        """Tell everybody that the request has ended."""
        request = self.request
        if request.error is None:
            self.future.set_result(self.output.text)
        else:
            if isinstance(request.error, DecodeAbortedError):
                request.error.text = self.output.text
            self.future.set_exception(request.error)
        self._ended.set()
        self._steps.put(None)
        if (loop := self.loop) is not None:
            with suppress(RuntimeError):  # it is closed: nobody waits there
                loop.call_soon_threadsafe(self.wake)

    def __repr__(self) -> str:
        return f"<Handle of {self.request!r}>"
