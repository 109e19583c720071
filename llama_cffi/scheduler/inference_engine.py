"""InferenceEngine: many requests answered at once by one model in one context.

One thread owns the context. Each of its steps asks the scheduler for a plan, decodes it in one
call, samples for each request with its own chain, and hands the tokens out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, overload

from ..binding import Context
from ..errors import ValidationError
from ..generation.cancellation import on_cancel
from ..generation.chat_renderer import ChatOptions, ChatRenderer
from ..generation.model_source import ModelSource, open_model
from ..generation.options import GenerationOptions
from ..generation.sequence import Step
from ..validation import integer, real
from .engine_core import Worker
from .engine_thread import Runner
from .input_processor import check_options, make_handle
from .kv_cache import KVCache
from .metrics import EngineStats, Moment
from .request import Request
from .request_handle import Handle
from .scheduler import Scheduler
from .speculative import Drafter, Speculator

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..binding.context.params import MoreContextOptions
    from ..generation.sequence import ReasoningLimit
    from ..generation.slot import Slot
    from ..generation.stats import GenerationStats

__all__ = ["InferenceEngine", "SubmitOptions"]

_MOST_SEQUENCES = 64  # of the oldest builds


class SubmitOptions(GenerationOptions, total=False):
    """`GenerationOptions` and the arguments of `InferenceEngine.submit` about one request."""

    priority: int
    callback: Callable[[str], object] | None
    adapters: Mapping[str, float] | None
    n_draft: int | None
    wait: bool


class InferenceEngine(Runner):
    """Continuous batching: requests come and go between any two steps.

    `submit` returns at once, from any thread. Each sequence has cells for `n_ctx` tokens of its
    own; with *n_cells* they share so many, which suits long common prefixes and prompts of very
    different lengths. What a prompt has in common with an earlier one is not evaluated again.

    Args:
        model_path: A GGUF file, `hf:owner/repo:file`, or a `Model`, which stays open at the end.
        n_parallel: Most requests that run at once, 1 to 256; others wait. Builds before b5590
            run those of recurrent models one at a time.
        n_ctx: Most tokens of prompt and answer of one request.
        n_threads: 0 = physical cores.
        n_gpu_layers: Layers on the GPU; -1 = all.
        n_batch: Most tokens in a step.
        n_chunk: Most tokens of prompts in a step while others decode, for each prompt in the
            making: small ones keep those that stream fluent. None = 128 on a CPU, n_batch on a GPU.
        n_cells: Tokens of all requests together; when they run out, the request of the lowest
            priority is put back and computed again later. None = n_parallel times n_ctx.
        block_size: Tokens in the unit of this account.
        max_waiting: Most requests that wait, beyond those that find a place at once.
        ageing_s: Waiting so long counts as much as one step of priority.
        context_policy: What happens to prompts that are too long, see `context_policy.fit_prompt`;
            `shift` is not possible here.
        chat_format: See `Engine`.
        draft: Guesses ahead: `PromptLookup()`, `DraftModel(path)` or `MtpHead()`. The answers stay
            the same.
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
        model_path: ModelSource,
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
        chat_format: str | None = None,
        draft: Drafter | None = None,
        start: bool = True,
        **context_options: Unpack[MoreContextOptions],
    ) -> None:
        n_parallel = integer("n_parallel", n_parallel, 1, 256)
        n_ctx, n_batch = integer("n_ctx", n_ctx, 0), integer("n_batch", n_batch, 1)
        n_chunk = None if n_chunk is None else integer("n_chunk", n_chunk, 1)
        block_size = integer("block_size", block_size, 1)
        ageing_s = real("ageing_s", ageing_s, 0, 1e9, above=True)
        self.max_waiting = integer("max_waiting", max_waiting, 1)
        self.context_policy = context_policy
        self._chat_format = chat_format
        check_options(1, {}, context_policy, 1)  # refuses a policy before a model is loaded
        reads_hidden = getattr(draft, "reads_hidden", False)
        if reads_hidden:
            context_options["embeddings"] = True
        self.model, self.owns_model = open_model(
            model_path, n_gpu_layers=n_gpu_layers, load_mtp=reads_hidden
        )
        context: Context | None = None
        try:
            n_ctx = n_ctx or self.model.n_ctx_train
            unified = n_cells is not None
            n_seqs = n_parallel
            if unified and not self.model.keeps_states:
                n_seqs = max(n_parallel, min(2 * n_parallel, _MOST_SEQUENCES))  # to keep prefixes
            self.context = context = Context(
                self.model,
                n_ctx=n_cells if n_cells is not None else n_ctx * n_parallel,
                n_seq_max=n_seqs,
                n_batch=n_batch,
                n_threads=n_threads,
                kv_unified=unified or None,
                **context_options,
            )
            n_batch = min(n_batch, context.n_batch)
            self.cache = KVCache(
                context.n_seq_max if context.memory.takes_several else 1,
                context.n_ctx,
                block_size,
                unified=context.kv_unified,
                memory=context.memory,
            )
            if n_chunk is None:
                n_chunk = n_batch if self.model.offloads else 128
            self.scheduler = Scheduler(
                self.cache,
                max_running=n_parallel,
                n_batch=n_batch,
                n_chunk=n_chunk,
                mixes=context.kv_unified,
                n_ctx=n_ctx,
                ageing_s=ageing_s,
            )
            self.n_ctx = self.scheduler.n_ctx
            speculator = Speculator(draft, self.model, n_parallel, self.n_ctx) if draft else None
        except BaseException:
            if context is not None:
                context.close()
            if self.owns_model:
                self.model.close()
            raise
        super().__init__(Worker(self.context, self.scheduler, speculator))
        if start:
            self.start()

    # Requests

    @cached_property
    def renderer(self) -> ChatRenderer:
        """Renders conversations through the model's chat template; made when first used."""
        return ChatRenderer(self.model, self._chat_format)

    def tokenize_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | Callable[..., object]] | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[int]:
        """Return the tokens of a conversation, to submit; see `Engine.tokenize_chat`.

        Args:
            messages: OpenAI's shape, the oldest first.
            tools: Definitions, or Python functions.
            **options: See `ChatOptions`.

        Raises:
            TemplateError: The chat template fails, or refuses these messages.
            ValidationError: A message has the wrong shape.
        """
        return self.renderer.render(messages, tools, **options).tokens

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
        max_tokens: int | None = 256,
        *,
        priority: int = 0,
        callback: Callable[[str], object] | None = None,
        adapters: Mapping[str, float] | None = None,
        n_draft: int | None = None,
        wait: bool = False,
        listens: bool = False,
        reasoning_limit: Callable[[], ReasoningLimit] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Handle:
        """Let a prompt be answered; from any thread.

        Args:
            prompt: Text, as it is, or token ids.
            max_tokens: Most tokens to generate; None: until the model ends or the context is full.
            priority: Higher goes first.
            callback: Called with each piece of text in the engine's thread; what it raises fails
                this request.
            adapters: LoRA files and their scales, for this request.
            n_draft: Most guesses at once where the engine guesses, 0 = none; None = what pays.
            wait: Wait while too many requests wait, until `timeout_s`, instead of raising.
            listens: Keep each token for `Handle.steps`, also those that come before it is called.
            reasoning_limit: Makes the limit of the reasoning of this answer.
            **options: See `GenerationOptions`.

        Raises:
            ContextOverflowError: The prompt leaves no room for an answer.
            QueueFullError: max_waiting requests wait already.
            ValidationError: An argument is out of range, or the engine is closed; or its own
                thread, in a callback, would wait for itself.
            GenerationError: The engine has stopped, with the error that stopped it as its cause.
        """
        self._check_open()
        if wait:
            self.check_may_wait()
        handle = make_handle(
            self.model,
            self.n_ctx,
            prompt,
            check_options(
                max_tokens,
                options,
                self.context_policy,
                self.n_ctx,
                lambda: self.renderer.recommended_sampling(),
                reasoning_limit,
            ),
            self,
            priority=priority,
            callback=callback,
            adapters=adapters,
            n_draft=n_draft,
        )
        handle.listens |= listens
        if not self._inbox.submit(handle, self._n_too_many, wait):
            self._check_open()
        on_cancel(partial(self.cancel, handle))
        return handle

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = 256,
        *,
        stream: Literal[False] = False,
        **options: Unpack[SubmitOptions],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = 256,
        *,
        stream: Literal[True],
        **options: Unpack[SubmitOptions],
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = 256,
        *,
        stream: bool = False,
        **options: Unpack[SubmitOptions],
    ) -> str | Iterator[str]:
        """Submit a prompt and return the whole answer, or its pieces with *stream*.

        Args:
            prompt: As for `submit`, with its errors.
            max_tokens: As for `submit`.
            stream: Return an iterator; leaving it early cancels the request.
            **options: The other arguments of `submit`, and the errors of `Handle.result`.
        """
        handle = self.submit(prompt, max_tokens, **options)
        return iter(handle) if stream else handle.result()

    def steps(
        self,
        tokens: Sequence[int],
        max_tokens: int | None = 256,
        *,
        reasoning_limit: Callable[[], ReasoningLimit] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Generator[Step, None, GenerationStats]:
        """Do what `Engine.steps` does, among the other requests.

        It runs before the first `next`, and is cancelled when the iterator is dropped. Where too
        many requests are waiting it waits, too.

        Args:
            tokens: At least one token id.
            max_tokens: As for `submit`.
            reasoning_limit: As for `submit`.
            **options: The other arguments of `submit`, with its errors.
        """
        waiting: SubmitOptions = {"wait": True, **options}
        handle = self.submit(
            tokens, max_tokens, listens=True, reasoning_limit=reasoning_limit, **waiting
        )
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
        self._inbox.clear()

    @property
    def active_requests(self) -> list[Request]:
        """Those that run or wait."""
        return [h.request for h in [*self._worker.handles.values(), *self._inbox.submitted]]

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

    @property
    def _n_waiting(self) -> int:
        return self.scheduler.n_waiting + self._inbox.n_submitted

    def _n_too_many(self) -> int:
        """Return how many have to go before another one may wait; who finds a place does not."""
        n_places = self.scheduler.max_running - len(self.scheduler.running)
        return self._n_waiting - max(0, n_places) - self.max_waiting + 1
