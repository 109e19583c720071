"""Worker: what the engine's thread does with its context; no other thread touches any of it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Hashable, Iterable
from contextlib import suppress
from typing import Any

from ..answer import Answer
from ..binding import Context, LoraAdapter
from ..chains import ChainCache
from ..errors import DecodeAbortedError
from ..interrupts import CANCEL, CLOSE, DEADLINE
from .execution import Executor
from .handle import Handle
from .metrics import Metrics, Moment
from .request import Request, RequestState
from .scheduler import Scheduler

__all__ = ["Worker"]

_REASONS = {
    CANCEL: "it was cancelled",
    DEADLINE: "its deadline passed",
    CLOSE: "the engine was closed",
}
_KEPT_MOMENTS = 10_000


class Worker:
    """Runs the steps of a scheduler in a context.

    Args:
        context: Only this uses it.
        scheduler: Says what is next.

    Attributes:
        handles: Of the requests that have not ended.
        metrics: What was done.
        timeline: What each of the last 10,000 steps did.
    """

    def __init__(self, context: Context, scheduler: Scheduler) -> None:
        self.context, self.scheduler, self.cache = context, scheduler, scheduler.cache
        self.handles: dict[Request, Handle] = {}
        self.metrics = Metrics()
        self.timeline: deque[Moment] = deque(maxlen=_KEPT_MOMENTS)
        self._executor = Executor(context, self.cache, scheduler.n_batch)
        self._chains = ChainCache(context.model)
        self._adapters: dict[str, LoraAdapter] = {}
        self._group: Hashable = None

    def add(self, handle: Handle) -> None:
        """Let a request wait for its turn."""
        self.handles[handle.request] = handle
        self.scheduler.add(handle.request)

    def step(self) -> None:
        """Do what is next: one call of C, if anything can run."""
        started = time.perf_counter()
        for request in self.scheduler.expired():
            self.abort(request, DEADLINE)
        plan = self.scheduler.schedule()
        plan.chunks = [chunk for chunk in plan.chunks if self._prepare(chunk.request)]
        if not plan.chunks:
            return
        self._use(plan.group)
        results = self._executor.run(plan.chunks, self.handles)
        ended = self.scheduler.update(plan, results)
        n_generated = 0
        for request, result in results.items():
            n_generated += len(result.tokens)
            if result.tokens and request.n_generated == len(result.tokens):
                request.stats.time_to_first_token_s = time.monotonic() - request.created_s
        self._hand_out(chunk.request for chunk in plan.chunks)
        for request in ended:
            self._end(request)
        self.metrics.step(plan.n_tokens, n_generated)
        self.timeline.append(
            Moment(
                time.monotonic(),
                time.perf_counter() - started,
                len(self.scheduler.running),
                self.scheduler.n_waiting,
                plan.n_tokens,
                n_generated,
                self.cache.n_blocks - self.cache.n_free_blocks,
            )
        )

    def _prepare(self, request: Request) -> bool:
        """Make what a request needs when it begins; False = that failed, and so has the request."""
        handle = self.handles[request]
        if handle.answer is None:
            try:
                for path, _ in request.group or ():
                    if path not in self._adapters:
                        self._adapters[path] = LoraAdapter(self.context.model, path)
                chain = handle.chain = self._chains.take(request.sampling)
                chain.output = output = handle.output
                most, stats = request.max_tokens, request.stats
                handle.answer = Answer(chain, handle.params, most, output, stats)
                handle.answer.begin(request.prompt_tokens)
            except Exception as error:
                self._give_up(request, RequestState.FAILED, error)
        return not request.finished

    def _use(self, group: Hashable) -> None:
        """Switch to the adapters of a group."""
        if group != self._group:
            wanted: Any = group or ()
            self.context.set_adapters({self._adapters[path]: scale for path, scale in wanted})
            self._group = group

    def _hand_out(self, requests: Iterable[Request]) -> None:
        """Give the steps that somebody waits for to whoever does."""
        loops: dict[asyncio.AbstractEventLoop, list[Handle]] = {}
        for request in requests:
            handle = self.handles.get(request)
            if handle is None or not handle.unsent:
                continue
            for step in handle.unsent:
                handle.put(step)
            text = "".join(step.text for step in handle.unsent)
            handle.unsent.clear()
            if (loop := handle.loop) is not None:
                loops.setdefault(loop, []).append(handle)
            if request.callback is not None and text:
                self._call_back(request, text)
        for loop, handles in loops.items():
            with suppress(RuntimeError):  # it is closed: nobody waits there
                loop.call_soon_threadsafe(_wake, handles)

    def _call_back(self, request: Request, text: str) -> None:
        assert request.callback is not None
        try:
            request.callback(text)
        except Exception as error:
            if not request.finished:
                self._give_up(request, RequestState.FAILED, error)
            else:
                request.error = error

    def abort(self, request: Request, reason: str) -> None:
        """Cancel a request, unless it has ended."""
        if not request.finished:
            error = DecodeAbortedError(f"{request.id} has ended: {_REASONS[reason]}", reason=reason)
            request.stats.finish_reason = reason
            self._give_up(request, RequestState.CANCELLED, error)

    def _give_up(self, request: Request, state: RequestState, error: BaseException) -> None:
        """End a request in another way than by its answer."""
        self.scheduler.remove(request, state, error)
        self._end(request)

    def _end(self, request: Request) -> None:
        """Tell whoever waits that a request has ended."""
        handle, stats = self.handles.pop(request), request.stats
        output, params = handle.output, handle.params
        output.finish()
        if output.stop and request.state is RequestState.FINISHED:
            stats.finish_reason, stats.stop = "stop", output.stop
        if stats.n_generated:
            since = time.monotonic() - request.created_s
            stats.decode_s = since - stats.time_to_first_token_s
            stats.prefill_s = stats.time_to_first_token_s - stats.queue_s
        if request.callback is not None and not request.error and (text := output.take_rest()):
            self._call_back(request, text)
        if handle.chain is not None:
            if handle.answer is not None:
                handle.answer.end()
            stats.seed = None if params.params.greedy else handle.chain.seed
            self._chains.give(request.sampling, handle.chain)
            handle.chain = handle.answer = None
        self.metrics.end(request)
        handle.end()

    def fail_all(self, error: BaseException) -> None:
        """Tell everybody that nothing goes on."""
        while self.handles:
            request, handle = self.handles.popitem()
            request.error = error
            handle.end()

    def close(self) -> None:
        """Free everything but the model."""
        self._chains.close()
        self.context.close()


def _wake(handles: list[Handle]) -> None:
    for handle in handles:
        handle.wake()
