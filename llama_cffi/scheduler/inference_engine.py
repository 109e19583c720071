"""InferenceEngine: continuous batching of many requests with one model in one context.

One thread owns the context. In each step the scheduler selects tokens of several requests, one
call decodes them, each request samples with its own chain, and the new tokens are delivered.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from ..binding import Context
from ..binding.context.params import MoreContextOptions
from ..context_managers import contextmanager
from ..decisions import DecisionOptions, decide_batch, decide_batch_async
from ..errors import ValidationError
from ..generation.aliases import ALIASES
from ..generation.cancellation import on_cancel
from ..generation.chat_renderer import ChatOptions, ChatRenderer
from ..generation.context_size import context_size, n_sequences
from ..generation.media import MediaProcessor, ProjectorSource
from ..generation.model_source import ModelOptions, ModelSource, open_model
from ..generation.options import OPTION_NAMES, GenerationOptions
from ..generation.request_scope import RequestScope, current_scope
from ..generation.sequence import Step
from ..memory_plan import fit
from ..validation import (
    as_path,
    check_bool,
    check_float,
    check_int,
    check_type,
    checked_arguments,
    not_picklable,
)
from .engine_core import EngineCore
from .engine_thread import EngineThread
from .input_processor import check_adapters, check_options, make_handle
from .kv_cache import KVCache
from .metrics import EngineStats, StepStats
from .named_requests import NamedRequests
from .prompt_files import read_prompt_file, write_prompt_file
from .prompt_store import PromptCacheOptions, open_prompt_store
from .renamed import renamed_arguments
from .request import Request
from .request_handle import RequestHandle
from .scheduler import Scheduler
from .speculative import Drafter, Speculator

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..decisions import DecisionInput, Question
    from ..generation.sequence import ReasoningLimit
    from ..generation.slot import Slot
    from ..generation.stats import GenerationStats

__all__ = ["InferenceEngine", "SubmitOptions"]

T = TypeVar("T")
_DEFAULTS = RequestScope()  # outside of every block
_CPU_PREFILL = 512


class SubmitOptions(GenerationOptions, total=False):
    """`GenerationOptions` and the arguments of `InferenceEngine.submit` about one request."""

    priority: int | None
    client: str | None
    callback: Callable[[str], object] | None
    adapters: Mapping[str, float] | None
    n_draft: int | None
    id: str | None
    wait: bool


class InferenceEngine:
    """Answers many requests at the same time with continuous batching.

    `submit` returns immediately, from any thread; requests join and leave between any two steps.
    By default each sequence has KV cache cells for `n_ctx` tokens of its own. With *n_kv_tokens*
    all sequences share that many, which suits long shared prefixes and prompts of very different
    lengths. A prefix shared with an earlier prompt is not evaluated again.

    Args:
        model_path: A GGUF file, `hf:owner/repo:file`, or a `Model`, which the engine does not
            close.
        n_parallel: Maximum number of running requests, 1 to 256; others wait. Builds before b5590
            run requests of recurrent models one at a time.
        n_ctx: Maximum number of tokens of one request, prompt and answer; 0 = that of the model;
            None = 4096, or that of the model if it is less; "auto" = the largest up to that of the
            model that fits into the free memory, see `plan`.
        n_threads: CPU threads; 0 = the number of physical cores.
        n_gpu_layers: Layers on the GPU; -1 = all; "auto" = as many as fit, see `plan`.
        n_batch: Maximum number of tokens in a step.
        n_prefill_chunk: Maximum number of prompt tokens in a step with decoding requests, for each
            prefilling request. Smaller chunks lower the latency between tokens. None = 128 on a
            CPU, n_batch on a GPU. Formerly `n_chunk`.
        n_kv_tokens: Capacity of a KV cache that all requests share, in tokens. When it is full,
            the request of the lowest priority is preempted and computed again later. None =
            n_parallel times n_ctx, not shared. Formerly `n_cells`.
        block_size: Tokens per block of the KV cache accounting.
        max_waiting: Maximum number of waiting requests.
        ageing_s: Waiting time in seconds that counts as much as one step of priority.
        context_policy: Handling of prompts that are too long, see `context_policy.fit_prompt`;
            `shift` is not supported here.
        chat_format: See `Engine`.
        mmproj: See `Engine`.
        image_min_tokens: See `Engine`.
        image_max_tokens: See `Engine`.
        draft: Speculative decoding: `PromptLookup()`, `DraftModel(path)` or `MtpHead()`. Answers
            do not change.
        adapters: LoRA files and their scales, for requests that have none of their own; see
            `set_adapters`.
        cache_ram: MiB of RAM for the states of prompts that leave the KV cache; 0 = none is kept,
            -1 = no limit, None = 1024, or a sixteenth of the machine's memory if that is less.
        cache_dir: A folder that keeps these prompts on disk too, and all cached ones when the
            engine is closed. Made if missing; several models and processes can share it.
        cache_disk: Most MiB of the files in *cache_dir*, -1 = no limit.
        start: Start a thread now; otherwise call `start`, `run` or `step`.
        check: See `Model`.
        check_memory: Refuse to load what cannot fit into the memory, and warn of what may not.
        **context_options: Other arguments of `Context`.

    Attributes:
        model: The model.
        context: The context; only the engine's thread may use it.
        media: Turns pictures and sounds into cells of a prompt.
        n_ctx: Maximum number of tokens of one request, as allocated.
        scheduler: Selects the tokens of each step.
        cache: Accounts for the KV cache and its prefixes.
        owns_model: Whether the model is closed with the engine.

    Raises:
        ModelLoadError: The model, or an adapter, cannot be loaded.
        ValidationError: A number is out of range.
    """

    @renamed_arguments(n_chunk="n_prefill_chunk", n_cells="n_kv_tokens")
    @checked_arguments(
        MoreContextOptions.__annotations__, ["n_ubatch"], of_model=ModelOptions.__annotations__
    )
    def __init__(
        self,
        model_path: ModelSource,
        n_parallel: int = 8,
        n_ctx: int | Literal["auto"] | None = None,
        *,
        n_threads: int = 0,
        n_gpu_layers: int | Literal["auto"] = -1,
        n_batch: int = 512,
        n_prefill_chunk: int | None = None,
        n_kv_tokens: int | None = None,
        block_size: int = 32,
        max_waiting: int = 1024,
        ageing_s: float = 30.0,
        context_policy: str = "error",
        chat_format: str | None = None,
        mmproj: ProjectorSource | None = None,
        image_min_tokens: int | None = None,
        image_max_tokens: int | None = None,
        draft: Drafter | None = None,
        adapters: Mapping[str, float] | None = None,
        cache_ram: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_disk: int = 8192,
        start: bool = True,
        check: str | None = None,
        check_memory: bool = True,
        **context_options: Unpack[MoreContextOptions],
    ) -> None:
        n_parallel = check_int("n_parallel", n_parallel, 1, 256)
        n_batch = check_int("n_batch", n_batch, 1)
        if n_ctx is not None and n_ctx != "auto":
            n_ctx = check_int("n_ctx", n_ctx, 0)
        if n_prefill_chunk is not None:
            n_prefill_chunk = check_int("n_prefill_chunk", n_prefill_chunk, 1)
        if n_kv_tokens is not None:
            n_kv_tokens = check_int("n_kv_tokens", n_kv_tokens, 1)
        block_size = check_int("block_size", block_size, 1)
        ageing_s = check_float("ageing_s", ageing_s, 0, 1e9, above=True)
        self.max_waiting = check_int("max_waiting", max_waiting, 1)
        self.context_policy = context_policy
        prompt_cache = PromptCacheOptions(cache_ram, cache_dir, cache_disk)
        self._chat_format = chat_format
        self._renderer: ChatRenderer | None = None
        check_options(1, {}, context_policy, 1)  # checks the policy before the model is loaded
        reads_hidden = getattr(draft, "reads_hidden", False)
        if reads_hidden:
            context_options["embeddings"] = True
        fitted = fit(
            model_path,
            {
                **context_options,
                "n_ctx": n_ctx,
                "n_parallel": n_parallel,
                "n_kv_tokens": n_kv_tokens,
                "n_batch": n_batch,
                "n_gpu_layers": n_gpu_layers,
                "draft": draft if hasattr(draft, "open") else None,
                "adapters": adapters,
                "mmproj": mmproj,
                "image_max_tokens": image_max_tokens,
            },
            check_memory=check_bool("check_memory", check_memory),
        )
        self.model, self.owns_model = open_model(
            fitted.source, n_gpu_layers=fitted.n_gpu_layers, load_mtp=reads_hidden, check=check
        )
        context: Context | None = None
        try:
            n_ctx = context_size(fitted.n_ctx, self.model, context_options)
            unified = n_kv_tokens is not None
            if unified:
                context_options["kv_unified"] = True
            n_seqs = n_sequences(
                n_parallel, shares_cells=unified, keeps_states=self.model.keeps_states
            )
            self.media = MediaProcessor(
                self.model,
                mmproj,
                image_min_tokens=image_min_tokens,
                image_max_tokens=image_max_tokens,
                n_threads=n_threads,
            )
            more: dict[str, Any] = {**context_options}
            n_batch, more["n_ubatch"] = self.media.batch_sizes(n_batch, more.get("n_ubatch"))
            self.context = context = Context(
                self.model,
                n_ctx=n_kv_tokens if n_kv_tokens is not None else n_ctx * n_parallel,
                n_seq_max=n_seqs,
                n_batch=n_batch,
                n_threads=n_threads,
                check_memory=check_memory,
                **more,
            )
            n_batch = min(n_batch, context.n_batch)
            store = open_prompt_store(context, prompt_cache)
            self.cache = KVCache(
                context.n_seq_max if context.memory.takes_several else 1,
                context.n_ctx,
                block_size,
                unified=context.kv_unified,
                memory=context.memory,
                store=store,
            )
            n_fast = n_batch if self.model.offloads else _CPU_PREFILL
            if n_prefill_chunk is None:
                n_prefill_chunk = n_fast
            self.scheduler = Scheduler(
                self.cache,
                max_running=n_parallel,
                n_batch=n_batch,
                # Prompts in shared cells often share a long prefix, which large steps read once.
                n_prefill_shared=min(context.n_ubatch, n_batch if context.kv_unified else n_fast),
                n_prefill_chunk=n_prefill_chunk,
                mix_prefill=context.kv_unified,
                n_ctx=n_ctx,
                ageing_s=ageing_s,
            )
            self.n_ctx = self.scheduler.n_ctx
            if chat_format is not None:
                _ = self.renderer  # refuses an unknown one now
            speculator = Speculator(draft, self.model, n_parallel, self.n_ctx) if draft else None
        except BaseException:
            if context is not None:
                context.close()
            if self.owns_model:
                self.model.close()
            raise
        self._core = EngineCore(self.context, self.scheduler, speculator, store)
        self._thread = EngineThread(self._core)
        self._queue = self._thread.queue
        # The thread never refers to this object; at exit it is stopped by other means. Weak,
        # because the errors of an engine that died refer to both.
        weakref.finalize(self, _drop, weakref.ref(self._thread)).atexit = False
        self._named = NamedRequests()
        self._adapters: dict[str, float] = {}
        if adapters is not None:
            try:
                self.set_adapters(adapters)
            except BaseException:
                self.close()
                raise
        if start:
            self.start()

    __reduce__ = not_picklable(
        "pass the model's path to the other process and open it there; threads can share it"
    )

    def __repr__(self) -> str:
        name = self.model.path.name
        if self.context.closed:
            return f"<InferenceEngine {name} closed>"
        n_running, paused = len(self.scheduler.running), ", paused" if self.paused else ""
        tuned = ", tuned" if self.context.tuned else ""
        return (
            f"<InferenceEngine {name} n_parallel={self.scheduler.max_running} n_ctx={self.n_ctx}: "
            f"{n_running} running, {self._n_waiting} waiting{paused}{tuned}>"
        )

    # Life

    def start(self) -> None:
        """Run in a new thread, unless the engine is already running.

        Raises:
            ClosedError: The engine is closed.
            EngineDeadError: It has stopped on an error.
        """
        self._thread.start()

    def check_open(self) -> None:
        """Raise unless requests are accepted.

        Raises:
            ClosedError: The engine is closed.
            EngineDeadError: It has stopped on an error.
        """
        self._thread.check_open()

    def run(self) -> None:
        """Answer requests in this thread until `shutdown`.

        Raises:
            ValidationError: The engine is already running.
            EngineDeadError: It has stopped on an error.
        """
        self._thread.run()

    def step(self) -> bool:
        """Do one step in this thread; return whether there is more to do now.

        Raises:
            ValidationError: The engine is already running.
            EngineDeadError: It has stopped on an error.
        """
        return self._thread.step()

    def pause(self) -> None:
        """Let all requests wait after the current step, until `resume`; from any thread.

        New ones can be submitted. Cancellations and deadlines count as always.
        """
        self._queue.pause(True)

    def resume(self) -> None:
        """Go on after `pause`; shutting down does it too."""
        self._queue.pause(False)

    @property
    def paused(self) -> bool:
        """Whether requests wait for `resume`."""
        return self._queue.paused

    def shutdown(self, drain: bool = True) -> None:
        """Refuse new requests, end all others, and free everything.

        Calling it again does nothing, or with drain=False cancels what another thread drains.

        Args:
            drain: Let the requests finish; otherwise cancel them.

        Raises:
            ValidationError: Called in the engine's own thread, which cannot wait for itself.
        """
        try:
            self._thread.shutdown(drain)
        finally:
            if self.owns_model and self.context.closed:
                self.model.close()

    def close(self) -> None:
        """Cancel all requests and free everything. Calling it again does nothing.

        Raises:
            ValidationError: As for `shutdown`.
        """
        self.shutdown(drain=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.shutdown(drain=error is None)

    # Adapters

    @property
    def adapters(self) -> dict[str, float]:
        """The LoRA files and scales of requests that have none of their own."""
        return dict(self._adapters)

    def set_adapters(self, adapters: Mapping[str, float]) -> None:
        """Use exactly these LoRA adapters for new requests that have none of their own.

        Requests with different adapters do not share a batch; they take turns.

        Args:
            adapters: LoRA files and their scales; a scale of 0 keeps the adapter loaded only.

        Raises:
            ModelLoadError: An adapter is damaged, or for another model.
            ValidationError: A scale is out of range.
            ClosedError: The engine is closed.
        """
        self._thread.check_open()
        checked = check_adapters(adapters)
        self._core.load_adapters(checked)
        self._adapters = checked

    # Requests

    @property
    def renderer(self) -> ChatRenderer:
        """Renders conversations through the model's chat template; made when first used."""
        if self._renderer is None:
            self._renderer = ChatRenderer(self.model, self._chat_format, self.media)
        return self._renderer

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

    def detokenize(
        self, tokens: Sequence[int], special: bool = False, *, keep_space: bool = False
    ) -> str:
        """Turn token ids into text; see `Vocab.detokenize`."""
        return self.model.vocab.detokenize(tokens, special, keep_space=keep_space)

    @checked_arguments(OPTION_NAMES, ALIASES)
    def submit(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = 256,
        *,
        priority: int | None = None,
        client: str | None = None,
        callback: Callable[[str], object] | None = None,
        adapters: Mapping[str, float] | None = None,
        n_draft: int | None = None,
        id: str | None = None,
        wait: bool = False,
        listens: bool = False,
        reasoning_limit: Callable[[], ReasoningLimit] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> RequestHandle:
        """Submit a prompt, from any thread.

        Args:
            prompt: Text or token ids; no chat template is applied.
            max_tokens: Maximum number of tokens to generate; None: until the model ends or the
                context is full.
            priority: Requests of higher priority run first. None: that of the `RequestScope` open
                here, else 0.
            client: For whom it runs, any name. When sequences are short, the client with the fewest
                running requests is served first, of equals the one served least recently. None:
                that of the `RequestScope` open here; all without one count as one client.
            callback: Called with each piece of text, in the engine's thread. An exception fails
                this request.
            adapters: LoRA files and their scales, for this request; None: those of the
                `RequestScope` open here, else those of `set_adapters`.
            n_draft: Maximum number of draft tokens per step in speculative decoding; 0 = none,
                None = chosen by the acceptance rate.
            id: Name of the request, for `cancel` and messages; None: a numbered one. Those of
                requests that have not ended must differ.
            wait: When the queue is full, wait until `timeout_s` instead of raising.
            listens: Keep every token for `RequestHandle.steps` from the start.
            reasoning_limit: Makes the limit of the reasoning of this answer.
            **options: See `GenerationOptions`.

        Raises:
            ContextOverflowError: The prompt fills the context, so no token can be generated.
            QueueFullError: max_waiting requests are waiting already.
            ValidationError: An argument is out of range; or *wait* was used in the engine's own
                thread, such as in a callback.
            ClosedError: The engine is closed.
            EngineDeadError: It has stopped on an error, which is the cause of this one.
        """
        thread = self._thread
        thread.check_open()
        if wait:
            thread.check_may_wait()
        scope = current_scope() or _DEFAULTS
        if adapters is None:
            adapters = self._adapters if scope.adapters is None else scope.adapters
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
            thread,
            priority=scope.priority if priority is None else priority,
            callback=callback,
            adapters=adapters,
            n_draft=n_draft,
            id=id,
            client=scope.client if client is None else client,
        )
        handle.listens |= listens
        if id is not None:
            self._named.add(id, handle)
        try:
            if not self._queue.submit(handle, self._n_over_limit, wait):
                thread.check_open()
        except BaseException:
            if id is not None:
                self._named.discard(id)
            raise
        if scope is not _DEFAULTS:
            scope.stats.append(handle.stats)
        on_cancel(partial(thread.cancel, handle))
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

    @checked_arguments()
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
            **options: The other arguments of `submit`; errors also as for `RequestHandle.result`.
        """
        handle = self.submit(prompt, max_tokens, **options)
        if stream:
            return iter(handle)
        try:
            return handle.result()
        finally:
            del handle  # its error's traceback refers to this frame

    @overload
    def decide(
        self,
        input: DecisionInput,
        questions: type[T] | Question[T],
        **options: Unpack[DecisionOptions],
    ) -> T: ...

    @overload
    def decide(
        self,
        input: DecisionInput,
        questions: Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> list[T]: ...

    def decide(
        self,
        input: DecisionInput,
        questions: type[T] | Question[T] | Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> T | list[T]:
        """Answer closed questions about an input with probabilities; nothing is generated.

        The input comes first in every prompt and is evaluated once: all questions share it.

        Args:
            input: The text that the questions are about; a conversation in OpenAI's format; or
                any other JSON object or list.
            questions: A question, which gives its answer; a list of them, which gives a list; or
                bool, an Enum, a Literal, a dataclass of these, or `Decision` of one, which gives
                a value.
            **options: See `DecisionOptions`.

        Raises:
            ContextOverflowError: The input does not fit into the context.
            DeadlineExceededError: `timeout_s` has passed.
            TemplateError: The chat template refuses the input.
            ValidationError: A question or the input has the wrong shape; the model has no labels
                for that many options, or does not predict tokens.
            ClosedError: The engine is closed.
        """
        result: T | list[T] = decide_batch(self, [input], questions, options)[0]
        return result

    @overload
    async def decide_async(
        self,
        input: DecisionInput,
        questions: type[T] | Question[T],
        **options: Unpack[DecisionOptions],
    ) -> T: ...

    @overload
    async def decide_async(
        self,
        input: DecisionInput,
        questions: Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> list[T]: ...

    async def decide_async(
        self,
        input: DecisionInput,
        questions: type[T] | Question[T] | Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> T | list[T]:
        """Call `decide` in an event loop. Cancelling the task cancels its requests."""
        results = await decide_batch_async(self, [input], questions, options)
        result: T | list[T] = results[0]
        return result

    @overload
    def decide_batch(
        self,
        inputs: Sequence[DecisionInput],
        questions: type[T] | Question[T],
        **options: Unpack[DecisionOptions],
    ) -> list[T]: ...

    @overload
    def decide_batch(
        self,
        inputs: Sequence[DecisionInput],
        questions: Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> list[list[T]]: ...

    def decide_batch(
        self,
        inputs: Sequence[DecisionInput],
        questions: type[T] | Question[T] | Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> list[T] | list[list[T]]:
        """Answer the same questions about several inputs; return the results in order.

        Args:
            inputs: See `decide`, also for the errors.
            questions: See `decide`.
            **options: See `DecisionOptions`.
        """
        return decide_batch(self, inputs, questions, options)

    def steps(
        self,
        tokens: Sequence[int],
        max_tokens: int | None = 256,
        *,
        reasoning_limit: Callable[[], ReasoningLimit] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Generator[Step, None, GenerationStats]:
        """Yield each token as `Engine.steps` does, concurrently with other requests.

        The request starts before the first `next`, and is cancelled when the iterator is dropped.
        When the queue is full, it waits.

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
        # The error in a handle refers to frames that may refer to the iterator.
        weakref.finalize(steps, _cancel, weakref.ref(handle)).atexit = False
        return steps

    @contextmanager
    def idle(self) -> Iterator[Slot]:
        """Raise: unlike `Engine.idle`, the context cannot be lent to one caller.

        Raises:
            ValidationError: Always.
        """
        raise ValidationError(
            "many requests share this context, so its state cannot be saved and its cache cannot "
            "be edited; use a Llama without n_parallel, or adapters= of each request"
        )
        yield

    def warm_up(self, n_tokens: int = 3) -> None:
        """Answer a dummy prompt, which loads the weights into memory.

        Raises:
            QueueFullError: max_waiting requests are waiting already.
            ValidationError: Called in the engine's own thread, such as in a callback.
            ClosedError: The engine is closed.
            EngineDeadError: It has stopped on an error.
        """
        self.submit([self.model.vocab.bos or 0], n_tokens, temperature=0).result()
        self.cache_clear()

    def cache_clear(self) -> None:
        """Drop the prefixes of finished requests before the next step, those in RAM too.

        What is on disk, in `cache_dir`, remains.
        """
        self._queue.clear_cache()

    def save_prompt(self, seq_id: int, path: str | os.PathLike[str], *, wait: bool = False) -> int:
        """Write what a sequence holds to a file; return the number of tokens.

        Args:
            seq_id: The sequence; that of a request is its `request.last_seq_id`.
            path: The file; replaced if it exists.
            wait: While a request uses the sequence, wait for its end, until the deadline of the
                `RequestScope` open here, instead of raising.

        Raises:
            OSError: It cannot be written.
            LlamaError: llama.cpp does not save the sequence.
            ValidationError: The sequence is in use, empty, or does not exist; or this was called
                in the engine's own thread, such as in a callback.
            DeadlineExceededError: It was in use until the deadline.
            ClosedError: The engine is closed.
        """
        seq_id, path = self._check_seq_id(seq_id), as_path("path", path)
        save = partial(self._core.saved_prompts.save, seq_id, path.name)
        file, key, state = self._thread.call(save, self._is_idle(seq_id, wait))
        write_prompt_file(path, file, key, state)
        return len(file.prompt)

    def restore_prompt(
        self, seq_id: int, path: str | os.PathLike[str], *, wait: bool = False
    ) -> int:
        """Replace what a sequence holds by a file of `save_prompt`; return the number of tokens.

        Later prompts that begin like it compute only the rest. Load only files that you made: the
        checksum detects damage but not forgery.

        Args:
            seq_id: The sequence, any that is not in use.
            path: The file.
            wait: As for `save_prompt`.

        Raises:
            OSError: It cannot be read.
            ContextOverflowError: It has more tokens than `n_ctx`.
            LlamaError: llama.cpp does not load it; the sequence is empty then.
            ValidationError: The file is damaged, or was saved with another model, build, type of
                cache, context size or number of sequences, with a LoRA adapter that is not
                loaded, or with pictures or sounds, and there is no projector; or as for
                `save_prompt`.
            ClosedError: The engine is closed.
        """
        seq_id, path = self._check_seq_id(seq_id), as_path("path", path)
        self._thread.check_open()
        file, key, state = read_prompt_file(path)
        if file.prompt.media and self.media.modalities == ("text",):
            raise ValidationError(
                f"{path.name} has pictures or sounds, and without their projector no prompt can "
                "continue from it; pass the projector with mmproj='mmproj.gguf'"
            )
        restore = partial(self._core.saved_prompts.restore, seq_id, file, key, state)
        self._thread.call(restore, self._is_idle(seq_id, wait))
        return len(file.prompt)

    def erase_prompt(self, seq_id: int, *, wait: bool = False) -> int:
        """Forget what a sequence holds, also in RAM; return the number of tokens.

        Other sequences that hold the same prompt, and what is on disk, in `cache_dir`, remain.

        Args:
            seq_id: The sequence.
            wait: As for `save_prompt`.

        Raises:
            ValidationError: It is in use or does not exist; or as for `save_prompt`.
            ClosedError: The engine is closed.
        """
        seq_id = self._check_seq_id(seq_id)
        erase = partial(self._core.saved_prompts.erase, seq_id)
        return self._thread.call(erase, self._is_idle(seq_id, wait))

    def _is_idle(self, seq_id: int, wait: bool) -> Callable[[], bool] | None:
        """Return what tells whether a sequence is not in use; None: that is not waited for."""
        cache = self.cache  # what waits must not refer to this object
        return (lambda: not cache.is_busy(seq_id)) if check_bool("wait", wait) else None

    def _check_seq_id(self, seq_id: int) -> int:
        return check_int("seq_id", seq_id, 0, self.cache.n_seqs - 1)

    def cancel(self, handle: RequestHandle | str) -> None:
        """End a request; see `RequestHandle.cancel`.

        Args:
            handle: The request, or the id that `submit` got. If it has ended, nothing happens.

        Raises:
            ValidationError: It is neither.
        """
        found = self._named.get(handle) if isinstance(handle, str) else handle
        if found is not None:
            check_type("handle", found, RequestHandle)
            self._thread.cancel(found)

    @property
    def active_requests(self) -> list[Request]:
        """All running and waiting requests."""
        return [h.request for h in [*self._core.handles.values(), *self._queue.submitted]]

    @property
    def stats(self) -> EngineStats:
        """Counts, rates and latencies so far."""
        return self._core.metrics.stats(
            n_waiting=self._n_waiting,
            n_running=len(self.scheduler.running),
            n_preemptions=self.scheduler.n_preemptions,
            cache=self.cache.stats,
        )

    @property
    def timeline(self) -> list[StepStats]:
        """The last 10,000 steps."""
        return [*self._core.timeline]

    @property
    def records_requests(self) -> bool:
        """Whether `timeline` has the requests of each step; can be set at any time."""
        return self._core.records_requests

    @records_requests.setter
    def records_requests(self, records: bool) -> None:
        self._core.records_requests = check_bool("records_requests", records)

    @property
    def _n_waiting(self) -> int:
        return self.scheduler.n_waiting + self._core.n_encoding + self._queue.n_submitted

    def _n_over_limit(self) -> int:
        """Return how many requests must leave the queue before another one may enter it."""
        n_free = self.scheduler.max_running - len(self.scheduler.running)
        return self._n_waiting - max(0, n_free) - self.max_waiting + 1


def _cancel(ref: weakref.ref[RequestHandle]) -> None:
    if (handle := ref()) is not None:
        handle.cancel()


def _drop(ref: weakref.ref[EngineThread]) -> None:
    """Let the thread of a dropped engine end."""
    if (thread := ref()) is not None:
        thread.drop()
