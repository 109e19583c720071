"""Engine: text in, text out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ..binding import Batch, Context, Model
from ..errors import ClosedError, DecodeAbortedError, ValidationError
from ..generation import environment
from ..generation.cancellation import CANCEL, CLOSE, DEADLINE, Stop
from ..generation.chat_renderer import ChatOptions, ChatRenderer, RenderedChat
from ..generation.loop import generate
from ..generation.options import Call, GenerationOptions, StreamOptions, make_call
from ..generation.sampler_chains import ChainCache
from ..generation.sequence import Step, TextOutput, TokenOutput
from ..generation.slot import Slot
from ..generation.stats import GenerationStats
from . import stages
from .lock import Turns

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..generation.sampling_params import BasicOptions

__all__ = ["Engine", "EngineOptions"]

_log = logging.getLogger(__name__)


class EngineOptions(StreamOptions, ChatOptions, total=False):
    """`StreamOptions`, and how the prompt is rendered: `ChatOptions`."""


class PromptOptions(GenerationOptions, ChatOptions, total=False):
    """`GenerationOptions`, and how the prompt is rendered: `ChatOptions`."""


class Engine:
    """One model, one context, one conversation at a time.

    Calls from several threads queue; each gets its whole answer. A stream that was begun holds the
    engine until it is exhausted, closed or dropped. `close` does not wait: the generation that
    runs ends with a ValidationError, and what it uses is freed then.

    Arguments win over the environment: `LLAMA_CFFI_N_GPU_LAYERS`, `_BATCH`, `_UBATCH` count when
    the engine is made; `_SAFETY`, `_FLUSH`, `_TOKFLUSH`, `_MS_FLUSH`, `_RESET_KV`, `_SPECIAL`,
    `_SUPPRESS_THINK` and `_STAGE` at every call. `POLARIS_X` is an alias of each.

    Args:
        model_path: The GGUF file, or a `Model`, which the engine then does not close.
        n_ctx: Tokens of prompt and answer together; 0 = the model's own length. llama.cpp rounds
            it up, mostly to a multiple of 256; the property `n_ctx` is what it is.
        n_threads: 0 = physical cores.
        n_gpu_layers: Layers on the GPU; -1 = all, which is the default.
        n_batch: Most prompt tokens evaluated in one call; default 2048.
        n_ubatch: Most tokens computed at once; default 512.
        safety: Tokens of the context that stay free; default 16.
        context_policy: What happens when the context is full: `error`, `truncate_left`,
            `truncate_middle`, `shift`; see `context_policy.fit_prompt`.
        chat_format: The name of one of llama.cpp's built-in chat templates, or the source of a
            Jinja template; None: the model's own.
        flush_bytes: A callback gets its text when this many bytes are there; default 64, 0 = off.
        flush_tokens: Or this many tokens; default 1, 0 = off.
        flush_ms: Or this much time has passed, milliseconds; default 100, 0 = off.
        progress: Shows a bar while the model loads, or is called with 0.0 to 1.0.
        **context_options: More arguments of `Context`.

    Attributes:
        model: The model.
        context: Its context; use it in `idle` only.
        owns_model: Whether `close` frees the model, too; False where one was given.
        stats: Of the generation that runs, or ran last.
        total_stats: Of all so far.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: A number is out of range.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | Model,
        n_ctx: int = 4096,
        n_threads: int = 0,
        n_gpu_layers: int | None = None,
        *,
        n_batch: int | None = None,
        n_ubatch: int | None = None,
        safety: int | None = None,
        context_policy: str = "error",
        chat_format: str | None = None,
        flush_bytes: int | None = None,
        flush_tokens: int | None = None,
        flush_ms: int | None = None,
        progress: bool | Callable[[float], bool | None] | None = None,
        **context_options: Any,
    ) -> None:
        self.context_policy = context_policy
        self._chat_format = chat_format
        self._safety = safety
        self._flush = flush_bytes, flush_tokens, flush_ms
        self._call(1, {}, callback=len)  # refuses what is wrong before a model is loaded
        n_batch = environment.number("BATCH", n_batch, 2048)
        self.owns_model = not isinstance(model_path, Model)
        if isinstance(model_path, Model):
            self.model = model_path
        else:
            layers = environment.number("N_GPU_LAYERS", n_gpu_layers, -1)
            self.model = Model(model_path, n_gpu_layers=layers, progress=progress)
        try:
            self.context = Context(
                self.model,
                n_ctx=n_ctx,
                n_threads=n_threads,
                n_batch=n_batch,
                n_ubatch=environment.number("UBATCH", n_ubatch, 512),
                **context_options,
            )
        except BaseException:
            if self.owns_model:
                self.model.close()
            raise
        batch = Batch(min(self.context.n_batch, self.context.n_ctx), library=self.model.library)
        self.stats = GenerationStats()
        self.total_stats = GenerationStats()
        self._slot = Slot(self.context, batch)
        self._chains = ChainCache(self.model)
        self._stop: Stop | None = None
        self._turns = Turns()
        self._closed = False

    @property
    def n_ctx(self) -> int:
        """Tokens of prompt and answer together."""
        return self.context.n_ctx

    @cached_property
    def renderer(self) -> ChatRenderer:
        """Renders conversations through the model's chat template; made when first used."""
        return ChatRenderer(self.model, self._chat_format)

    @property
    def tokens(self) -> list[int]:
        """The tokens that the context holds now, a copy."""
        return list(self._slot.tokens)

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Turn text into token ids; see `Vocab.tokenize`."""
        return self.model.vocab.tokenize(text, add_special, parse_special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """Turn token ids into text; see `Vocab.detokenize`."""
        return self.model.vocab.detokenize(tokens, special)

    def generate(
        self,
        prompt: str,
        system_prompt: str = "",
        n_predict: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.9,
        repeat_penalty: float | None = None,
        top_k: int = 40,
        min_p: float = 0.05,
        penalty_freq: float = 0.0,
        penalty_present: float = 0.0,
        seed: int = -1,
        grammar: str = "",
        callback: Callable[[bytes], object] | None = None,
        *,
        raw: bool = False,
        **options: Unpack[PromptOptions],
    ) -> str:
        """Answer *prompt* and return the whole text.

        The model's chat template is applied, unless *raw*; see `tokenize_chat`.

        Args:
            prompt: The user's message.
            system_prompt: The system message, if any.
            n_predict: Most tokens to generate.
            temperature: See `SamplingParams` for this and the other sampling arguments.
            top_p: See `SamplingParams`.
            repeat_penalty: See `SamplingParams`; None = 1.1 when sampling and off when greedy,
                where a penalty would corrupt copied text and numbers.
            top_k: See `SamplingParams`.
            min_p: See `SamplingParams`.
            penalty_freq: See `SamplingParams`.
            penalty_present: See `SamplingParams`.
            seed: See `SamplingParams`.
            grammar: GBNF that the answer must match.
            callback: Called with the answer's bytes as they come; they may end inside a
                character. What it raises ends the generation and reaches the caller.
            raw: Use the prompt as it is, without the chat template.
            **options: See `GenerationOptions`.

        Raises:
            ContextOverflowError: The prompt leaves no room in the context.
            DecodeAbortedError: Cancelled, or the deadline passed; its `text` is what there was.
            ValidationError: An argument is out of range, or the engine is busy in this thread.
            GenerationError: Decoding failed.
        """
        basic: BasicOptions = {
            "temperature": temperature,
            "top_p": top_p,
            "repeat_penalty": repeat_penalty,
            "top_k": top_k,
            "min_p": min_p,
            "penalty_freq": penalty_freq,
            "penalty_present": penalty_present,
            "seed": seed,
            "grammar": grammar,
        }
        render = self._renders(prompt, system_prompt, raw)
        return self._whole(render, n_predict, {**basic, **options}, callback)

    def generate_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        n_predict: int = 256,
        callback: Callable[[bytes], object] | None = None,
        **options: Unpack[EngineOptions],
    ) -> str:
        """Answer a conversation and return the whole text.

        Args:
            messages: Each with `role` and `content`, the oldest first.
            n_predict: Most tokens to generate.
            callback: See `generate`, also for the errors.
            **options: See `StreamOptions`.

        Raises:
            TemplateError: The model has no chat template that llama.cpp knows.
        """
        return self._whole(partial(self.renderer.render, messages), n_predict, options, callback)

    def stream(
        self,
        prompt: str,
        system_prompt: str = "",
        n_predict: int = 256,
        *,
        raw: bool = False,
        **options: Unpack[EngineOptions],
    ) -> Iterator[str]:
        """Do `generate` piece by piece, in whole UTF-8 characters.

        Leaving the iteration early ends the generation. The arguments and errors are the same;
        what goes wrong while it runs is raised by `next`.
        """
        return self._stream(self._renders(prompt, system_prompt, raw), n_predict, options)

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        n_predict: int = 256,
        **options: Unpack[EngineOptions],
    ) -> Iterator[str]:
        """Answer a conversation piece by piece; see `generate_chat` and `stream`."""
        return self._stream(partial(self.renderer.render, messages), n_predict, options)

    def generate_tokens(
        self, tokens: Sequence[int], n_predict: int = 256, **options: Unpack[StreamOptions]
    ) -> list[int]:
        """Continue *tokens* and return the new ones, without the end-of-generation token.

        Args:
            tokens: At least one token id.
            n_predict: Most tokens to generate.
            **options: The other arguments of `generate`, with its errors.
        """
        call, vocab = self._call(n_predict, options), self.model.vocab
        output = TokenOutput(vocab)
        if options.keys() & {"stop", "json_stop"}:
            output = TextOutput(vocab, call.request)
        with (
            self._turn(call) as stop,
            closing(self._tokens(tokens, call, stop, output)) as generated,
        ):
            return list(generated)

    def steps(
        self, tokens: Sequence[int], n_predict: int = 256, **options: Unpack[StreamOptions]
    ) -> Generator[Step, None, GenerationStats]:
        """Continue *tokens*: yield each new token with the text that it settled.

        What was held back comes at the end, with None. The generator returns the statistics.
        Arguments and errors are as for `generate_tokens`.
        """
        return self._steps(tokens, self._call(n_predict, options))

    def tokenize_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | Callable[..., object]] | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[int]:
        """Return the tokens of a conversation that the model continues.

        A model without a chat template gets the contents as plain text.

        Args:
            messages: OpenAI's shape, the oldest first.
            tools: Definitions, or Python functions.
            **options: See `ChatOptions`.

        Raises:
            TemplateError: The chat template fails, or refuses these messages.
            ValidationError: A message has the wrong shape, or the engine is closed.
        """
        self._check_open()
        return self.renderer.render(messages, tools, **options).tokens

    def format_chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """Do `tokenize_chat`, under its older name."""
        return self.tokenize_chat(messages)

    def format_prompt(self, prompt: str, system_prompt: str = "") -> list[int]:
        """Do `tokenize_chat` with one message of the user, and a system message if there is one."""
        return self.tokenize_chat(_messages(prompt, system_prompt))

    @contextmanager
    def idle(self) -> Iterator[Slot]:
        """Wait until nothing runs and have the context and its slot in this block.

        Raises:
            ValidationError: The engine is closed.
        """
        with self._turns.take():
            self._check_open()
            yield self._slot

    def cache_clear(self) -> None:
        """Forget what was evaluated."""
        with self.idle() as slot:
            slot.clear()

    def cancel(self) -> None:
        """End the generation that runs now, if any, with a DecodeAbortedError; from any thread."""
        stop = self._stop
        if stop is not None:
            stop.request(CANCEL)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Free context and model, at once or when the running generation has ended.

        Calling it again does nothing.
        """
        self._closed = True
        stop = self._stop
        if stop is not None:
            stop.request(CLOSE)
        self._free_if_closed()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        n_predict: int,
        options: Mapping[str, Any],
        callback: Callable[[bytes], object] | None = None,
    ) -> Call:
        defaults = {"context_policy": self.context_policy, "safety": self._safety}
        return make_call(n_predict, {**defaults, **options}, callback, self._flush)

    def _renders(self, prompt: str, system_prompt: str, raw: bool) -> Callable[..., RenderedChat]:
        """Return what renders one message of the user."""
        if raw:
            return partial(self._render_raw, prompt)
        return partial(self.renderer.render, _messages(prompt, system_prompt))

    def _render_raw(self, prompt: str, **chat: Any) -> RenderedChat:
        if chat:
            raise ValidationError(
                f"raw=True takes the prompt as it is, so {', '.join(chat)} cannot be given"
            )
        return RenderedChat(self.tokenize(prompt), prompt)

    def _prepare(
        self,
        render: Callable[..., RenderedChat],
        n_predict: int,
        options: Mapping[str, Any],
        callback: Callable[[bytes], object] | None = None,
    ) -> tuple[Callable[[], RenderedChat], Call]:
        """Return what renders the prompt with the options that concern it, and the call."""
        rest = dict(options)
        chat = {name: rest.pop(name) for name in ChatOptions.__annotations__ if name in rest}
        return partial(render, **chat), self._call(n_predict, rest, callback)

    def _whole(
        self,
        render: Callable[..., RenderedChat],
        n_predict: int,
        options: Mapping[str, Any],
        callback: Callable[[bytes], object] | None,
    ) -> str:
        render, call = self._prepare(render, n_predict, options, callback)
        with self._turn(call) as stop:
            output = TextOutput(self.model.vocab, call.request, call.flusher)
            with self._generated(render, call, stop, output) as generated:
                for _ in generated:
                    pass
            return output.text

    def _stream(
        self, render: Callable[..., RenderedChat], n_predict: int, options: Mapping[str, Any]
    ) -> Iterator[str]:
        return self._pieces(*self._prepare(render, n_predict, options))

    def _pieces(self, render: Callable[[], RenderedChat], call: Call) -> Iterator[str]:
        with self._turn(call) as stop:
            output = TextOutput(self.model.vocab, call.request, call.flusher)
            with self._generated(render, call, stop, output) as generated:
                for _ in generated:
                    if piece := output.take():
                        yield piece
                        self._turns.move_here()
            if rest := output.take_rest():
                yield rest

    def _steps(self, tokens: Sequence[int], call: Call) -> Generator[Step, None, GenerationStats]:
        with self._turn(call) as stop:
            stats, output = self.stats, TextOutput(self.model.vocab, call.request, call.flusher)
            with self._collected(tokens, call, stop, output) as generated:
                for token in generated:
                    yield Step(token, output.take(), output.logprob)
                    self._turns.move_here()
            if rest := output.take_rest():
                yield Step(None, rest)
                self._turns.move_here()
        return stats

    @contextmanager
    def _generated(
        self, render: Callable[[], RenderedChat], call: Call, stop: Stop, output: TextOutput
    ) -> Iterator[Iterator[int]]:
        """Give the tokens of the answer to a prompt, or a stage's report in their place."""
        stage = stages.wanted()
        if stage:
            scratch = TextOutput(self.model.vocab, call.request)
            start = partial(self._tokens, call=call, stop=stop, output=scratch)
            output.data += stages.report(self, stage, render(), start).encode()
            yield iter(())
            return
        with self._collected(render().tokens, call, stop, output) as generated:
            yield generated

    @contextmanager
    def _collected(
        self, tokens: Sequence[int], call: Call, stop: Stop, output: TextOutput
    ) -> Iterator[Iterator[int]]:
        """Give the tokens whose text *output* collects; finish the text after them."""
        try:
            with closing(self._tokens(tokens, call, stop, output)) as generated:
                yield generated
            output.finish()
            if output.stop:
                self.stats.finish_reason, self.stats.stop = "stop", output.stop
        except DecodeAbortedError as e:
            output.finish()  # what was held back is part of the text, too
            e.text = output.text
            raise

    def _tokens(
        self, tokens: Sequence[int], call: Call, stop: Stop, output: TokenOutput
    ) -> Generator[int, None, None]:
        """Yield the tokens of the answer; the caller has the turn."""
        vocab, stats, request = self.model.vocab, self.stats, call.request
        tokens = vocab.check_all(tokens)
        if not tokens:
            raise ValidationError("the prompt is empty: there is nothing to continue")
        chain = self._chains.take(request.params)
        chain.output = output
        stats.time_to_first_token_s = time.perf_counter() - self._started
        try:
            yield from generate(self._slot, chain, tokens, request, stop, stats, output)
            stats.seed = None if request.params.greedy else chain.seed
        finally:
            self._chains.give(request.params, chain)

    @contextmanager
    def _turn(self, call: Call) -> Iterator[Stop]:
        """Wait until the engine is free, and have it."""
        started = time.perf_counter()
        stop = Stop(self.context.abort_flag, call.timeout_s)
        try:
            with self._turns.take(call.timeout_s) as mine:
                if not mine:
                    stop.request(DEADLINE)
                    raise stop.error()
                self._check_open()
                stop.check()  # it may have been cancelled while it waited
                self._started, self._stop = started, stop
                self.stats = GenerationStats(queue_s=time.perf_counter() - started)
                try:
                    with stop.running():
                        yield stop
                except DecodeAbortedError as e:
                    self.stats.finish_reason = e.reason or ""
                    if e.reason == CLOSE:
                        self._check_open()
                    raise
                finally:
                    self._stop = None
                    self.total_stats.add(self.stats)
                    _log.debug("%s", self.stats)
        finally:
            self._free_if_closed()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this Engine is closed; open a new one")

    def _free_if_closed(self) -> None:
        """Free everything, unless a generation runs: it does this when it has ended."""
        if not self._closed:
            return
        with self._turns.take(wait=False) as mine:
            if mine:
                self._chains.close()
                self.context.close()
                if self.owns_model:
                    self.model.close()


def _messages(prompt: str, system_prompt: str) -> list[Mapping[str, object]]:
    for name, value in (("prompt", prompt), ("system_prompt", system_prompt)):
        if not isinstance(value, str):
            raise ValidationError(f"{name} must be a str, got {value!r}")
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]
