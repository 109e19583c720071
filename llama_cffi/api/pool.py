"""LlamaPool: concurrent requests from asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from ..errors import LlamaError
from ..generation.model_source import ModelSource
from ..generation.options import TextOptions
from ..validation import as_list, checked_arguments, not_picklable
from .aio import whole_async
from .chat_completions import ChatCompletionOptions
from .config import LlamaConfig, LlamaOptions, MoreLlamaOptions
from .llama import Llama

if TYPE_CHECKING:
    import os

    from typing_extensions import Self, Unpack

    from ..decisions import DecisionInput, DecisionOptions, Question
    from ..media.sounds import AudioSource
    from ..progress import Progress
    from ..server.http_server import HttpServer
    from ..server.settings import ServerOptions
    from .chat_completions import Message
    from .map import ErrorPolicy, MapPrompt, MapResult
    from .transcription import Transcription
    from .types import CreateChatCompletionResponse, CreateChatCompletionStreamResponse

__all__ = ["LlamaPool"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_WARM_UP_TOKENS = 3


class LlamaPool:
    """Answers up to *n_parallel* requests together, with one copy of the weights.

    Running requests share batches; see `InferenceEngine`. Further requests wait, in order.

    Args:
        model_path: A GGUF file, `hf:owner/repo:file`, or a loaded `Model`.
        n_parallel: Number of requests that run together, 1 to 256; alias `pool_size`.
        config: See `Llama`.
        warmup: Answer a dummy prompt first; a failure is only logged.
        pool_size: Alias of *n_parallel*.
        **options: See `Llama`.

    Attributes:
        llm: The underlying `Llama`; its methods can be called from several threads.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: A number is out of range.
    """

    @checked_arguments(MoreLlamaOptions.__annotations__)
    def __init__(
        self,
        model_path: ModelSource,
        n_parallel: int = 4,
        config: LlamaConfig | None = None,
        warmup: bool = False,
        *,
        pool_size: int | None = None,
        **options: Unpack[MoreLlamaOptions],
    ) -> None:
        merged: LlamaOptions = {
            **options,
            "n_parallel": n_parallel if pool_size is None else pool_size,
        }
        self.llm = Llama(model_path, config, **merged)
        if warmup:
            try:
                self.llm.generate("warm up", _WARM_UP_TOKENS)
            except LlamaError:
                _log.warning("warming up the pool failed", exc_info=True)

    @property
    def n_parallel(self) -> int:
        """Number of requests that run together."""
        return self.llm.config.n_parallel

    pool_size = n_parallel

    @property
    def model_path(self) -> str:
        """The model, as it was given."""
        return self.llm.model_path

    @property
    def config(self) -> LlamaConfig:
        """The settings."""
        return self.llm.config

    __reduce__ = not_picklable(
        "pass the model's path to the other process and open it there; threads can share it"
    )

    def __repr__(self) -> str:
        closed = ", closed" if self.llm.closed else ""
        return f"LlamaPool({self.model_path!r}, n_parallel={self.n_parallel}{closed})"

    @overload
    async def generate(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        *,
        stream: Literal[False] = False,
        **options: Unpack[TextOptions],
    ) -> str: ...

    @overload
    async def generate(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        *,
        stream: Literal[True],
        **options: Unpack[TextOptions],
    ) -> AsyncIterator[str]: ...

    async def generate(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        *,
        stream: bool = False,
        **options: Unpack[TextOptions],
    ) -> str | AsyncIterator[str]:
        """Continue a prompt; see `Llama.generate_async`.

        Args:
            prompt: The text, without a chat template.
            max_tokens: Most tokens to generate.
            stream: Return an async iterator of text.
            **options: See `TextOptions`; errors as in `Llama.generate`.
        """
        if stream:
            return await self.llm.generate_async(prompt, max_tokens, stream=True, **options)
        return await self.llm.generate_async(prompt, max_tokens, **options)

    async def generate_batch(
        self,
        prompts: Sequence[str],
        max_tokens: int | None = 256,
        **options: Unpack[TextOptions],
    ) -> list[str]:
        """Continue several prompts; return the answers in order.

        The first error cancels the other prompts and is raised.

        Args:
            prompts: The texts, without a chat template.
            max_tokens: Most tokens to generate for each prompt.
            **options: See `TextOptions`.

        Raises:
            ValidationError: *prompts* is not a list, or as `Llama.generate`.
        """
        texts = as_list("prompts", prompts)
        return await _all([self.llm.generate_async(p, max_tokens, **options) for p in texts])

    @overload
    async def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatCompletionOptions],
    ) -> CreateChatCompletionResponse: ...

    @overload
    async def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: Literal[True],
        **options: Unpack[ChatCompletionOptions],
    ) -> AsyncIterator[CreateChatCompletionStreamResponse]: ...

    async def create_chat_completion(
        self,
        messages: Sequence[Message],
        *,
        stream: bool = False,
        **options: Unpack[ChatCompletionOptions],
    ) -> CreateChatCompletionResponse | AsyncIterator[CreateChatCompletionStreamResponse]:
        """Answer a conversation; see `Llama.create_chat_completion_async`.

        Args:
            messages: In OpenAI's format.
            stream: Return an async iterator of chunks.
            **options: See `ChatCompletionOptions`; errors as in `Llama.create_chat_completion`.
        """
        if stream:
            return await self.llm.create_chat_completion_async(messages, stream=True, **options)
        return await self.llm.create_chat_completion_async(messages, **options)

    async def create_chat_completion_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        **options: Unpack[ChatCompletionOptions],
    ) -> list[CreateChatCompletionResponse]:
        """Answer several conversations; return the responses in order.

        The first error cancels the other conversations and is raised.

        Args:
            conversations: Each in OpenAI's format.
            **options: See `ChatCompletionOptions`.

        Raises:
            ValidationError: *conversations* is not a list, or as `create_chat_completion`.
        """
        ask = self.llm.create_chat_completion_async
        asked = as_list("conversations", conversations)
        return await _all([ask(messages, **options) for messages in asked])

    async def transcribe(
        self,
        audio: AudioSource,
        *,
        prompt: str | None = None,
        language: str | None = None,
        sample_rate: int | None = None,
        **options: Unpack[ChatCompletionOptions],
    ) -> Transcription:
        """Write down what is said in a sound; see `Llama.transcribe`.

        Args:
            audio: See `Llama.transcribe`, also for the errors.
            prompt: See `Llama.transcribe`.
            language: See `Llama.transcribe`.
            sample_rate: See `Llama.transcribe`.
            **options: See `ChatCompletionOptions`.
        """
        return await self.llm.transcribe_async(
            audio, prompt=prompt, language=language, sample_rate=sample_rate, **options
        )

    @overload
    async def decide(
        self,
        input: DecisionInput,
        questions: type[T] | Question[T],
        **options: Unpack[DecisionOptions],
    ) -> T: ...

    @overload
    async def decide(
        self,
        input: DecisionInput,
        questions: Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> list[T]: ...

    async def decide(
        self,
        input: DecisionInput,
        questions: type[T] | Question[T] | Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> T | list[T]:
        """Answer closed questions about an input with probabilities; see `Llama.decide_async`.

        Args:
            input: See `Llama.decide`, also for the errors.
            questions: See `Llama.decide`.
            **options: See `DecisionOptions`.
        """
        result: T | list[T] = (await self.llm.decide_batch_async([input], questions, **options))[0]
        return result

    @overload
    async def decide_batch(
        self,
        inputs: Sequence[DecisionInput],
        questions: type[T] | Question[T],
        **options: Unpack[DecisionOptions],
    ) -> list[T]: ...

    @overload
    async def decide_batch(
        self,
        inputs: Sequence[DecisionInput],
        questions: Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> list[list[T]]: ...

    async def decide_batch(
        self,
        inputs: Sequence[DecisionInput],
        questions: type[T] | Question[T] | Sequence[Question[T]],
        **options: Unpack[DecisionOptions],
    ) -> list[T] | list[list[T]]:
        """Answer the same questions about several inputs; return the results in order.

        The first error cancels the others and is raised.

        Args:
            inputs: See `Llama.decide`, also for the errors.
            questions: See `Llama.decide`.
            **options: See `DecisionOptions`.
        """
        return await self.llm.decide_batch_async(inputs, questions, **options)

    @overload
    async def map(
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
    async def map(
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

    async def map(
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
        """Answer a question about each row of a table; see `Llama.map`.

        Args:
            rows: See `Llama.map`, also for the errors.
            schema: See `Llama.map`.
            prompt: See `Llama.map`.
            resume: See `Llama.map`.
            errors: See `Llama.map`.
            progress: See `Llama.map`.
            **options: See `ChatCompletionOptions`.
        """
        ask: Any = self.llm.map_async
        found: MapResult[T] = await ask(
            rows, schema, prompt, resume=resume, errors=errors, progress=progress, **options
        )
        return found

    async def embed(
        self,
        texts: str | Sequence[int] | Sequence[str | Sequence[int]],
        normalize: bool = True,
    ) -> list[float] | list[list[float]]:
        """Return embeddings, with many texts per batch; see `Llama.embed`."""
        return await whole_async(lambda: self.llm.embed(texts, normalize))

    def kv_cache_clear(self) -> None:
        """Clear the cached prefixes of finished requests."""
        self.llm.kv_cache_clear()

    def serve(
        self,
        host: str | Sequence[str] = "127.0.0.1",
        port: int = 0,
        **settings: Unpack[ServerOptions],
    ) -> HttpServer:
        """Serve this model over HTTP in a thread; see `Llama.serve`.

        Args:
            host: The address to listen on, or several.
            port: The port; 0: a free one.
            **settings: See `Settings` of the server; errors as in `Llama.serve`.
        """
        return self.llm.serve(host, port, **settings)

    def close(self) -> None:
        """End running generations and free everything. Calling it again does nothing."""
        self.llm.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await whole_async(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _all(calls: Sequence[Awaitable[T]]) -> list[T]:
    """Return the results in order; the first error cancels the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
