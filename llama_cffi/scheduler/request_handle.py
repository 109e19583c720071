"""Handle: what the caller of `InferenceEngine.submit` holds: the answer, as it comes or whole."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from ..errors import DecodeAbortedError, ValidationError
from ..generation.cancellation import CANCEL, on_cancel
from ..generation.output import Detokenizer
from ..generation.sequence import GenerationParams, SequenceState, Step
from .request import Request

if TYPE_CHECKING:
    from ..generation.sampler_chains import Chain
    from ..generation.stats import GenerationStats

__all__ = ["Handle", "Owner"]


class Owner(Protocol):
    """What a handle needs of its engine."""

    def cancel(self, handle: Handle, reason: str) -> None:
        """End a request."""

    def check_may_wait(self) -> None:
        """Refuse the engine's own thread: it would wait for itself."""


class Handle:
    """One submitted request.

    Iterating gives the text as it comes, `async for` too; leaving the iteration early cancels.
    `await handle` and `result()` give the whole text. One iteration at a time. A handle that is
    dropped cancels nothing.

    Attributes:
        request: Its tokens, state and statistics.
        params: What the answer shall be like.
        output: Its text.
        future: Done when the request has ended; its result is the text, or the error.
        listens: Whether each step is handed out; else only the end is.
    """

    __slots__ = (
        "__weakref__",
        "_owner",
        "_steps",
        "_turn",
        "_waiter",
        "answer",
        "chain",
        "future",
        "listens",
        "output",
        "params",
        "request",
        "unsent",
    )

    def __init__(
        self, request: Request, params: GenerationParams, output: Detokenizer, owner: Owner
    ) -> None:
        self.request, self.params, self.output = request, params, output
        self.future: concurrent.futures.Future[str] = concurrent.futures.Future()
        self.future.set_running_or_notify_cancel()
        self.chain: Chain | None = None
        self.answer: SequenceState | None = None
        self.listens = request.callback is not None or params.logprobs is not None
        self.unsent: list[Step] = []
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._turn = threading.Lock()
        self._owner = owner

    @property
    def done(self) -> bool:
        """Whether the request has ended."""
        return self.future.done()

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
        self._owner.cancel(self, CANCEL)

    def result(self, timeout_s: float | None = None) -> str:
        """Wait for the end and return the whole text.

        Raises:
            TimeoutError: It has not ended in so many seconds; it goes on.
            DecodeAbortedError: It was cancelled, or its deadline passed; its `text` is what there
                was.
            GenerationError: It failed. What a callback or logits processor raised comes as it is.
            ValidationError: A callback waits in the engine's thread, which would never end.
        """
        self._check_may_wait()
        try:
            self.future.exception(timeout_s)
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"{self!r} has not ended after {timeout_s} s") from None
        except KeyboardInterrupt:
            self.cancel()
            raise
        return self.future.result()

    def steps(self) -> Generator[Step, None, GenerationStats]:
        """Yield each token with the text that it settled; return the statistics.

        Tokens that came before the first `next` are given as one, unless log-probabilities were
        asked for. The errors are those of `result`; leaving early cancels.
        """
        on_cancel(lambda reason: self._owner.cancel(self, reason))
        with self._iteration():
            self._check_may_wait()
            while not self.done and (step := self._steps.get()) is not None:
                yield step
            yield from self._drain()
            if rest := self.output.take_rest():
                yield Step(None, rest)
            self.future.result()
            return self.request.stats

    def __iter__(self) -> Iterator[str]:
        with closing(self.steps()) as steps:
            for step in steps:
                if step.text:
                    yield step.text

    async def steps_async(self) -> AsyncGenerator[Step, None]:
        """Do `steps` in an event loop; the statistics are in `stats`."""
        with self._iteration():
            changed = asyncio.Event()
            self._waiter = asyncio.get_running_loop(), changed
            ended = False
            while not ended:
                ended = self.done
                for step in self._drain():
                    yield step
                if not ended:
                    await changed.wait()
                    changed.clear()
            if rest := self.output.take_rest():
                yield Step(None, rest)
            self.future.result()

    async def __aiter__(self) -> AsyncIterator[str]:
        async with aclosing(self.steps_async()) as steps:
            async for step in steps:
                if step.text:
                    yield step.text

    def __await__(self) -> Generator[object, None, str]:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def tell(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(ended.set)

        self.future.add_done_callback(tell)
        try:
            yield from ended.wait().__await__()
            return self.future.result()
        finally:
            self._cancel_unless_done()

    @contextmanager
    def _iteration(self) -> Iterator[None]:
        """Have each step handed out in this block; leaving it early cancels."""
        if not self._turn.acquire(blocking=False):
            raise ValidationError(f"{self!r} is being iterated already; one at a time can do that")
        try:
            self.listens = True
            yield
        finally:
            self._waiter = None
            self._turn.release()
            self._cancel_unless_done()

    def _drain(self) -> Iterator[Step]:
        with suppress(queue.Empty):
            while True:
                if (step := self._steps.get_nowait()) is not None:
                    yield step

    def _check_may_wait(self) -> None:
        if not self.done:
            self._owner.check_may_wait()

    def _cancel_unless_done(self) -> None:
        if not self.done:
            self.cancel()

    # For the engine's thread

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop in which somebody waits for steps."""
        waiter = self._waiter
        return None if waiter is None else waiter[0]

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
        self._steps.put(None)
        if (loop := self.loop) is not None:
            with suppress(RuntimeError):  # it is closed: nobody waits there
                loop.call_soon_threadsafe(self.wake)

    def __repr__(self) -> str:
        return f"<Handle of {self.request!r}>"
