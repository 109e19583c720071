"""Engine: one model that generates text, one call at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, overload

from ..binding import Batch, Context
from ..binding.context.params import MoreContextOptions
from ..context_managers import contextmanager
from ..errors import ClosedError, DecodeAbortedError, ValidationError
from ..generation.call_lock import CallLock, Turn
from ..generation.cancellation import CANCEL, CLOSE, DEADLINE, CancelToken
from ..generation.chat_renderer import ChatOptions, RenderedChat, as_messages
from ..generation.context_policy import fit_prompt
from ..generation.context_size import context_size
from ..generation.loop import generate
from ..generation.media import MediaProcessor, ProjectorSource
from ..generation.model_source import ModelOptions, ModelSource, open_model
from ..generation.options import (
    CallOptions,
    GenerationCall,
    GenerationOptions,
    MainOptions,
    parse_options,
)
from ..generation.output import Detokenizer, StopChecker
from ..generation.prompt import Prompt, tokenize_prompt
from ..generation.request_scope import current_scope
from ..generation.sampler_chains import ChainCache
from ..generation.sampling_params import MoreSamplingOptions
from ..generation.sequence import Step
from ..generation.slot import Slot
from ..generation.stats import GenerationStats
from ..memory_plan import fit
from ..validation import INT32_MAX, check_bool, checked_arguments, not_picklable
from . import environment, preset, stages
from .chat_prompts import ChatPrompts

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..generation.chat_renderer import ChatRenderer
    from ..generation.sequence import ReasoningLimit
    from ..grammars import LlamaGrammar
    from ..progress import Progress
    from .chat_prompts import Messages, Tools


__all__ = ["Engine", "EngineOptions"]

_log = logging.getLogger(__name__)
T = TypeVar("T")


class PolarisOptions(TypedDict, total=False):
    """Polaris Core's names for `max_tokens`, the penalties, and `reset_kv_cache`."""

    n_predict: int | None
    penalty_freq: float | None
    penalty_present: float | None
    reset_kv: bool | None


class MoreEngineOptions(
    MoreSamplingOptions, CallOptions, MainOptions, ChatOptions, PolarisOptions, total=False
):
    """`EngineOptions` except the positional parameters of `Engine.generate`."""


class EngineOptions(GenerationOptions, ChatOptions, PolarisOptions, total=False):
    """`GenerationOptions`, `ChatOptions` and `PolarisOptions`."""


class Engine:
    """One model and one context that answer one call at a time.

    Calls from several threads queue. A call that meets a stream which is not being read takes the
    context from it: immediately while only one thread uses the engine, else once the stream has not
    been continued for as long as decoding its prompt took (0.1 to 5 s). The stream can still be
    continued; it waits for that call, and decodes again what the KV cache lost. `close` does not
    wait: a running generation ends with a ClosedError, and then the engine's memory is freed.

    Arguments override the environment. `LLAMA_CFFI_N_GPU_LAYERS`, `_BATCH` and `_UBATCH` are read
    by the constructor; `_SAFETY`, `_RESET_KV` and `_JINJA` by every call, and `_FLUSH`,
    `_TOKFLUSH`, `_MS_FLUSH`, `_SPECIAL`, `_SUPPRESS_THINK` and `_STAGE` by those that return text.
    `POLARIS_X` is an alias of each.

    Args:
        model_path: A GGUF file, `hf:owner/repo:file`, or a loaded `Model`, which `close` leaves
            open.
        n_ctx: Context size: tokens of prompt and answer together; 0: the model's; None: 4096, or
            the model's if that is less; "auto": the largest up to the model's that fits into the
            free memory, see `plan`. More than the model was trained for gives a warning.
            llama.cpp rounds it up, usually to a multiple of 256; the property `n_ctx` is the actual
            size.
        n_threads: Number of threads; 0: see `ContextParams`.
        n_gpu_layers: Layers on the GPU; -1, the default: those of the environment, or all;
            "auto": as many as fit, see `plan`.
        n_batch: Most prompt tokens per decode; default 2048.
        n_ubatch: Most tokens computed together; None: see `ContextParams`.
        safety: Tokens of the context that stay free; default 16.
        context_policy: What to do when the context is full: `error`, `truncate_left`,
            `truncate_middle` or `shift`; see `context_policy.fit_prompt`. None: `error` for token
            ids; `truncate_left` for text, with a warning in the log.
        chat_format: Name of a built-in chat template of llama.cpp, or source of a Jinja template;
            None: the model's own template.
        mmproj: The projector of a model that takes pictures or sounds: a GGUF file or
            `hf:owner/repo:file`; None: the one beside the model, loaded with the first picture.
        image_min_tokens: Least tokens of a picture, for models with pictures of any size; None:
            the model's.
        image_max_tokens: Most tokens of a picture, likewise.
        flush_bytes: Flush text to callbacks at this many bytes; default 64, 0: off.
        flush_tokens: Or at this many tokens; default 1, 0: off.
        flush_ms: Or after this many milliseconds; default 100, 0: off.
        progress: True shows a progress bar while the model loads; a function receives 0.0 to 1.0.
        check: See `Model`.
        check_memory: Refuse to load what cannot fit into the memory, and warn of what may not.
        **context_options: Further arguments of `Context`.

    Attributes:
        model: The model.
        context: The context; use it within `idle` only.
        media: Turns pictures and sounds into cells of a prompt.
        owns_model: Whether `close` frees the model; False if a loaded one was given.
        stats: Statistics of the current or last generation.
        total_stats: Totals of all generations.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: An argument is out of range.
    """

    @checked_arguments(
        MoreContextOptions.__annotations__, ["n_seq_max"], of_model=ModelOptions.__annotations__
    )
    def __init__(
        self,
        model_path: ModelSource,
        n_ctx: int | Literal["auto"] | None = None,
        n_threads: int = 0,
        n_gpu_layers: int | Literal["auto"] = -1,
        *,
        n_batch: int | None = None,
        n_ubatch: int | None = None,
        safety: int | None = None,
        context_policy: str | None = None,
        chat_format: str | None = None,
        mmproj: ProjectorSource | None = None,
        image_min_tokens: int | None = None,
        image_max_tokens: int | None = None,
        flush_bytes: int | None = None,
        flush_tokens: int | None = None,
        flush_ms: int | None = None,
        progress: Progress = None,
        check: str | None = None,
        check_memory: bool = True,
        **context_options: Unpack[MoreContextOptions],
    ) -> None:
        self.context_policy = context_policy
        self._safety = safety
        self._flush = flush_bytes, flush_tokens, flush_ms
        # Check the arguments before loading a model.
        parse_options(1, {}, 1, defaults=preset.complete({}, context_policy, safety))
        preset.make_flusher(len, self._flush)
        n_batch = environment.number("BATCH", n_batch, 2048, 1)
        n_ubatch = environment.number("UBATCH", n_ubatch, None, 1)
        layers = n_gpu_layers
        if layers != "auto":
            given = None if layers == -1 else layers
            layers = environment.number("N_GPU_LAYERS", given, -1, -INT32_MAX)
        sizes = {"n_ctx": n_ctx, "n_batch": n_batch, "n_ubatch": n_ubatch}
        projector = {"mmproj": mmproj, "image_max_tokens": image_max_tokens}
        fitted = fit(
            model_path,
            {**context_options, **sizes, **projector, "n_gpu_layers": layers},
            check_memory=check_bool("check_memory", check_memory),
        )
        self.model, self.owns_model = open_model(
            fitted.source, n_gpu_layers=fitted.n_gpu_layers, progress=progress, check=check
        )
        try:
            self.media = MediaProcessor(
                self.model,
                mmproj,
                image_min_tokens=image_min_tokens,
                image_max_tokens=image_max_tokens,
                n_threads=n_threads,
            )
            n_batch, n_ubatch = self.media.batch_sizes(n_batch, n_ubatch)
            self.context = Context(
                self.model,
                n_ctx=context_size(fitted.n_ctx, self.model, context_options),
                n_threads=n_threads,
                n_batch=n_batch,
                n_ubatch=n_ubatch,
                check_memory=check_memory,
                **context_options,
            )
            self._prompts = ChatPrompts(self.model, chat_format, self.media)
            if chat_format is not None:
                _ = self._prompts.renderer  # refuses an unknown one now
        except BaseException:
            if self.owns_model:
                self.model.close()
            raise
        batch = Batch(min(self.context.n_batch, self.context.n_ctx), library=self.model.library)
        self.stats = GenerationStats()
        self.total_stats = GenerationStats()
        self._slot = Slot(self.context, batch)
        self._chains = ChainCache(self.model)
        self._cancel_token: CancelToken | None = None
        self._lock = CallLock()
        self._totals_lock = threading.Lock()  # a stream may end while another call runs
        self._closed = False

    __reduce__ = not_picklable(
        "pass the model's path to the other process and open it there; threads can share it"
    )

    def __repr__(self) -> str:
        name = self.model.path.name
        if self._closed:
            return f"<Engine {name} closed>"
        tuned = ", tuned" if self.context.tuned else ""
        return f"<Engine {name} n_ctx={self.n_ctx}, {len(self._slot.tokens)} tokens cached{tuned}>"

    @property
    def n_ctx(self) -> int:
        """Context size: tokens of prompt and answer together."""
        return self.context.n_ctx

    @property
    def renderer(self) -> ChatRenderer:
        """Renders conversations through the model's chat template; created on first use."""
        return self._prompts.renderer

    @property
    def tokens(self) -> list[int]:
        """A copy of the tokens in the KV cache."""
        return list(self._slot.tokens)

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

    @overload
    def generate(
        self,
        prompt: str,
        system_prompt: str = "",
        max_tokens: int | None = 256,
        temperature: float | None = None,
        top_p: float | None = None,
        repeat_penalty: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        seed: int | None = None,
        grammar: str | LlamaGrammar | None = None,
        callback: Callable[[bytes], object] | None = None,
        *,
        raw: bool = False,
        stream: Literal[False] = False,
        **options: Unpack[MoreEngineOptions],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str,
        system_prompt: str = "",
        max_tokens: int | None = 256,
        temperature: float | None = None,
        top_p: float | None = None,
        repeat_penalty: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        seed: int | None = None,
        grammar: str | LlamaGrammar | None = None,
        callback: Callable[[bytes], object] | None = None,
        *,
        raw: bool = False,
        stream: Literal[True],
        **options: Unpack[MoreEngineOptions],
    ) -> Iterator[str]: ...

    @checked_arguments()
    def generate(
        self,
        prompt: str,
        system_prompt: str = "",
        max_tokens: int | None = 256,
        temperature: float | None = None,
        top_p: float | None = None,
        repeat_penalty: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        seed: int | None = None,
        grammar: str | LlamaGrammar | None = None,
        callback: Callable[[bytes], object] | None = None,
        *,
        raw: bool = False,
        stream: bool = False,
        **options: Unpack[MoreEngineOptions],
    ) -> str | Iterator[str]:
        """Answer *prompt*; return the text, or with *stream* an iterator.

        The model's chat template is applied unless *raw*; see `tokenize_chat`.

        Args:
            prompt: The user's message.
            system_prompt: The system message, if any.
            max_tokens: Most tokens to generate; None: until the model ends the answer or the
                context is full.
            temperature: See `SamplingParams` for the sampling options; None: 0.7.
            top_p: See `SamplingParams`; None: 0.9.
            repeat_penalty: See `SamplingParams`; None: 1.1, but 1.0 when greedy, where a penalty
                would corrupt copied text and numbers.
            top_k: See `SamplingParams`.
            min_p: See `SamplingParams`.
            frequency_penalty: See `SamplingParams`.
            presence_penalty: See `SamplingParams`.
            seed: See `SamplingParams`.
            grammar: GBNF or a `LlamaGrammar` that the answer must match.
            callback: Receives the answer's bytes as they are generated; they may end inside a
                character. An exception ends the generation and reaches the caller.
            raw: Use the prompt verbatim, without the chat template.
            stream: Return an iterator of text in whole characters. Leaving the iteration ends the
                generation; errors are raised by `next`.
            **options: See `MoreEngineOptions`.

        Raises:
            ContextOverflowError: The prompt leaves no room for an answer.
            CancelledError: `cancel` was called; `text` holds the text generated so far.
            DeadlineExceededError: The deadline passed; `text` holds the text generated so far.
            ClosedError: The engine is or was closed.
            ValidationError: An argument is out of range, or this is a callback of a generation of
                this engine.
            GenerationError: Decoding failed.
        """
        single = {
            "temperature": temperature,
            "top_p": top_p,
            "repeat_penalty": repeat_penalty,
            "top_k": top_k,
            "min_p": min_p,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "seed": seed,
            "grammar": grammar,
        }
        merged = {**_given(single), **options}
        if check_bool("raw", raw):
            return self._answer_raw(prompt, max_tokens, merged, callback, stream)
        messages = as_messages(prompt, system_prompt)
        return self._answer_chat(messages, max_tokens, merged, callback, stream)

    @overload
    def generate_chat(
        self,
        messages: Messages,
        max_tokens: int | None = 256,
        temperature: float | None = None,
        top_p: float | None = None,
        repeat_penalty: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        seed: int | None = None,
        grammar: str | LlamaGrammar | None = None,
        callback: Callable[[bytes], object] | None = None,
        *,
        stream: Literal[False] = False,
        **options: Unpack[MoreEngineOptions],
    ) -> str: ...

    @overload
    def generate_chat(
        self,
        messages: Messages,
        max_tokens: int | None = 256,
        temperature: float | None = None,
        top_p: float | None = None,
        repeat_penalty: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        seed: int | None = None,
        grammar: str | LlamaGrammar | None = None,
        callback: Callable[[bytes], object] | None = None,
        *,
        stream: Literal[True],
        **options: Unpack[MoreEngineOptions],
    ) -> Iterator[str]: ...

    @checked_arguments()
    def generate_chat(
        self,
        messages: Messages,
        max_tokens: int | None = 256,
        temperature: float | None = None,
        top_p: float | None = None,
        repeat_penalty: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        seed: int | None = None,
        grammar: str | LlamaGrammar | None = None,
        callback: Callable[[bytes], object] | None = None,
        *,
        stream: bool = False,
        **options: Unpack[MoreEngineOptions],
    ) -> str | Iterator[str]:
        """Answer a conversation; return the text, or with *stream* an iterator.

        Args:
            messages: In OpenAI's format, oldest first, or Polaris Core's pairs `(role, content)`.
                Of pairs, those without content are left out, and a role other than `system`,
                `user` and `assistant` is `user`.
            max_tokens: See `generate`, also for the other arguments and the errors.
            temperature: See `generate`.
            top_p: See `generate`.
            repeat_penalty: See `generate`.
            top_k: See `generate`.
            min_p: See `generate`.
            frequency_penalty: See `generate`.
            presence_penalty: See `generate`.
            seed: See `generate`.
            grammar: See `generate`.
            callback: See `generate`.
            stream: See `generate`.
            **options: See `MoreEngineOptions`.

        Raises:
            TemplateError: The chat template fails, or refuses these messages.
        """
        single = {
            "temperature": temperature,
            "top_p": top_p,
            "repeat_penalty": repeat_penalty,
            "top_k": top_k,
            "min_p": min_p,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "seed": seed,
            "grammar": grammar,
        }
        merged = {**_given(single), **options}
        return self._answer_chat(messages, max_tokens, merged, callback, stream)

    def stream(
        self,
        prompt: str,
        system_prompt: str = "",
        max_tokens: int | None = 256,
        *,
        raw: bool = False,
        **options: Unpack[EngineOptions],
    ) -> Iterator[str]:
        """Call `generate(..., stream=True)`.

        Args:
            prompt: See `generate` for the arguments and errors.
            system_prompt: See `generate`.
            max_tokens: See `generate`.
            raw: See `generate`.
            **options: See `EngineOptions`.
        """
        return self.generate(prompt, system_prompt, max_tokens, raw=raw, stream=True, **options)

    def stream_chat(
        self,
        messages: Messages,
        max_tokens: int | None = 256,
        **options: Unpack[EngineOptions],
    ) -> Iterator[str]:
        """Call `generate_chat(..., stream=True)`.

        Args:
            messages: See `generate_chat` for the arguments and errors.
            max_tokens: See `generate_chat`.
            **options: See `EngineOptions`.

        Raises:
            ValidationError: An argument is out of range.
        """
        return self.generate_chat(messages, max_tokens, stream=True, **options)

    def generate_tokens(
        self,
        tokens: Sequence[int],
        max_tokens: int | None = 256,
        **options: Unpack[EngineOptions],
    ) -> list[int]:
        """Continue *tokens*; return the new tokens, without the end-of-generation token.

        Args:
            tokens: At least one token id.
            max_tokens: See `generate`, also for the errors.
            **options: See `EngineOptions`.
        """
        call, vocab = self._call(max_tokens, options), self.model.vocab
        output = StopChecker(vocab, call.params)
        if options.keys() & {"stop", "json_stop"}:
            output = Detokenizer(vocab, call.params)
        with (
            self._exclusive(call) as run,
            closing(self._tokens(tokens, call, run, output)) as generated,
        ):
            return list(generated)

    def steps(
        self,
        tokens: Sequence[int],
        max_tokens: int | None = 256,
        *,
        reasoning_limit: Callable[[], ReasoningLimit] | None = None,
        **options: Unpack[EngineOptions],
    ) -> Generator[Step, None, GenerationStats]:
        """Continue *tokens*; yield each new token with the text that it completes.

        A last step without a token has the text that was held back. The generator returns the
        statistics.

        Args:
            tokens: At least one token id.
            max_tokens: See `generate`, also for the errors.
            reasoning_limit: Creates the reasoning limit of the answer.
            **options: See `EngineOptions`.
        """
        call = self._call(max_tokens, options, reasoning_limit)
        vocab, params = self.model.vocab, call.params
        prompt = tokens if isinstance(tokens, Prompt) else Prompt(vocab.check_all(tokens))
        if params.reset_kv_cache:  # what does not fit is told before the first step
            fit_prompt(
                prompt,
                params.max_tokens,
                self.n_ctx,
                params.safety,
                params.context_policy,
                n_first=int(vocab.add_bos),
            )
        return self._steps(prompt, call)

    def tokenize_chat(
        self,
        messages: Messages,
        tools: Tools | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[int]:
        """Return the prompt tokens of a conversation.

        A model without a chat template gets the contents as plain text.

        Args:
            messages: See `generate_chat`.
            tools: Tool definitions, or Python functions.
            **options: See `ChatOptions`.

        Raises:
            TemplateError: The chat template fails, or refuses these messages.
            ValidationError: A message is invalid.
            ClosedError: The engine is closed.
        """
        self._check_open()
        return self._prompts.render(messages, tools, options).tokens

    def format_chat(self, messages: Messages) -> list[int]:
        """Call `tokenize_chat`, under an older name."""
        return self.tokenize_chat(messages)

    def format_prompt(self, prompt: str, system_prompt: str = "") -> list[int]:
        """Call `tokenize_chat` with one user message, and a system message if one is given."""
        return self.tokenize_chat(as_messages(prompt, system_prompt))

    @contextmanager
    def idle(self) -> Iterator[Slot]:
        """Wait until no generation runs, and hold the context and its slot in this block.

        Raises:
            ClosedError: The engine is closed.
        """
        try:
            with self._lock.acquire():
                self._check_open()
                self._slot.detach()
                yield self._slot
        finally:
            self._free_if_closed()

    def cache_clear(self) -> None:
        """Clear the KV cache."""
        with self.idle() as slot:
            slot.clear()

    def cancel(self) -> None:
        """End the running generation, if any, with a CancelledError; callable from any thread."""
        cancel_token = self._cancel_token
        if cancel_token is not None:
            cancel_token.request(CANCEL)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """End the running generation and free context and model, without waiting for it.

        Calling it again does nothing.
        """
        self._closed = True
        cancel_token = self._cancel_token
        if cancel_token is not None:
            cancel_token.request(CLOSE)
        self._free_if_closed()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        max_tokens: int | None,
        options: Mapping[str, Any],
        reasoning_limit: Callable[[], ReasoningLimit] | None = None,
        *,
        thinking: bool | None = None,
        is_text: bool = False,
    ) -> GenerationCall:
        if (scope := current_scope()) is not None and scope.adapters is not None:
            raise ValidationError(
                "adapters of single requests need a scheduler: open the model with n_parallel=2 or "
                "more, or use set_adapters for all requests"
            )
        defaults = preset.text_defaults(self.context_policy) if is_text else {}
        return parse_options(
            max_tokens,
            options,
            self.n_ctx,
            defaults={**preset.complete(options, self.context_policy, self._safety), **defaults},
            recommended=lambda: self.renderer.recommended_sampling(thinking),
            reasoning_limit=reasoning_limit,
        )

    def _answer_raw(
        self,
        prompt: str,
        max_tokens: int | None,
        options: Mapping[str, Any],
        callback: Callable[[bytes], object] | None,
        stream: bool,
    ) -> str | Iterator[str]:
        if chat := [name for name in ChatOptions.__annotations__ if name in options]:
            raise ValidationError(f"raw=True uses the prompt verbatim; leave out {', '.join(chat)}")
        call = self._call(max_tokens, options, is_text=True)

        def render() -> RenderedChat:
            return RenderedChat(Prompt(tokenize_prompt(self.model.vocab, prompt)), prompt)

        return self._answer(render, call, callback, stream)

    def _answer_chat(
        self,
        messages: Messages,
        max_tokens: int | None,
        options: Mapping[str, Any],
        callback: Callable[[bytes], object] | None,
        stream: bool,
    ) -> str | Iterator[str]:
        rest: dict[str, Any] = self.renderer.with_stops(options)
        chat = {name: rest.pop(name) for name in ChatOptions.__annotations__ if name in rest}
        call = self._call(max_tokens, rest, thinking=chat.get("thinking"), is_text=True)
        suppresses = call.params.suppress_think
        render = partial(self._prompts.render, messages, None, chat, suppresses)
        return self._answer(render, call, callback, stream)

    def _answer(
        self,
        render: Callable[[], RenderedChat],
        call: GenerationCall,
        callback: Callable[[bytes], object] | None,
        stream: bool,
    ) -> str | Iterator[str]:
        flusher = None if callback is None else preset.make_flusher(callback, self._flush)
        output = partial(Detokenizer, self.model.vocab, call.params, flusher)
        run = self._stream_text if stream else self._full_text
        return run(render, call, output)

    def _full_text(
        self,
        render: Callable[[], RenderedChat],
        call: GenerationCall,
        make_output: Callable[..., Detokenizer],
    ) -> str:
        with self._exclusive(call) as run:
            prompt = render()
            output = make_output(is_thinking=prompt.is_thinking)
            with self._generated(prompt, call, run, output) as generated:
                for _ in generated:
                    pass
            return output.text

    def _stream_text(
        self,
        render: Callable[[], RenderedChat],
        call: GenerationCall,
        make_output: Callable[..., Detokenizer],
    ) -> Iterator[str]:
        with self._exclusive(call) as run:
            prompt = render()
            output = make_output(is_thinking=prompt.is_thinking)
            with self._generated(prompt, call, run, output) as generated:
                yield from run.paused_at(piece for _ in generated if (piece := output.take()))
            if rest := output.take_rest():
                run.end()
                yield rest

    def _steps(
        self, prompt: Prompt, call: GenerationCall
    ) -> Generator[Step, None, GenerationStats]:
        with self._exclusive(call) as run:
            output = Detokenizer(self.model.vocab, call.params)
            with self._collected(prompt, call, run, output) as generated:
                yield from run.paused_at(
                    Step(token, output.take(), output.logprob) for token in generated
                )
            if rest := output.take_rest():
                run.end()
                yield Step(None, rest)
        return run.stats

    @contextmanager
    def _generated(
        self,
        prompt: RenderedChat,
        call: GenerationCall,
        run: _Run,
        output: Detokenizer,
    ) -> Iterator[Iterator[int]]:
        """Provide the tokens of the answer to a prompt, or only the report of a stage."""
        stage = stages.requested()
        if stage:
            scratch = Detokenizer(self.model.vocab, call.params)
            start = partial(self._tokens, call=call, run=run, output=scratch)
            output.data += stages.report(self, stage, prompt, start).encode()
            yield iter(())
            return
        with self._collected(prompt.tokens, call, run, output) as generated:
            yield generated

    @contextmanager
    def _collected(
        self,
        tokens: Sequence[int],
        call: GenerationCall,
        run: _Run,
        output: Detokenizer,
    ) -> Iterator[Iterator[int]]:
        """Provide the tokens whose text *output* collects, and finish the text afterwards."""
        try:
            with closing(self._tokens(tokens, call, run, output)) as generated:
                yield generated
            output.finish()
            if output.stop:
                run.stats.finish_reason, run.stats.stop = "stop", output.stop
        except DecodeAbortedError as e:
            output.finish()  # the text that was held back is part of the result too
            e.text = output.text
            raise

    def _tokens(
        self,
        tokens: Sequence[int],
        call: GenerationCall,
        run: _Run,
        output: StopChecker,
    ) -> Generator[int, None, None]:
        """Yield the tokens of the answer; the caller holds the lock."""
        vocab, stats, params = self.model.vocab, run.stats, call.params
        prompt = tokens if isinstance(tokens, Prompt) else Prompt(vocab.check_all(tokens))
        if not prompt:
            raise ValidationError("the prompt is empty; give at least one token")
        chain = self._chains.acquire(params.sampling)
        chain.tap.output = output
        stats.time_to_first_token_s = time.perf_counter() - run.started
        try:
            yield from generate(self._slot, chain, prompt, params, run.cancel_token, stats, output)
            stats.seed = None if params.sampling.greedy else chain.seed
        finally:
            if run.turn.held:
                self._chains.release(params.sampling, chain)
            else:  # dropped while another call runs, which uses the cache of chains
                chain.close()

    @contextmanager
    def _exclusive(self, call: GenerationCall) -> Iterator[_Run]:
        """Wait for the engine and hold it in this block."""
        started = time.perf_counter()
        cancel_token = CancelToken(self.context.abort_flag, call.timeout_s)
        try:
            with self._lock.acquire(call.timeout_s) as turn:
                if turn is None:
                    cancel_token.request(DEADLINE)
                    raise cancel_token.error()
                stats = GenerationStats(queue_s=time.perf_counter() - started)
                if (scope := current_scope()) is not None:
                    scope.stats.append(stats)
                run = _Run(turn, cancel_token, stats, started, self._begin_turn)
                try:
                    with cancel_token.running():
                        self._begin_turn(run)
                        yield run
                except DecodeAbortedError as e:
                    stats.finish_reason = e.reason or ""
                    if e.reason == CLOSE:
                        self._check_open()
                    raise
                finally:
                    if self._cancel_token is cancel_token:
                        self._cancel_token = None
                    with self._totals_lock:
                        self.total_stats.add(stats)
                    _log.debug("%s", stats)
                    if stats.n_truncated and self.context_policy is None:
                        _log.warning(
                            "the prompt was too long for n_ctx=%d: its oldest %d tokens were "
                            "dropped, %d are left; raise n_ctx, or choose a context_policy",
                            self.n_ctx,
                            stats.n_truncated,
                            stats.n_prompt,
                        )
        finally:
            self._free_if_closed()

    def _begin_turn(self, run: _Run) -> None:
        """Let *run*, which has just acquired the lock, use the context."""
        self._cancel_token = run.cancel_token  # before the check: `close` does them in reverse
        self._check_open()
        run.cancel_token.check()  # it may have been cancelled while waiting
        self._slot.detach()
        self.stats = run.stats

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this Engine is closed; open a new one")

    def _free_if_closed(self) -> None:
        """Free everything after `close`, unless a call runs: each calls this once it has ended."""
        if not self._closed:
            return
        with self._lock.acquire(wait=False) as acquired:
            if acquired:
                self._chains.close()
                self.context.close()
                if self.owns_model:
                    self.model.close()


class _Run:
    """One generation; as a context manager, the pause of a stream between two of its items.

    Newer calls may use the engine during the pause.

    Args:
        turn: Its turn with the engine's lock.
        cancel_token: Stops it.
        stats: Its statistics.
        started: When the call began, on the clock of `time.perf_counter`.
        begin_turn: Called when the lock had to be acquired again.
    """

    __slots__ = ("_begin_turn", "cancel_token", "started", "stats", "turn")

    def __init__(
        self,
        turn: Turn,
        cancel_token: CancelToken,
        stats: GenerationStats,
        started: float,
        begin_turn: Callable[[_Run], None],
    ) -> None:
        self.turn, self.cancel_token = turn, cancel_token
        self.stats, self.started = stats, started
        self._begin_turn = begin_turn

    def paused_at(self, items: Iterator[T]) -> Iterator[T]:
        """Yield *items*, and pause meanwhile. Hot: every streamed token."""
        ahead: list[T] = []
        try:
            for item in items:
                ahead.append(item)
                if not self.turn.computes_ahead:
                    ready, ahead = ahead, []
                    with self:
                        yield from ready
        except Exception:
            if ahead:  # was computed before the error
                self.end()
                yield from ahead
            raise
        if ahead:
            self.end()
            yield from ahead

    def end(self) -> None:
        """Leave the engine to other calls; all that is left of this one was computed."""
        if self.turn.held:
            self.turn.release()

    def __enter__(self) -> None:
        self.turn.pause(self.stats.prefill_s)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Continue; a stream that is left does not wait. Hot: every streamed token."""
        if self.turn.reclaim() or error is not None:
            return
        token = self.cancel_token
        if not self.turn.wait(token.remaining_s):
            token.request(DEADLINE)
            raise token.error()
        token.hold()
        self._begin_turn(self)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
