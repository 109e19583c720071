"""Worker: what the engine's thread does with its context; no other thread touches any of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from ..binding import Context, LoraAdapter
from ..generation.cancellation import CANCEL, CLOSE, DEADLINE, aborted
from ..generation.sampler_chains import ChainCache
from ..generation.sequence import SequenceState, Step
from .metrics import Metrics, Moment
from .model_runner import Executor
from .request import Request, RequestState
from .request_handle import Handle
from .scheduler import Plan, Result, Scheduler
from .speculative import Speculator

__all__ = ["Worker"]

_log = logging.getLogger("llama_cffi.scheduler")
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
        speculator: Guesses ahead, if anything does.

    Attributes:
        handles: Of the requests that have not ended.
        metrics: What was done.
        timeline: What each of the last 10,000 steps did.
    """

    def __init__(
        self, context: Context, scheduler: Scheduler, speculator: Speculator | None = None
    ) -> None:
        self.context, self.scheduler, self.cache = context, scheduler, scheduler.cache
        self.handles: dict[Request, Handle] = {}
        self.metrics = Metrics()
        self.timeline: deque[Moment] = deque(maxlen=_KEPT_MOMENTS)
        self._executor = Executor(
            context,
            self.cache,
            scheduler.n_batch,
            None if speculator is None else speculator.observe,
        )
        import_module("numpy")  # with it small vocabularies are sampled sooner, too
        self._chains = ChainCache(context.model, scheduler.max_running)
        self._adapters: dict[str, LoraAdapter] = {}
        self._group: Hashable = None
        self._speculator = self._opened = speculator

    def add(self, handle: Handle) -> None:
        """Let a request wait for its turn."""
        self.handles[handle.request] = handle
        self.scheduler.add(handle.request)

    def step(self) -> None:
        """Do what is next: one call of C, if anything can run."""
        started = time.perf_counter()
        for request in self.scheduler.expired():
            self.abort(request, DEADLINE)
        if self._speculator is not None:
            self._guess(self._speculator)
        plan = self.scheduler.schedule()
        for request in plan.admitted:
            if not self._prepare(request):
                plan.drop(request)
        if not plan.chunks or not self._use(plan):
            return
        results = self._executor.run(plan.chunks, self.handles)
        self._hand_out(results)
        for request in self.scheduler.update(plan, results):
            self._end(request)
        n_tokens = plan.n_tokens
        n_generated = sum([len(result.tokens) for result in results.values()])
        seconds = time.perf_counter() - started
        self.metrics.step(n_tokens, n_generated, seconds)
        self.timeline.append(
            Moment(
                time.monotonic(),
                seconds,
                len(self.scheduler.running),
                self.scheduler.n_waiting,
                n_tokens,
                n_generated,
                self.cache.n_blocks - self.cache.n_free_blocks,
            )
        )

    def _guess(self, speculator: Speculator) -> None:
        """Have the next tokens guessed; guesses are a favour, so an error ends them only."""
        try:
            speculator.draft(self.scheduler.running)
        except Exception:
            _log.warning("guessing failed; the engine goes on without", exc_info=True)
            self._speculator = self._executor.observe = None
            for request in self.scheduler.running:
                request.draft = []

    def _prepare(self, request: Request) -> bool:
        """Make what a request needs when it begins; False = that failed, and so has the request."""
        handle = self.handles[request]
        if handle.answer is not None:
            return True  # it was put back once
        try:
            adapters: Any = request.group or ()
            for path, _ in adapters:
                if path not in self._adapters:
                    self._adapters[path] = LoraAdapter(self.context.model, path)
            chain = handle.chain = self._chains.take(request.sampling)
            chain.output = output = handle.output
            most, stats = request.max_tokens, request.stats
            handle.answer = SequenceState(chain, handle.params, most, output, stats)
            handle.answer.begin(request.prompt_tokens)
        except Exception as error:
            self._give_up(request, RequestState.FAILED, error)
        return not request.finished

    def _use(self, plan: Plan) -> bool:
        """Switch to the adapters of a plan; False = that failed, and so have its requests."""
        if plan.group != self._group:
            wanted: Any = plan.group or ()
            try:
                self.context.set_adapters({self._adapters[path]: scale for path, scale in wanted})
            except Exception as error:
                for chunk in plan.chunks:
                    self._give_up(chunk.request, RequestState.FAILED, error)
                return False
            self._group = plan.group
        return True

    def _hand_out(self, results: Mapping[Request, Result]) -> None:
        """Give the steps that somebody waits for to whoever does; who raises fails."""
        loops: dict[asyncio.AbstractEventLoop, list[Handle]] = {}
        for request, result in results.items():
            handle = self.handles[request]
            if not request.stats.time_to_first_token_s and result.tokens:
                request.stats.time_to_first_token_s = time.monotonic() - request.created_s
            if result.finish_reason:
                handle.output.finish()
            if not handle.listens:
                continue
            text = "".join(step.text for step in handle.unsent)
            for step in handle.unsent:
                handle.put(step)
            handle.unsent.clear()
            if result.finish_reason and (rest := handle.output.take_rest()):
                handle.put(Step(None, rest))
                text += rest
            if (loop := handle.loop) is not None:
                loops.setdefault(loop, []).append(handle)
            if request.callback is not None and text and result.error is None:
                try:
                    request.callback(text)
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    result.error = error
        for loop, handles in loops.items():
            with suppress(RuntimeError):  # it is closed: nobody waits there
                loop.call_soon_threadsafe(_wake, handles)

    def abort(self, request: Request, reason: str) -> None:
        """Cancel a request, unless it has ended."""
        if not request.finished:
            error = aborted(f"{request.id} has ended: {_REASONS[reason]}", reason)
            request.stats.finish_reason = reason
            self._give_up(request, RequestState.CANCELLED, error)

    def _give_up(self, request: Request, state: RequestState, error: BaseException) -> None:
        """End a request in another way than by its answer."""
        self.scheduler.remove(request, state, error)
        self._end(request)

    def _end(self, request: Request) -> None:
        """Tell whoever waits that a request has ended."""
        if self._speculator is not None:
            self._speculator.forget(request)
        handle, stats = self.handles.pop(request), request.stats
        output, chain = handle.output, handle.chain
        if request.state is not RequestState.FINISHED:
            output.finish()
        elif output.stop:
            stats.finish_reason, stats.stop = "stop", output.stop
        if stats.n_generated:
            since = time.monotonic() - request.created_s
            stats.decode_s = since - stats.time_to_first_token_s
            stats.prefill_s = stats.time_to_first_token_s - stats.queue_s
        if chain is not None:
            if handle.answer is not None:
                handle.answer.end()
            stats.seed = None if request.sampling.greedy else chain.seed
            if request.state is RequestState.FAILED:
                chain.close()  # who knows what it holds
            else:
                self._chains.give(request.sampling, chain)
            handle.chain = handle.answer = None
        self.metrics.end(request)
        handle.end()

    def fail_all(self, others: Iterable[Handle], make_error: Callable[[], BaseException]) -> None:
        """Tell everybody, and *others*, that nothing goes on."""
        self.handles.update({handle.request: handle for handle in others})
        for request in [*self.handles]:
            request.error = make_error()
            if not request.finished:
                request.move(RequestState.FAILED)
            self._end(request)

    def close(self) -> None:
        """Free everything but the model."""
        if self._opened is not None:
            self._opened.close()
        self._chains.close()
        self.context.close()
        for adapter in self._adapters.values():
            adapter.close()


def _wake(handles: list[Handle]) -> None:
    for handle in handles:
        handle.wake()
