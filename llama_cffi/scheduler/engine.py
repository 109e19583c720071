"""InferenceEngine: many requests answered at once by one model in one context.

One thread owns the context. Each of its steps asks the scheduler for a plan, decodes it in one
call, samples for each request with its own chain, and hands the tokens out.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ..answer import Step, TextOutput
from ..binding import Context, Model
from ..binding.checks import integer
from ..calls import make_call
from ..context_policy import fit_prompt
from ..errors import (
    GenerationError,
    QueueFullError,
    ValidationError,
)
from ..interrupts import CLOSE, on_cancel
from .handle import Handle
from .kv_cache import KVCache
from .metrics import EngineStats, Moment
from .request import Request
from .scheduler import Scheduler
from .worker import Worker

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..decoding import Slot
    from ..stats import GenerationStats

__all__ = ["InferenceEngine"]

_log = logging.getLogger("llama_cffi.scheduler")
_MOST_SEQUENCES = 64  # of the oldest builds


class InferenceEngine:
    """Continuous batching: requests come and go between any two steps.

    `submit` returns at once, from any thread. Each sequence has cells for `n_ctx` tokens of its
    own; with *n_cells* they share so many, which suits long common prefixes and prompts of very
    different lengths. What a prompt has in common with an earlier one is not evaluated again.

    Args:
        model_path: The GGUF file, or a `Model`, which the engine then does not close.
        n_parallel: Most requests that run at once, 1 to 256; others wait.
        n_ctx: Most tokens of prompt and answer of one request.
        n_threads: 0 = physical cores.
        n_gpu_layers: Layers on the GPU; -1 = all.
        n_batch: Most tokens in a step.
        n_chunk: Most tokens of prompts in a step that also decodes: small ones keep those that
            stream fluent. None = 128 on a CPU, n_batch on a GPU.
        n_cells: Tokens of all requests together; when they run out, the request of the lowest
            priority is put back and computed again later. None = n_parallel times n_ctx.
        block_size: Tokens in the unit of this account.
        max_waiting: Most requests that wait.
        ageing_s: Waiting so long counts as much as one step of priority.
        context_policy: What happens to prompts that are too long, see `context_policy.fit_prompt`;
            `shift` is not possible here.
        start: Begin at once in a thread; else call `start`, `run` or `step`.
        **context_options: More arguments of `Context`.

    Attributes:
        model: The model.
        context: The context; only the engine's thread may use it.
        n_ctx: Most tokens of prompt and answer of one request, as it came out.
        scheduler: Who runs and who waits.
        cache: Room and prefixes.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: A number is out of range.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | Model,
        n_parallel: int = 8,
        n_ctx: int = 4096,
        *,
        n_threads: int = 0,
        n_gpu_layers: int = -1,
        n_batch: int = 512,
        n_chunk: int | None = None,
        n_cells: int | None = None,
        block_size: int = 32,
        max_waiting: int = 1024,
        ageing_s: float = 30.0,
        context_policy: str = "error",
        start: bool = True,
        **context_options: Any,
    ) -> None:
        n_parallel = integer("n_parallel", n_parallel, 1, 256)
        self.context_policy = context_policy
        self.max_waiting = integer("max_waiting", max_waiting, 1)
        self.owns_model = not isinstance(model_path, Model)
        if isinstance(model_path, Model):
            self.model = model_path
        else:
            self.model = Model(model_path, n_gpu_layers=n_gpu_layers)
        try:
            n_ctx = n_ctx or self.model.n_ctx_train
            unified = n_cells is not None
            n_seqs = n_parallel
            if unified and not (self.model.is_recurrent or self.model.is_hybrid):
                n_seqs = max(n_parallel, min(2 * n_parallel, _MOST_SEQUENCES))  # to keep prefixes
            self.context = Context(
                self.model,
                n_ctx=n_cells if n_cells is not None else n_ctx * n_parallel,
                n_seq_max=n_seqs,
                n_batch=n_batch,
                n_threads=n_threads,
                kv_unified=unified,
                **context_options,
            )
            n_batch = min(n_batch, self.context.n_batch)
            self.cache = KVCache(
                n_seqs,
                self.context.n_ctx,
                block_size,
                unified=self.context.kv_unified,
                memory=self.context.memory,
            )
            if n_chunk is None:
                n_chunk = n_batch if self.model.offloads else 128
            self.scheduler = Scheduler(
                self.cache,
                max_running=n_parallel,
                n_batch=n_batch,
                n_chunk=n_chunk,
                n_ctx=n_ctx,
                ageing_s=ageing_s,
            )
        except BaseException:
            if self.owns_model:
                self.model.close()
            raise
        self.n_ctx = self.scheduler.n_ctx
        self._worker = Worker(self.context, self.scheduler)
        self._wanted = threading.Condition()
        self._submitted: deque[Handle] = deque()
        self._cancelled: deque[tuple[Handle, str]] = deque()
        self._clears = self._stopping = self._closed = False
        self._broken: BaseException | None = None
        self._running = threading.Lock()
        self._thread: threading.Thread | None = None
        if start:
            self.start()

    # Requests

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Turn text into token ids; see `Vocab.tokenize`."""
        return self.model.vocab.tokenize(text, add_special, parse_special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """Turn token ids into text; see `Vocab.detokenize`."""
        return self.model.vocab.detokenize(tokens, special)

    def submit(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        *,
        priority: int = 0,
        callback: Callable[[str], object] | None = None,
        adapters: Mapping[str, float] | None = None,
        wait: bool = False,
        **options: Any,
    ) -> Handle:
        """Let a prompt be answered; from any thread.

        Args:
            prompt: Text, as it is, or token ids.
            max_tokens: Most tokens to generate.
            priority: Higher goes first.
            callback: Called with each piece of text in the engine's thread; what it raises fails
                this request.
            adapters: LoRA files and their scales, for this request.
            wait: Wait while too many requests wait, instead of raising.
            **options: `sampling=SamplingParams(...)` or single sampling arguments, `stop`,
                `timeout_s`, `logprobs` and others of `GenerationOptions`.

        Raises:
            ContextOverflowError: The prompt leaves no room for an answer.
            QueueFullError: max_waiting requests wait already.
            ValidationError: An argument is out of range, or the engine is closed.
            GenerationError: The engine has stopped, with the error that stopped it as its cause.
        """
        tokens = self.tokenize(prompt, parse_special=True) if isinstance(prompt, str) else prompt
        check = self.model.vocab.check
        tokens = [check(token) for token in tokens]
        defaults = {"context_policy": self.context_policy, "safety": None, "json_stop": ()}
        call = make_call(max_tokens, {**defaults, **options}, None, (None, None, None))
        params = call.request
        if params.policy == "shift":
            raise ValidationError(
                "context_policy='shift' needs a context of one's own: use Engine, or Llama without "
                "parallel"
            )
        n_first = int(self.model.vocab.add_bos)
        fit = fit_prompt(
            tokens, params.n_predict, self.n_ctx, params.safety, params.policy, n_first=n_first
        )
        request = Request(
            fit.tokens,
            fit.n_predict,
            params.params,
            stop=[s for s in params.stop if isinstance(s, str)],
            priority=priority,
            timeout_s=call.timeout_s,
            callback=callback,
            group=frozenset(adapters.items()) if adapters else None,
        )
        request.stats.n_truncated = fit.n_truncated
        handle = Handle(request, params, self._cancel)
        handle.output = TextOutput(self.model.vocab, params)
        with self._wanted:
            while self._n_waiting >= self.max_waiting and not self._stopping:
                if not wait:
                    raise QueueFullError(
                        f"{self._n_waiting} requests wait already (max_waiting="
                        f"{self.max_waiting}); try again later, or submit with wait=True"
                    )
                self._wanted.wait()
            self._check_open()
            self._submitted.append(handle)
            self._wanted.notify_all()
        on_cancel(partial(self._cancel, handle))
        return handle

    def generate(self, prompt: str | Sequence[int], max_tokens: int = 256, **options: Any) -> str:
        """Submit a prompt and wait for the answer.

        Args:
            prompt: As for `submit`, with its errors.
            max_tokens: Most tokens to generate.
            **options: The other arguments of `submit`, and the errors of `Handle.result`.
        """
        return self.submit(prompt, max_tokens, **options).result()

    def steps(
        self, tokens: Sequence[int], n_predict: int = 256, **options: Any
    ) -> Generator[Step, None, GenerationStats]:
        """Do what `Engine.steps` does, among the other requests.

        It is under way before the first `next`, and cancelled when the iterator is dropped. Where
        too many wait it waits, too.

        Args:
            tokens: At least one token id.
            n_predict: Most tokens to generate.
            **options: The other arguments of `submit`, with its errors.
        """
        handle = self.submit(tokens, n_predict, **{"wait": True, **options})
        handle.listens = True
        steps = handle.steps()
        weakref.finalize(steps, handle.cancel).atexit = False
        return steps

    @contextmanager
    def idle(self) -> Iterator[Slot]:
        """Refuse: what `Engine.idle` gives, one context for one caller, is not there.

        Raises:
            ValidationError: Always.
        """
        raise ValidationError(
            "many requests share this context: there is no one state to save, and no one cache to "
            "change by hand. Use a Llama without parallel, or adapters= of each request."
        )
        yield

    def warm_up(self, n_tokens: int = 3) -> None:
        """Answer a dummy prompt, so that the first real one finds everything in memory.

        Raises:
            QueueFullError: max_waiting requests wait already.
            ValidationError: The engine is closed.
            GenerationError: It has stopped.
        """
        self.submit([self.model.vocab.bos or 0], n_tokens, temperature=0).result()
        self.cache_clear()

    def cache_clear(self) -> None:
        """Forget the prefixes of finished requests, before the next step."""
        with self._wanted:
            self._clears = True

    @property
    def active_requests(self) -> list[Request]:
        """Those that run or wait."""
        return [h.request for h in [*self._worker.handles.values(), *self._submitted]]

    @property
    def stats(self) -> EngineStats:
        """Counts, rates and latencies so far."""
        return self._worker.metrics.stats(
            n_waiting=self._n_waiting,
            n_running=len(self.scheduler.running),
            n_preemptions=self.scheduler.n_preemptions,
            cache=self.cache.stats,
        )

    @property
    def timeline(self) -> list[Moment]:
        """What each of the last 10,000 steps did, for plots."""
        return [*self._worker.timeline]

    # Life

    def start(self) -> None:
        """Run in a thread; nothing happens where it runs already.

        Raises:
            ValidationError: The engine is closed.
            GenerationError: It has stopped.
        """
        self._check_open()
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, name="llama_cffi-engine", daemon=True)
            self._thread.start()

    def run(self) -> None:
        """Answer requests in this thread until `shutdown`.

        Raises:
            ValidationError: It runs already.
        """
        if not self._running.acquire(blocking=False):
            raise ValidationError("this engine runs already, in another thread")
        try:
            while self._wait():
                self._step()
        except BaseException as error:  # what no request is to blame for
            _log.exception("the engine has stopped")
            self._break(error)
            raise
        finally:
            self._running.release()

    def step(self) -> bool:
        """Do one step in this thread; return whether there is more to do.

        Raises:
            ValidationError: It runs in a thread.
        """
        if not self._running.acquire(blocking=False):
            raise ValidationError("this engine runs already, in another thread")
        try:
            self._step()
            return self._has_work
        finally:
            self._running.release()

    def shutdown(self, drain: bool = True) -> None:
        """Take no more requests, end those that there are, and free everything.

        Calling it again does nothing.

        Args:
            drain: Let them finish; else they are cancelled.

        Raises:
            ValidationError: It was called in the engine's own thread, which cannot wait for itself.
        """
        with self._wanted:
            self._stopping = True
            if not drain and not self._closed:
                for handle in [*self._worker.handles.values(), *self._submitted]:
                    self._cancelled.append((handle, CLOSE))
                self.context.abort_flag.set()
            self._wanted.notify_all()
        if self._thread is threading.current_thread():
            raise ValidationError("shutdown waits for the engine's thread; call it from another")
        if self._thread is not None:
            self._thread.join()
        with self._running:
            while self._has_work and self._broken is None:
                self._step()  # it was driven by hand
            if not self._closed:
                self._closed = True
                self._worker.close()
                if self.owns_model:
                    self.model.close()

    close = shutdown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.shutdown(drain=error is None)

    # The engine's thread

    @property
    def _has_work(self) -> bool:
        return bool(self.scheduler.has_work or self._submitted or self._cancelled)

    @property
    def _n_waiting(self) -> int:
        return self.scheduler.n_waiting + len(self._submitted)

    def _wait(self) -> bool:
        """Wait for work; False = there will be none."""
        with self._wanted:
            while not self._has_work:
                if self._stopping:
                    return False
                self._wanted.wait()
        return True

    def _step(self) -> None:
        """Take what was submitted and cancelled, and do one step."""
        with self._wanted:
            for handle in self._submitted:
                self._worker.add(handle)
            self._submitted.clear()
            cancelled = [*self._cancelled]
            self._cancelled.clear()
            clears, self._clears = self._clears, False
        for handle, reason in cancelled:
            self._worker.abort(handle.request, reason)
        if clears:
            self.cache.clear()
        self._worker.step()
        with self._wanted:
            self._wanted.notify_all()  # there may be room for more that wait

    def _cancel(self, handle: Handle, reason: str) -> None:
        with self._wanted:
            self._cancelled.append((handle, reason))
            self._wanted.notify_all()

    def _break(self, error: BaseException) -> None:
        """Fail every request: the engine cannot go on."""
        with self._wanted:
            self._broken, self._stopping = error, True
            for handle in self._submitted:
                self._worker.add(handle)
            self._submitted.clear()
            self._wanted.notify_all()
        self._worker.fail_all(GenerationError(f"the engine has stopped: {error!r}"))

    def _check_open(self) -> None:
        if self._broken is not None:
            raise GenerationError(f"the engine has stopped: {self._broken!r}") from self._broken
        if self._stopping:
            raise ValidationError("this InferenceEngine is closed; open a new one")
