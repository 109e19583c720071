"""Llama: completions, chat, embeddings and state of one model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from ..binding import Model, get_library
from ..decisions import DecisionOptions, decide_batch, decide_batch_async
from ..errors import ValidationError
from ..generation.aliases import ALIASES, canonical
from ..generation.chat_renderer import ChatRenderer
from ..generation.context_policy import DROP_TURNS
from ..generation.model_source import ModelSource, open_model
from ..generation.options import (
    OPTION_NAMES,
    GenerationOptions,
    MoreGenerationOptions,
    TextOptions,
)
from ..generation.sampling_params import SamplingOptions, SamplingParams
from ..generation.seeds import SeedSequence
from ..media import load_audio
from ..schema import json_schema, parse_json
from ..validation import (
    as_list,
    as_path,
    check_bool,
    check_int,
    checked_arguments,
    not_picklable,
    reject_unknown,
)
from . import chat_completions, completions
from .aio import prepared_async, stream_async, whole_async
from .chat_completions import OPTION_NAMES as CHAT_OPTION_NAMES
from .chat_completions import ChatCompletionOptions, ChatPreparer, PreparedChat
from .config import LlamaConfig, LlamaOptions, config_of, fit_config
from .echo import prepend, prompt_logprobs
from .embedding_inputs import as_inputs
from .map import ErrorPolicy, MapJob, MapOptions, MapPrompt, MapResult, map_rows, map_rows_async
from .model_facts import ContextSize, ModelFacts
from .openai_options import OpenAIOptions, take_openai_options
from .running import PreparedRequest, run, run_async
from .session import Session
from .structured import json_format, json_text
from .transcription import (
    Transcription,
    as_segment,
    as_transcription,
    content_of,
    transcription_options,
    windows,
)

if TYPE_CHECKING:
    import os

    from typing_extensions import Self, Unpack

    from ..decisions import DecisionInput, Question
    from ..embeddings.embedder import Embedder, EmbedderStats, RerankResult
    from ..embeddings.scorer import Scorer
    from ..generation.sequence import Step
    from ..generation.text import Stop
    from ..media.sounds import AudioSource
    from ..progress import Progress
    from ..scheduler import RequestHandle
    from ..server.http_server import HttpServer
    from ..server.settings import ServerOptions
    from .chat_completions import Message
    from .running import AnyEngine
    from .types import (
        CompletionChoice,
        CompletionLogprobs,
        CreateChatCompletionResponse,
        CreateChatCompletionStreamResponse,
        CreateCompletionResponse,
        CreateCompletionStreamResponse,
        CreateEmbeddingResponse,
    )

__all__ = [
    "Llama",
    "print_system_info",
    "shutdown",
]

T = TypeVar("T")
_SAMPLING = frozenset(SamplingOptions.__annotations__) | {"sampling"}
_NO_LOGPROBS = "a stream of text has no logprobs; use create_completion(stream=True)"
_open: weakref.WeakSet[Llama] = weakref.WeakSet()
_open_lock = threading.Lock()


class CompletionOptions(GenerationOptions, OpenAIOptions, total=False):
    """`GenerationOptions` and OpenAI's other options of a completion, see `OpenAIOptions`.

    `echo`: begin with the prompt; with `logprobs` also with its log-probabilities, which are
    computed in a context of their own. `n`: number of answers. `best_of`: number of answers to
    generate; the *n* with the best mean log-probability are returned. `model`: the name in the
    response.
    """

    echo: bool
    n: int | None
    best_of: int | None
    model: str | None


class Llama(Session, ModelFacts):
    """One model for text completions, chat and embeddings.

    Calls from several threads queue. A common prefix of consecutive prompts is computed once.
    Nothing is printed; messages of llama.cpp go to the logger `llama_cffi.native`.

    Args:
        model_path: A GGUF file, `hf:owner/repo:file`, or a loaded `Model`, which `close` leaves
            open.
        config: The settings; single options override it.
        sampling: Default sampling parameters.
        **options: The fields of `LlamaConfig`.

    Raises:
        ModelLoadError: The model cannot be loaded.
        FetchError: The model, or a build of llama.cpp, cannot be fetched.
        OutOfMemoryError: The model cannot fit into the memory; see `check_memory`.
        ValidationError: An argument is out of range.
        UnknownOptionError: An option does not exist; a TypeError.
    """

    def __init__(
        self,
        model_path: ModelSource | None = None,
        config: LlamaConfig | None = None,
        sampling: SamplingParams | None = None,
        **options: Unpack[LlamaOptions],
    ) -> None:
        self.config = config = config_of(config, options)
        if sampling is not None and not isinstance(sampling, SamplingParams):
            raise ValidationError(f"sampling must be a SamplingParams, got {sampling!r}")
        self.sampling = sampling
        self.seeds = SeedSequence(config.seed)
        source = model_path if model_path is not None else config.model_path
        if source is None:
            raise ValidationError(
                "no model: set model_path to a GGUF file, hf:OWNER/REPO[:FILE], or a loaded Model"
            )
        if not isinstance(source, (str, Model)):
            source = as_path("model_path", source)
        self.model_path = str(source.path if isinstance(source, Model) else source)
        self._embedder: Embedder | None = None
        self._scorer: Scorer | None = None
        self._lock = threading.Lock()
        source, self.config = fit_config(source, config)
        config = self.config
        model, owned = open_model(source, **config.model_options())
        try:
            engine = _engine(model, config)
            engine.owns_model = owned
            super().__init__(engine)
            if config.adapters is not None:
                self.set_adapters(config.adapters)
            if config.lora_path is not None:
                self.load_lora(config.lora_path, config.lora_scale)
        except BaseException:
            if owned:
                model.close()
            raise
        with _open_lock:
            _open.add(self)

    @classmethod
    def from_pretrained(
        cls, repo_id: str, filename: str | None = None, **options: Unpack[LlamaOptions]
    ) -> Self:
        """Load a model from the Hugging Face hub, through its cache.

        Args:
            repo_id: `owner/repo`, with `@revision` if wanted.
            filename: The file, or a quantization such as `Q4_K_M`.
            **options: See the class.

        Raises:
            FetchError: The model cannot be fetched.
        """
        return cls(f"hf:{repo_id}" + (f":{filename}" if filename else ""), **options)

    def close(self) -> None:
        """End running generations and free everything. Calling it again does nothing."""
        if self._embedder is not None:
            self._embedder.close()
        if self._scorer is not None:
            self._scorer.close()
        self.engine.close()

    def serve(
        self,
        host: str | Sequence[str] = "127.0.0.1",
        port: int = 0,
        **settings: Unpack[ServerOptions],
    ) -> HttpServer:
        """Serve this model over HTTP in a thread, in OpenAI's API and others; see docs/server.md.

        Load it with `n_parallel`, so that requests do not wait for each other.

        Args:
            host: The address to listen on, or several.
            port: The port; 0: a free one.
            **settings: See `Settings` of the server.

        Returns:
            The server, with its `url`; `close`, or the end of a `with` block, stops it. This model
            stays open.

        Raises:
            LlamaError: The extra `server` is not installed, or the address cannot be used.
        """
        # By name: the server is a layer above this one.
        return import_module("llama_cffi.server.serving").serve(  # type: ignore[no-any-return]
            self, host=host, port=port, **settings
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    __reduce__ = not_picklable(
        "pass the model's path to the other process and open it there; threads can share it"
    )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"n_ctx={self.engine.n_ctx}"
        tuned = ", tuned" if self.engine.context.tuned else ""
        return f"Llama({self.model_path!r}, {state}{tuned})"

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or the model is closed."""
        return self.engine.context.closed

    @property
    def n_ctx(self) -> ContextSize:
        """Context size: tokens of prompt and answer together; `n_ctx()` is the same."""
        return ContextSize(self.engine.n_ctx)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What messages may contain: `text`, and with a projector `image` and `audio`."""
        return self.engine.media.modalities

    @cached_property
    def renderer(self) -> ChatRenderer:
        """Renders conversations through the model's chat template; created on first use."""
        return self.engine.renderer

    @cached_property
    def chat(self) -> ChatPreparer:
        """Prepares chat completions."""
        policy = self.config.context_policy
        return ChatPreparer(
            self.model,
            self.renderer,
            self.n_ctx,
            DROP_TURNS if policy == DROP_TURNS else None,
            self.sampling,
            self.seeds,
        )

    # Text

    @overload
    def generate(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        sampling: SamplingParams | Literal["model"] | None = None,
        stream: Literal[False] = False,
        stop: Stop | Sequence[Stop] | None = None,
        echo: bool = False,
        *,
        logprobs: None = None,
        **options: Unpack[MoreGenerationOptions],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        sampling: SamplingParams | Literal["model"] | None = None,
        stream: Literal[False] = False,
        stop: Stop | Sequence[Stop] | None = None,
        echo: bool = False,
        *,
        logprobs: int,
        **options: Unpack[MoreGenerationOptions],
    ) -> CompletionChoice: ...

    @overload
    def generate(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        sampling: SamplingParams | Literal["model"] | None = None,
        *,
        stream: Literal[True],
        stop: Stop | Sequence[Stop] | None = None,
        echo: bool = False,
        logprobs: None = None,
        **options: Unpack[MoreGenerationOptions],
    ) -> Iterator[str]: ...

    @checked_arguments()
    def generate(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        sampling: SamplingParams | Literal["model"] | None = None,
        stream: bool = False,
        stop: Stop | Sequence[Stop] | None = None,
        echo: bool = False,
        *,
        logprobs: int | None = None,
        **options: Unpack[MoreGenerationOptions],
    ) -> str | CompletionChoice | Iterator[str]:
        """Continue *prompt* without a chat template.

        Args:
            prompt: The text.
            max_tokens: Most tokens to generate; None: until the model ends the answer or the
                context is full.
            sampling: Sampling parameters; None: the constructor's.
            stream: Return an iterator of text, token by token. Leaving the iteration ends the
                generation.
            stop: Strings and token ids that end the answer; they are not part of it.
            echo: Begin with the prompt.
            logprobs: Return a choice as of `create_completion`, with the log-probabilities of each
                token and of this many alternatives, instead of the text.
            **options: See `MoreGenerationOptions`; single sampling options override *sampling*.

        Raises:
            ValidationError: An argument is out of range.
            ContextOverflowError: The prompt leaves no room for an answer.
        """
        check_bool("stream", stream)
        check_bool("echo", echo)
        merged: Any = {"sampling": sampling, "stop": stop, **options}
        if logprobs is not None:
            merged = self._choice_options(max_tokens, logprobs, echo, stream, merged)
            answer: CreateCompletionResponse = self.create_completion(prompt, **merged)
            return answer["choices"][0]
        request = self._request(prompt, max_tokens, merged)
        pieces = _pieces(prompt if echo else "", run(self.engine, request)[0])
        return pieces if stream else "".join(pieces)

    def generate_stream(
        self, prompt: str, max_tokens: int | None = 256, **options: Unpack[TextOptions]
    ) -> Iterator[str]:
        """Call `generate(..., stream=True)`.

        Args:
            prompt: See `generate` for the arguments.
            max_tokens: See `generate`.
            **options: See `TextOptions`.

        Raises:
            ValidationError: An argument is out of range.
        """
        request = self._request(prompt, max_tokens, options)
        return _pieces("", run(self.engine, request)[0])

    @overload
    async def generate_async(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        *,
        stream: Literal[False] = False,
        echo: bool = False,
        logprobs: None = None,
        **options: Unpack[TextOptions],
    ) -> str: ...

    @overload
    async def generate_async(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        *,
        stream: Literal[False] = False,
        echo: bool = False,
        logprobs: int,
        **options: Unpack[TextOptions],
    ) -> CompletionChoice: ...

    @overload
    async def generate_async(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        *,
        stream: Literal[True],
        echo: bool = False,
        logprobs: None = None,
        **options: Unpack[TextOptions],
    ) -> AsyncIterator[str]: ...

    async def generate_async(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        *,
        stream: bool = False,
        echo: bool = False,
        logprobs: int | None = None,
        **options: Unpack[TextOptions],
    ) -> str | CompletionChoice | AsyncIterator[str]:
        """Call `generate` in an event loop; *stream* gives an async iterator.

        Cancelling the task ends the generation.
        """
        if logprobs is not None:
            merged: Any = self._choice_options(max_tokens, logprobs, echo, stream, options)
            answer: CreateCompletionResponse = await self.create_completion_async(prompt, **merged)
            return answer["choices"][0]
        first = prompt if echo else ""
        request = self._request(prompt, max_tokens, options)
        engine = self._shared_engine
        if engine is not None:
            (handle,) = await run_async(engine, request)
            pieces = _pieces_async(first, handle)
            return pieces if stream else "".join([piece async for piece in pieces])
        (steps,) = run(self.engine, request)
        if stream:
            return stream_async(lambda: _pieces(first, steps))
        return await whole_async(lambda: "".join(_pieces(first, steps)))

    @overload
    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        *,
        stream: Literal[False] = False,
        **options: Unpack[CompletionOptions],
    ) -> CreateCompletionResponse: ...

    @overload
    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        *,
        stream: Literal[True],
        **options: Unpack[CompletionOptions],
    ) -> Iterator[CreateCompletionStreamResponse]: ...

    @checked_arguments()
    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        *,
        stream: bool = False,
        **options: Unpack[CompletionOptions],
    ) -> CreateCompletionResponse | Iterator[CreateCompletionStreamResponse]:
        """Continue *prompt*; return OpenAI's response, or with *stream* an iterator of chunks.

        Args:
            prompt: Text or token ids.
            suffix: Text after the answer; the model fills the gap.
            max_tokens: Most tokens to generate; None or -1: until the model ends the answer or the
                context is full; 0: none, with `echo` only.
            stream: Return chunks.
            **options: See `CompletionOptions`.

        Raises:
            ValidationError: An argument is out of range.
            ContextOverflowError: The prompt leaves no room for an answer.
        """
        prepared = self._completion(prompt, suffix, max_tokens, options, stream)
        echo = self._echo(prepared)
        runs = run(self.engine, prepared.request)
        if stream:
            return completions.stream(prepared, runs, echo)
        return _echoed(prepared, completions.whole(prepared, runs), echo)

    __call__ = create_completion

    @overload
    async def create_completion_async(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        *,
        stream: Literal[False] = False,
        **options: Unpack[CompletionOptions],
    ) -> CreateCompletionResponse: ...

    @overload
    async def create_completion_async(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        *,
        stream: Literal[True],
        **options: Unpack[CompletionOptions],
    ) -> AsyncIterator[CreateCompletionStreamResponse]: ...

    async def create_completion_async(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        *,
        stream: bool = False,
        **options: Unpack[CompletionOptions],
    ) -> CreateCompletionResponse | AsyncIterator[CreateCompletionStreamResponse]:
        """Call `create_completion` in an event loop; *stream* gives an async iterator."""
        prepared = await prepared_async(
            lambda: self._completion(prompt, suffix, max_tokens, options, stream), prompt
        )
        echo = None
        if prepared.echoed is not None:
            echo = await whole_async(lambda: self._echo(prepared))
        if stream:
            return await completions.start_stream(prepared, self.engine, echo)
        if (engine := self._shared_engine) is not None:
            handles = await run_async(engine, prepared.request)
            return _echoed(prepared, await completions.whole_async(prepared, handles), echo)
        runs = run(self.engine, prepared.request)
        answer = await whole_async(lambda: completions.whole(prepared, runs))
        return _echoed(prepared, answer, echo)

    def _echo(self, prepared: completions.PreparedCompletion) -> CompletionLogprobs | None:
        """Return the log-probabilities of the prompt, if it is echoed with them."""
        if prepared.echoed is None:
            return None
        if self.adapters:
            raise ValidationError(
                "echo=True with logprobs scores the prompt without LoRA adapters; remove them"
            )
        tokens, n = prepared.request.tokens, prepared.request.options.get("logprobs") or 0
        return prompt_logprobs(
            self.model.vocab, tokens, self._prompt_scorer.alternatives(tokens, n)
        )

    @property
    def _prompt_scorer(self) -> Scorer:
        """Scores prompts, in a context of its own; created on first use."""
        from ..embeddings.scorer import Scorer

        with self._lock:
            if self._scorer is None:
                self._scorer = Scorer(self.model, n_threads=self.config.n_threads or 0)
        return self._scorer

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatCompletionOptions],
    ) -> CreateChatCompletionResponse: ...

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[True],
        **options: Unpack[ChatCompletionOptions],
    ) -> Iterator[CreateChatCompletionStreamResponse]: ...

    @checked_arguments()
    def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: bool = False,
        **options: Unpack[ChatCompletionOptions],
    ) -> CreateChatCompletionResponse | Iterator[CreateChatCompletionStreamResponse]:
        """Answer a conversation; return OpenAI's response, or with *stream* an iterator of chunks.

        Args:
            messages: In OpenAI's format, oldest first.
            stream: Return chunks.
            **options: See `ChatCompletionOptions`.

        Raises:
            TemplateError: The chat template refuses the messages.
            ValidationError: An argument is out of range.
            ContextOverflowError: The conversation leaves no room for an answer.
        """
        prepared = self.chat.prepare(messages, options, self.model_path, stream=stream)
        runs = run(self.engine, prepared.request)
        return (chat_completions.stream if stream else chat_completions.whole)(prepared, runs)

    @overload
    async def create_chat_completion_async(
        self,
        messages: Sequence[Message] | PreparedChat,
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatCompletionOptions],
    ) -> CreateChatCompletionResponse: ...

    @overload
    async def create_chat_completion_async(
        self,
        messages: Sequence[Message] | PreparedChat,
        *,
        stream: Literal[True],
        **options: Unpack[ChatCompletionOptions],
    ) -> AsyncIterator[CreateChatCompletionStreamResponse]: ...

    async def create_chat_completion_async(
        self,
        messages: Sequence[Message] | PreparedChat,
        *,
        stream: bool = False,
        **options: Unpack[ChatCompletionOptions],
    ) -> CreateChatCompletionResponse | AsyncIterator[CreateChatCompletionStreamResponse]:
        """Call `create_chat_completion` in an event loop; *stream* gives an async iterator.

        Args:
            messages: In OpenAI's format; or what `chat.prepare` returned, without *options*.
            stream: Return chunks; with several answers, those of each as they come.
            **options: See `ChatCompletionOptions`; errors as in `create_chat_completion`.
        """
        if isinstance(messages, PreparedChat):
            reject_unknown(options, (), "a prepared chat completion")
            prepared = messages
        else:
            prepared = await self.chat.prepare_async(
                messages, options, self.model_path, stream=stream
            )
        if stream:
            return await chat_completions.start_stream(prepared, self.engine)
        if (engine := self._shared_engine) is not None:
            handles = await run_async(engine, prepared.request)
            return await chat_completions.whole_async(prepared, handles)
        runs = run(self.engine, prepared.request)
        return await whole_async(lambda: chat_completions.whole(prepared, runs))

    @checked_arguments(CHAT_OPTION_NAMES)
    def transcribe(
        self,
        audio: AudioSource,
        *,
        prompt: str | None = None,
        language: str | None = None,
        sample_rate: int | None = None,
        **options: Unpack[ChatCompletionOptions],
    ) -> Transcription:
        """Write down what is said in a sound, with a chat model that takes sounds.

        The model is asked for it, so how well that works is up to the model. A long sound is cut
        into windows of at most 30 s, at the quietest place of the last 5 s of each.

        Args:
            audio: See `llama_cffi.media.load_audio`.
            prompt: Words that help, such as names.
            language: The language that is spoken, such as `German`; None: the model finds out.
            sample_rate: The sample rate of an array, Hz; files have their own.
            **options: See `ChatCompletionOptions`; the temperature is 0 by default.

        Raises:
            ValidationError: It is no sound, or the model takes none; an option is out of range.
            ContextOverflowError: A window does not fit into the context.
            FetchError: An address cannot be fetched.
        """
        sound, asked = load_audio(audio, sample_rate), transcription_options(options)
        segments = [
            as_segment(window, content_of(self.create_chat_completion(window.messages, **asked)))
            for window in windows(sound, prompt, language)
        ]
        return as_transcription(segments, sound.duration_s)

    async def transcribe_async(
        self,
        audio: AudioSource,
        *,
        prompt: str | None = None,
        language: str | None = None,
        sample_rate: int | None = None,
        **options: Unpack[ChatCompletionOptions],
    ) -> Transcription:
        """Call `transcribe` in an event loop.

        Args:
            audio: See `transcribe`, also for the errors.
            prompt: See `transcribe`.
            language: See `transcribe`.
            sample_rate: See `transcribe`.
            **options: See `transcribe`.
        """
        sound = await whole_async(lambda: load_audio(audio, sample_rate))
        asked, segments = transcription_options(options), []
        for window in windows(sound, prompt, language):
            done = await self.create_chat_completion_async(window.messages, **asked)
            segments.append(as_segment(window, content_of(done)))
        return as_transcription(segments, sound.duration_s)

    @checked_arguments()
    def parse(
        self,
        prompt: str | Sequence[Message],
        type_: type[T],
        **options: Unpack[ChatCompletionOptions],
    ) -> T:
        """Answer with a value of a Python type: a pydantic model, dataclass, TypedDict, int, ...

        Args:
            prompt: The user's message, or a conversation.
            type_: The type of the answer.
            **options: See `ChatCompletionOptions`.

        Raises:
            ValidationError: The type has no JSON representation, or the answer was truncated by
                *max_tokens* or the context size.
        """
        if options.get("response_format") or "stream" in options:
            raise ValidationError("parse does not support stream or response_format")
        messages: Sequence[Message] = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        )
        form = json_format(json_schema(type_))
        merged: ChatCompletionOptions = {**options, "response_format": form}
        return parse_json(type_, json_text(self.create_chat_completion(messages, **merged)))

    @overload
    def map(
        self,
        rows: Iterable[object],
        schema: type[T],
        prompt: MapPrompt = None,
        *,
        resume: str | os.PathLike[str] | None = None,
        errors: ErrorPolicy = "raise",
        progress: Progress = None,
        **options: Unpack[ChatCompletionOptions],
    ) -> MapResult[T]: ...

    @overload
    def map(
        self,
        rows: Iterable[object],
        schema: Mapping[str, object],
        prompt: MapPrompt = None,
        *,
        resume: str | os.PathLike[str] | None = None,
        errors: ErrorPolicy = "raise",
        progress: Progress = None,
        **options: Unpack[ChatCompletionOptions],
    ) -> MapResult[object]: ...

    @checked_arguments(CHAT_OPTION_NAMES)
    def map(
        self,
        rows: Iterable[object],
        schema: type[T] | Mapping[str, object],
        prompt: MapPrompt = None,
        *,
        resume: str | os.PathLike[str] | None = None,
        errors: ErrorPolicy = "raise",
        progress: Progress = None,
        **options: Unpack[ChatCompletionOptions],
    ) -> MapResult[T] | MapResult[object]:
        """Answer a question about each row of a table with a value of a type, in the same order.

        With `n_parallel` several rows are answered together; otherwise one after the other, and
        what their prompts have in common is evaluated once. Ctrl-C raises a `MapInterruptedError`,
        a KeyboardInterrupt that has the answers so far.

        Args:
            rows: Any iterable, or a Series or DataFrame of pandas or polars. Rows of a DataFrame
                are dicts.
            schema: The type of an answer, as for `parse`, or a JSON Schema.
            prompt: A template in the syntax of `str.format`: `{}` is the row, `{column}` a column
                of a DataFrame or a key of a dict. Or a function that takes a row and returns the
                user's message or a conversation. None: the row itself.
            resume: A file of JSON lines in which each answer is written as it comes. If it exists,
                only the rows without an answer there are computed.
            errors: `raise`: the first error ends the call; `keep`: the row's answer is None and
                its error in `errors` of the result, such as a prompt that is too long, an answer
                that `max_tokens` truncated, or a missing value.
            progress: None: a bar in terminals and notebooks; True: a bar on stderr; False: none; or
                a function that takes 0.0 to 1.0, and returns False to stop.
            **options: See `ChatCompletionOptions`.

        Raises:
            ValidationError: An argument is wrong; *resume* is damaged, or of other rows, prompts,
                another schema or model; or an error of a row.
            CancelledError: *progress* returned False.
            OSError: *resume* cannot be read or written.
        """
        how = MapOptions(resume, errors, progress)
        return map_rows(self, MapJob(self, rows, schema, prompt, how, options))

    @overload
    async def map_async(
        self,
        rows: Iterable[object],
        schema: type[T],
        prompt: MapPrompt = None,
        *,
        resume: str | os.PathLike[str] | None = None,
        errors: ErrorPolicy = "raise",
        progress: Progress = None,
        **options: Unpack[ChatCompletionOptions],
    ) -> MapResult[T]: ...

    @overload
    async def map_async(
        self,
        rows: Iterable[object],
        schema: Mapping[str, object],
        prompt: MapPrompt = None,
        *,
        resume: str | os.PathLike[str] | None = None,
        errors: ErrorPolicy = "raise",
        progress: Progress = None,
        **options: Unpack[ChatCompletionOptions],
    ) -> MapResult[object]: ...

    async def map_async(
        self,
        rows: Iterable[object],
        schema: type[T] | Mapping[str, object],
        prompt: MapPrompt = None,
        *,
        resume: str | os.PathLike[str] | None = None,
        errors: ErrorPolicy = "raise",
        progress: Progress = None,
        **options: Unpack[ChatCompletionOptions],
    ) -> MapResult[T] | MapResult[object]:
        """Call `map` in an event loop. Cancelling the task cancels its requests.

        Args:
            rows: See `map`, also for the errors.
            schema: See `map`.
            prompt: See `map`.
            resume: See `map`.
            errors: See `map`.
            progress: See `map`.
            **options: See `ChatCompletionOptions`.
        """
        reject_unknown(options, CHAT_OPTION_NAMES, "map", ALIASES)
        how = MapOptions(resume, errors, progress)
        return await map_rows_async(self, MapJob(self, rows, schema, prompt, how, options))

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

        The input comes first in every prompt and is evaluated once. With `n_parallel` the questions
        share batches.

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
        """
        result: T | list[T] = decide_batch(self.engine, [input], questions, options)[0]
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
        """Call `decide` in an event loop. Cancelling the task cancels its evaluation."""
        results: list[T] | list[list[T]] = await self.decide_batch_async(
            [input], questions, **options
        )
        return results[0]

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
        return decide_batch(self.engine, inputs, questions, options)

    @overload
    async def decide_batch_async(
        self,
        inputs: Sequence[DecisionInput],
        questions: type[T] | Question[T],
        **options: Unpack[DecisionOptions],
    ) -> list[T]: ...

    @overload
    async def decide_batch_async(
        self,
        inputs: Sequence[DecisionInput],
        questions: Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> list[list[T]]: ...

    async def decide_batch_async(
        self,
        inputs: Sequence[DecisionInput],
        questions: type[T] | Question[T] | Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> list[T] | list[list[T]]:
        """Call `decide_batch` in an event loop. Cancelling the task cancels its evaluation.

        Args:
            inputs: See `decide`, also for the errors.
            questions: See `decide`.
            **options: See `DecisionOptions`.
        """
        engine = self._shared_engine
        if engine is not None:
            return await decide_batch_async(engine, inputs, questions, options)
        return await whole_async(lambda: decide_batch(self.engine, inputs, questions, options))

    def _run_options(self, options: Mapping[str, Any]) -> GenerationOptions:
        """Return *options*, under their canonical names, with complete sampling parameters."""
        reject_unknown(options, OPTION_NAMES, "a generation")
        rest = dict(options)
        single = {name: rest.pop(name) for name in options if name in _SAMPLING}
        found: Any = {**rest, "sampling": self.chat.sampling(single)}
        return found  # type: ignore[no-any-return]

    def _choice_options(
        self,
        max_tokens: int | None,
        logprobs: int,
        echo: bool,
        stream: bool,
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return the arguments of the completion whose choice `generate` returns."""
        if stream:
            raise ValidationError(_NO_LOGPROBS)
        return {"max_tokens": max_tokens, "logprobs": logprobs, "echo": echo, **options}

    def _request(
        self, prompt: str | Sequence[int], max_tokens: int | None, options: Mapping[str, Any]
    ) -> PreparedRequest:
        """Prepare a request of which only the text is returned."""
        tokens = completions.prompt_tokens(self.model, prompt, None)
        rest = canonical(options)
        if "logprobs" in rest:
            raise ValidationError(_NO_LOGPROBS)
        max_tokens = rest.pop("max_tokens", max_tokens)
        return PreparedRequest(tokens, max_tokens, self._run_options(rest))

    def _completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None,
        max_tokens: int | None,
        options: Mapping[str, Any],
        stream: bool,
    ) -> completions.PreparedCompletion:
        rest = canonical(options)
        fields = take_openai_options(rest, stream)
        name = rest.pop("model", None) or self.model_path
        own = {key: rest.pop(key) for key in ("echo", "n", "best_of") if key in rest}
        max_tokens = rest.pop("max_tokens", max_tokens)
        return completions.prepare(
            self.model, name, prompt, self._run_options(rest),
            suffix=suffix, max_tokens=max_tokens, stream=stream,
            includes_usage=fields.usage, includes_stop_reason=fields.stop_reason, **own,
        )  # fmt: skip

    # Tokens

    def tokenize(
        self,
        text: str | bytes,
        add_special: bool = True,
        parse_special: bool = False,
        *,
        add_bos: bool | None = None,
        special: bool | None = None,
    ) -> list[int]:
        """Turn text into token ids; see `Vocab.tokenize`.

        Args:
            text: UTF-8.
            add_special: Add BOS and EOS where the model wants them.
            parse_special: Parse the text of special tokens.
            add_bos: llama-cpp-python's name of *add_special*.
            special: llama-cpp-python's name of *parse_special*.

        Raises:
            ValidationError: The text is not valid UTF-8.
        """
        return self.model.vocab.tokenize(
            text,
            add_special if add_bos is None else add_bos,
            parse_special if special is None else special,
        )

    def detokenize(
        self, tokens: Sequence[int], special: bool = False, *, keep_space: bool = False
    ) -> str:
        """Turn token ids into text; see `Vocab.detokenize`."""
        vocab = self.model.vocab
        checked = [vocab.check(t) for t in as_list("tokens", tokens)]
        return vocab.detokenize(checked, bool(special), keep_space=keep_space)

    def n_tokens(self, text: str, add_special: bool = True) -> int:
        """Return the number of tokens of *text*, with BOS where the model wants it."""
        return len(self.engine.tokenize(text, add_special))

    # Embeddings

    @overload
    def embed(  # type: ignore[overload-overlap]  # a str is a Sequence[str], too
        self,
        text: str | Sequence[int],
        normalize: bool = True,
        *,
        truncate: bool = False,
        progress: Progress = None,
    ) -> list[float]: ...

    @overload
    def embed(
        self,
        text: Sequence[str | Sequence[int]],
        normalize: bool = True,
        *,
        truncate: bool = False,
        progress: Progress = None,
    ) -> list[list[float]]: ...

    def embed(
        self,
        text: str | Sequence[int] | Sequence[str | Sequence[int]],
        normalize: bool = True,
        *,
        truncate: bool = False,
        progress: Progress = None,
    ) -> list[float] | list[list[float]]:
        """Return the embedding of one text, or of each of several, as lists of floats.

        Args:
            text: One text, or its token ids: n_embd floats; several: a list of such lists.
            normalize: Scale each vector to length 1.
            truncate: See `Embedder.embed`, also for the errors.
            progress: See `Embedder.embed`.

        Raises:
            ValidationError: The model was not loaded with `embeddings=True`.
        """
        texts, is_one = as_inputs("text", text)
        rows = self.embedder.embed(texts, normalize=normalize, truncate=truncate, progress=progress)
        found: list[Any] = [row.tolist() for row in rows]
        return found[0] if is_one else found

    def create_embedding(
        self,
        input: str | Sequence[int] | Sequence[str | Sequence[int]],
        model: str | None = None,
    ) -> CreateEmbeddingResponse:
        """Return embeddings as OpenAI's response; see `embed`.

        Raises:
            ValidationError: The model was not loaded with `embeddings=True`.
        """
        texts, _ = as_inputs("input", input)
        rows = self.embed(texts)
        n = sum(self.n_tokens(text) if isinstance(text, str) else len(text) for text in texts)
        return {
            "object": "list",
            "model": model or self.model_path,
            "data": [
                {"index": i, "object": "embedding", "embedding": row} for i, row in enumerate(rows)
            ],
            "usage": {"prompt_tokens": n, "total_tokens": n},
        }

    @overload
    async def embed_async(  # type: ignore[overload-overlap]
        self, text: str | Sequence[int], normalize: bool = True
    ) -> list[float]: ...

    @overload
    async def embed_async(
        self, text: Sequence[str | Sequence[int]], normalize: bool = True
    ) -> list[list[float]]: ...

    async def embed_async(
        self,
        text: str | Sequence[int] | Sequence[str | Sequence[int]],
        normalize: bool = True,
    ) -> list[float] | list[list[float]]:
        """Call `embed` in an event loop."""
        return await whole_async(lambda: self.embed(text, normalize))

    async def create_embedding_async(
        self,
        input: str | Sequence[int] | Sequence[str | Sequence[int]],
        model: str | None = None,
    ) -> CreateEmbeddingResponse:
        """Call `create_embedding` in an event loop."""
        return await whole_async(lambda: self.create_embedding(input, model))

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        truncate: bool = False,
        progress: Progress = None,
    ) -> list[RerankResult]:
        """Rank *documents* by relevance to *query*; see `Embedder.rerank`.

        Args:
            query: The query.
            documents: The documents.
            top_n: See `Embedder.rerank`, also for the errors.
            truncate: See `Embedder.rerank`.
            progress: See `Embedder.rerank`.

        Raises:
            ValidationError: The model was not loaded with `embeddings=True`.
        """
        return self.embedder.rerank(
            query, documents, top_n=top_n, truncate=truncate, progress=progress
        )

    @property
    def embedding_stats(self) -> EmbedderStats | None:
        """The counts of `embed` and `rerank` so far; None: neither was called."""
        return None if self._embedder is None else self._embedder.stats

    @property
    def embedder(self) -> Embedder:
        """The embedder of `embed` and `rerank`, created on first use.

        Raises:
            ValidationError: The model was not loaded with `embeddings=True`.
        """
        if not self.config.embeddings:
            raise ValidationError("load the model with embeddings=True to embed or rerank")
        from ..embeddings.embedder import Embedder

        with self._lock:
            if self._embedder is None:
                threads = self.config.n_threads or 0
                embedder = Embedder(self.model, pooling=self.config.pooling, n_threads=threads)
                if self.config.pooling is None and embedder.pooling == "none":
                    embedder.close()
                    embedder = Embedder(self.model, pooling="mean", n_threads=threads)
                self._embedder = embedder
        return self._embedder


def _pieces(first: str, steps: Iterator[Step]) -> Iterator[str]:
    if first:
        yield first
    for step in steps:
        if step.text:
            yield step.text


async def _pieces_async(first: str, handle: RequestHandle) -> AsyncIterator[str]:
    if first:
        yield first
    async with aclosing(handle.steps_async()) as steps:
        async for step in steps:
            if step.text:
                yield step.text


def _echoed(
    prepared: completions.PreparedCompletion,
    answer: CreateCompletionResponse,
    echo: CompletionLogprobs | None,
) -> CreateCompletionResponse:
    """Put the prompt and its log-probabilities before *answer*, if that was asked for."""
    if echo is not None:
        prepend(answer, prepared.echoed or "", echo)
    return answer


def _engine(model: Model, config: LlamaConfig) -> AnyEngine:
    policy = "error" if config.context_policy == DROP_TURNS else config.context_policy
    options: Any = {
        "context_policy": policy,
        "chat_format": config.chat_format,
        "mmproj": config.mmproj,
        "image_min_tokens": config.image_min_tokens,
        "image_max_tokens": config.image_max_tokens,
        "check_memory": False,  # it was checked before the model was loaded
        **config.context_options(),
    }
    n_parallel = check_int("n_parallel", config.n_parallel, 1, 256)
    needs_scheduler = config.cache_dir is not None or bool(config.cache_ram)
    for option in (config.draft, config.adapters, config.n_kv_tokens):
        needs_scheduler |= option is not None
    if n_parallel == 1 and not needs_scheduler:
        from ..engine import Engine

        return Engine(model, safety=0, **options)
    from ..scheduler import InferenceEngine

    del options["n_seq_max"]
    return InferenceEngine(
        model,
        n_parallel,
        n_kv_tokens=config.n_kv_tokens,
        draft=config.draft,
        cache_ram=config.cache_ram,
        cache_dir=config.cache_dir,
        cache_disk=config.cache_disk,
        **options,
    )


def print_system_info() -> str:
    """Return the CPU features and backends of the loaded build; prints nothing.

    Loads the build of `get_library()`, with its errors, if none is loaded.
    C: llama_print_system_info
    """
    return get_library().system_info


def shutdown() -> None:
    """Close every open `Llama`. Calling it again does nothing."""
    with _open_lock:
        models = list(_open)
    for llm in models:
        llm.close()
