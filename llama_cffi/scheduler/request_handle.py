"""RequestHandle: a submitted request and its answer, streamed or whole."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..context_managers import contextmanager
from ..errors import DecodeAbortedError, ValidationError
from ..generation.cancellation import CANCEL, on_cancel
from ..generation.output import Detokenizer
from ..generation.sequence import GenerationParams, SequenceState, Step
from ..validation import not_picklable
from .request import Request

if TYPE_CHECKING:
    from ..generation.sampler_chains import Chain
    from ..generation.stats import GenerationStats

__all__ = ["Owner", "RequestHandle"]


_PACKAGE = str(Path(__file__).parents[1])
# What the engine's thread uses; tab completion leaves it out.
_INTERNAL = frozenset(("answer", "chain", "end", "loop", "put", "unsent", "wake"))


class Owner(Protocol):
    """The part of the engine that a handle uses."""

    def cancel(self, handle: RequestHandle, reason: str) -> None:
        """End a request."""

    def check_may_wait(self) -> None:
        """Refuse the engine's own thread, which would deadlock."""


class RequestHandle:
    """A submitted request.

    `for` and `async for` iterate over the text as it is generated, one iteration at a time;
    leaving the loop early cancels the request. `result()` and `await handle` return the whole
    text. Dropping a handle does not cancel its request.

    Attributes:
        request: The tokens, state and statistics.
        params: The parameters of the generation.
        output: The text of the answer.
        future: Done when the request has ended; its result is the text, or the error.
        listens: Whether each step is kept for iteration; otherwise only the end is signalled.
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
        self._owner: Owner | None = owner  # until the end: it holds the context

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
        """End the request, from any thread; its `text` so far stays."""
        self._cancel(CANCEL)

    def result(self, timeout_s: float | None = None) -> str:
        """Wait for the end and return the whole text.

        Raises:
            TimeoutError: The request has not ended within *timeout_s* seconds; it continues.
            DecodeAbortedError: It was cancelled, or its deadline passed; the error has its `text`.
            GenerationError: It failed. Exceptions of callbacks and logits processors are raised
                unchanged.
            ValidationError: Called in the engine's own thread, such as in a callback.
        """
        self._check_may_wait()
        try:
            self.future.exception(timeout_s)
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"{self!r} has not ended after {timeout_s} s") from None
        except KeyboardInterrupt:
            self.cancel()
            raise
        try:
            return self.future.result()
        finally:
            del self  # the error's traceback refers to this frame

    def steps(self) -> Generator[Step, None, GenerationStats]:
        """Yield each token with the text that it completed; return the statistics.

        The text generated before the first `next` comes as one step, unless log-probabilities were
        requested. Errors are those of `result`; leaving early cancels the request.
        """
        on_cancel(self._cancel)
        with self._iteration():
            self._check_may_wait()
            while not self.done and (step := self._steps.get()) is not None:
                yield step
            yield from self._drain()
            if rest := self.output.take_rest():
                yield Step(None, rest)
            try:
                self.future.result()
                return self.request.stats
            finally:
                del self  # the error's traceback refers to this frame

    def __iter__(self) -> Iterator[str]:
        with closing(self.steps()) as steps:
            for step in steps:
                if step.text:
                    yield step.text

    async def steps_async(self) -> AsyncGenerator[Step, None]:
        """Yield each token in an event loop, as `steps` does; the statistics are in `stats`.

        Raises:
            ValidationError: The request is being iterated already.
        """
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
            try:
                self.future.result()
            finally:
                del self  # the error's traceback refers to this frame

    async def __aiter__(self) -> AsyncIterator[str]:
        async with aclosing(self.steps_async()) as steps:
            async for step in steps:
                if step.text:
                    yield step.text

    def __await__(self) -> Generator[object, None, str]:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def set_ended(_: object) -> None:
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(ended.set)

        self.future.add_done_callback(set_ended)
        try:
            yield from ended.wait().__await__()
            return self.future.result()
        finally:
            self._cancel_unless_done()
            del self  # the error's traceback refers to this frame

    @contextmanager
    def _iteration(self) -> Iterator[None]:
        """Keep each step during the block; cancel the request if it is left early."""
        if not self._turn.acquire(blocking=False):
            raise ValidationError(
                f"{self!r} is being iterated already; only one iteration at a time"
            )
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
        if (owner := self._owner) is not None:
            owner.check_may_wait()

    def _cancel(self, reason: str) -> None:
        if (owner := self._owner) is not None:
            owner.cancel(self, reason)

    def _cancel_unless_done(self) -> None:
        if not self.done:
            self.cancel()

    # For the engine's thread

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop of the coroutine that waits for steps, if any."""
        waiter = self._waiter
        return None if waiter is None else waiter[0]

    def put(self, step: Step) -> None:
        """Add a step for iteration."""
        self._steps.put(step)

    def wake(self) -> None:
        """Wake the waiting coroutine; call this in its event loop."""
        if self._waiter is not None:
            self._waiter[1].set()

    def end(self) -> None:
        """Set the result or the error, and wake all that wait."""
        request = self.request
        if request.error is None:
            self.future.set_result(self.output.text)
        else:
            if isinstance(request.error, DecodeAbortedError):
                request.error.text = self.output.text
            _clear_own_frames(request.error)
            self.future.set_exception(request.error)
        self._owner = None
        self._steps.put(None)
        if (loop := self.loop) is not None:
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(self.wake)

    __reduce__ = not_picklable("send its result()")

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in _INTERNAL]

    def __repr__(self) -> str:
        return f"<RequestHandle of {self.request!r}>"


def _clear_own_frames(error: BaseException) -> None:
    # They refer to the engine and to this request, which refers to the error: only the garbage
    # collector would free them. Those of a user's callback stay, for debuggers.
    step = error.__traceback__
    frames = [] if step is None else [f for f, _ in traceback.walk_stack(step.tb_frame)]
    frames += [f for f, _ in traceback.walk_tb(step)]
    for frame in frames:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            with suppress(RuntimeError):  # it still runs
                frame.clear()
