"""EngineCore: the steps of an engine. Only the engine's thread uses it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from ..binding import Context, LoraAdapter
from ..generation.cancellation import CANCEL, CLOSE, DEADLINE, aborted
from ..generation.prompt_progress import PromptReport
from ..generation.sampler_chains import ChainCache
from ..generation.sequence import SequenceState, Step
from .adapter_ids import AdapterIds
from .media_encoder import MediaEncoder
from .metrics import Metrics, RequestStep, StepStats
from .model_runner import ModelRunner
from .prompt_store import PromptStore
from .request import Request, RequestState
from .request_handle import RequestHandle
from .saved_prompts import SavedPrompts
from .scheduler import Scheduler, SchedulerOutput, TokenResult
from .speculative import Speculator

__all__ = ["EngineCore"]

_log = logging.getLogger("llama_cffi.scheduler")
_REASONS = {
    CANCEL: "it was cancelled",
    DEADLINE: "its deadline has passed",
    CLOSE: "the engine was closed",
}
_TIMELINE_STEPS = 10_000


class EngineCore:
    """Schedules, decodes and delivers, step by step.

    Args:
        context: Closed at the end.
        scheduler: Selects the tokens of each step.
        speculator: Drafts tokens; None = no speculative decoding.
        store: Keeps prompts that leave the KV cache; None = they are lost.

    Attributes:
        handles: The handles of all requests that have not ended.
        metrics: Counts and latencies.
        timeline: The last 10,000 steps.
        records_requests: Whether the timeline has the requests of each step.
        saved_prompts: Saves, restores and erases single sequences.
        encoder: Encodes pictures and sounds.
    """

    encoder: MediaEncoder

    def __init__(
        self,
        context: Context,
        scheduler: Scheduler,
        speculator: Speculator | None = None,
        store: PromptStore | None = None,
    ) -> None:
        self.context, self.scheduler, self.cache = context, scheduler, scheduler.cache
        self.handles: dict[Request, RequestHandle] = {}
        self.metrics = Metrics()
        self.timeline: deque[StepStats] = deque(maxlen=_TIMELINE_STEPS)
        self.records_requests = False
        self._recorded: tuple[RequestStep, ...] = ()
        observe = None if speculator is None else speculator.observe
        self._model_runner = ModelRunner(context, self.cache, scheduler.n_batch, observe)
        import_module("numpy")  # speeds up sampling of small vocabularies too
        self._chains = ChainCache(context.model, scheduler.max_running)
        self._adapters: dict[str, LoraAdapter] = {}
        self._adapters_lock = threading.Lock()
        self._reports: dict[Request, PromptReport] = {}
        self._encoding: set[Request] = set()
        self._lora_key: Hashable = None
        self._speculator = self._opened = speculator
        self._store, self._failed = store, False
        ids = AdapterIds() if store is None else store.adapter_ids
        self.saved_prompts = SavedPrompts(context, self.cache, scheduler.n_ctx, ids, self._adapters)

    def load_adapters(self, paths: Iterable[str]) -> None:
        """Load LoRA adapters, from any thread.

        Raises:
            ModelLoadError: One is damaged, or for another model.
        """
        with self._adapters_lock:
            for path in paths:
                if path not in self._adapters:
                    self._adapters[path] = LoraAdapter(self.context.model, path)

    def add(self, handle: RequestHandle) -> None:
        """Add a request to the scheduler, once its pictures and sounds are encoded."""
        request = handle.request
        self.handles[request] = handle
        if request.prompt.media and self._to_encode(request):
            request.move(RequestState.ENCODING)
            self._encoding.add(request)
            self.encoder.submit(request, self.scheduler.rank(request)[0])
        else:
            self.scheduler.add(request)

    def encoded(self, request: Request, error: BaseException | None) -> None:
        """Add a request whose pictures and sounds are encoded, or fail it."""
        self._encoding.discard(request)
        if request.finished:
            return
        if error is not None:
            self._give_up(request, RequestState.FAILED, error)
        else:
            request.move(RequestState.PENDING)
            self.scheduler.add(request)

    @property
    def n_encoding(self) -> int:
        """Number of requests that wait for their pictures and sounds to be encoded."""
        return len(self._encoding)

    def _to_encode(self, request: Request) -> bool:
        """Whether a picture or sound is neither encoded nor in the KV cache."""
        n = 0
        if request.cache_prompt:
            n = self.cache.n_matched(request.tokens, request.lora_key)
        return any(s.end > n and not s.media.is_encoded for s in request.prompt.spans())

    @property
    def time_to_deadline_s(self) -> float | None:
        """Seconds until a request may be past its deadline; None: none has one."""
        now = self.scheduler.clock()
        times = [r.deadline_s - now for r in self._encoding if r.deadline_s is not None]
        if (first := self.scheduler.time_to_deadline_s) is not None:
            times.append(first)
        return max(0.0, min(times)) if times else None

    def expire(self) -> None:
        """End the requests past their deadline."""
        expired = self.scheduler.expired()
        if self._encoding:
            now = self.scheduler.clock()
            expired += [
                r for r in self._encoding if r.deadline_s is not None and r.deadline_s <= now
            ]
        for request in expired:
            self.abort(request, DEADLINE)

    def step(self) -> None:
        """Do one step: schedule, decode, deliver."""
        started = time.perf_counter()
        if self._speculator is not None:
            self._draft(self._speculator)
        n_tokens, n_chunks, n_generated, ended = self._decode()
        if not n_chunks:
            return
        # First: whoever has a result finds its last step counted.
        seconds = time.perf_counter() - started
        self.metrics.step(n_tokens, n_generated, seconds, n_chunks)
        # Not by `for`: an error's traceback refers to this frame, and so to its variables.
        while ended:
            self._end(ended.pop(0))
        seconds = time.perf_counter() - started
        self.timeline.append(
            StepStats(
                time.monotonic(),
                seconds,
                len(self.scheduler.running),
                self.scheduler.n_waiting + self.n_encoding,
                n_tokens,
                n_generated,
                self.cache.n_blocks - self.cache.n_free_blocks,
                self._recorded,
            )
        )

    def _decode(self) -> tuple[int, int, int, list[Request]]:
        """Return numbers of tokens, chunks and new tokens, and the requests that have ended."""
        output = self.scheduler.schedule()
        for request in output.admitted:
            if not self._prepare(request):
                output.drop(request)
        if not output.chunks or not self._set_adapters(output):
            return 0, 0, 0, []
        if self.records_requests or self._recorded:
            self._record(output)
        results = self._model_runner.run(output.chunks, self.handles)
        if self._reports:
            self._report(output, results)
        self._deliver(results)
        ended = self.scheduler.update(output, results)
        n_generated = sum([len(result.tokens) for result in results.values()])
        return output.n_tokens, len(output.chunks), n_generated, ended

    def _record(self, output: SchedulerOutput) -> None:
        """Note the requests of this step, before their states change."""
        chunks = output.chunks if self.records_requests else ()
        self._recorded = tuple(
            RequestStep(r.number, r.id, r.created_s, r.state, len(chunk.tokens))
            for chunk in chunks
            for r in [chunk.request]
        )

    def _draft(self, speculator: Speculator) -> None:
        """Draft tokens; an error only ends speculative decoding."""
        try:
            speculator.draft(self.scheduler.running)
        except Exception:
            _log.warning("drafting failed; the engine continues without it", exc_info=True)
            self._speculator = self._model_runner.observe = None
            for request in self.scheduler.running:
                request.draft = []

    def _prepare(self, request: Request) -> bool:
        """Load adapters and make the sampler chain; False = the request has failed."""
        handle = self.handles[request]
        if handle.answer is not None:
            return True  # it was preempted
        try:
            adapters: Any = request.lora_key or ()
            self.load_adapters(path for path, _ in adapters)
            chain = handle.chain = self._chains.acquire(request.sampling)
            chain.tap.output = output = handle.output
            most, stats = request.max_tokens, request.stats
            handle.answer = SequenceState(chain, handle.params, most, output, stats)
            handle.answer.begin(request.prompt)
            if (callback := handle.params.prompt_progress) is not None:
                self._reports[request] = PromptReport(callback, stats.n_prompt, stats.n_reused)
        except Exception as error:
            self._give_up(request, RequestState.FAILED, error)
        return not request.finished

    def _set_adapters(self, output: SchedulerOutput) -> bool:
        """Apply the LoRA adapters of a step; False = all of its requests have failed."""
        if output.lora_key != self._lora_key:
            wanted: Any = output.lora_key or ()
            try:
                self.context.set_adapters({self._adapters[path]: scale for path, scale in wanted})
            except Exception as error:
                for chunk in output.chunks:
                    self._give_up(chunk.request, RequestState.FAILED, error)
                return False
            self._lora_key = output.lora_key
        return True

    def _report(self, output: SchedulerOutput, results: Mapping[Request, TokenResult]) -> None:
        """Report the progress of prompts; a callback that raises fails its request."""
        for chunk in output.chunks:
            report, result = self._reports.get(chunk.request), results.get(chunk.request)
            if report is None or result is None or result.error is not None or result.lost:
                continue
            try:
                report(chunk.start + len(chunk.tokens))
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                result.error = error
            if report.is_complete:
                del self._reports[chunk.request]

    def _deliver(self, results: Mapping[Request, TokenResult]) -> None:
        """Pass new tokens to iterators and callbacks; a callback that raises fails its request."""
        loops: dict[asyncio.AbstractEventLoop, list[RequestHandle]] = {}
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
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(_wake, handles)

    def abort(self, request: Request, reason: str) -> None:
        """Cancel a request, unless it has ended."""
        if not request.finished:
            error = aborted(f"{request.id} has ended: {_REASONS[reason]}", reason)
            request.stats.finish_reason = reason
            self._give_up(request, RequestState.CANCELLED, error)

    def _give_up(self, request: Request, state: RequestState, error: BaseException) -> None:
        """End a request before its answer is complete."""
        self.scheduler.remove(request, state, error)
        self._end(request)

    def _end(self, request: Request) -> None:
        """Release what a request uses, and set its result."""
        if self._speculator is not None:
            self._speculator.forget(request)
        self._reports.pop(request, None)
        self._encoding.discard(request)
        handle, stats = self.handles.pop(request), request.stats
        output, chain = handle.output, handle.chain
        if request.state is not RequestState.FINISHED:
            output.finish()
        elif output.stop:
            stats.finish_reason, stats.stop = "stop", output.stop
        since = time.monotonic() - request.created_s
        if stats.n_generated:
            stats.decode_s = since - stats.time_to_first_token_s
            stats.prefill_s = stats.time_to_first_token_s - stats.queue_s
        elif request.state is RequestState.FINISHED:  # an empty answer
            stats.prefill_s = since - stats.queue_s
        if chain is not None:
            if handle.answer is not None:
                handle.answer.end()
            stats.seed = None if request.sampling.greedy else chain.seed
            if request.state is RequestState.FAILED:
                chain.close()  # its state is unknown
            else:
                self._chains.release(request.sampling, chain)
            handle.chain = handle.answer = None
        self.metrics.end(request)
        handle.end()

    def fail_all(
        self, others: Iterable[RequestHandle], make_error: Callable[[], BaseException]
    ) -> None:
        """Fail every request, and *others*."""
        self._failed = True
        self.handles.update({handle.request: handle for handle in others})
        for request in [*self.handles]:
            request.error = make_error()
            if not request.finished:
                request.move(RequestState.FAILED)
            self._end(request)
        self.scheduler.clear()

    def close(self) -> None:
        """Free everything except the model."""
        self.encoder.close()
        if self._opened is not None:
            self._opened.close()
        self._chains.close()
        if self._store is not None:
            self._close_store(self._store)
        self.context.close()
        for adapter in self._adapters.values():
            adapter.close()

    def _close_store(self, store: PromptStore) -> None:
        """Keep the cached prompts on disk, and wait for that; an error only loses them."""
        try:
            if store.lasts and not self._failed:
                self.cache.store_all()
        except Exception:
            _log.warning("the cached prompts are not kept", exc_info=True)
        finally:
            store.close()


def _wake(handles: list[RequestHandle]) -> None:
    for handle in handles:
        handle.wake()
