"""LlamaPool: many requests at once, from asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar, overload

from ..errors import LlamaError
from ..generation.model_source import ModelSource
from ..generation.options import GenerationOptions
from .aio import whole_async
from .chat_completions import ChatCompletionOptions
from .config import LlamaConfig, LlamaOptions, MoreLlamaOptions
from .llama import Llama

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .chat_completions import Message
    from .types import CreateChatCompletionResponse, CreateChatCompletionStreamResponse

__all__ = ["LlamaPool"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_WARM_UP_TOKENS = 3


class LlamaPool:
    """Answers up to *n_parallel* requests at once, with one copy of the weights.

    All of them share a batch; see `InferenceEngine`. More wait for their turn, in order.

    Args:
        model_path: A GGUF file, `hf:owner/repo:file`, or a loaded `Model`.
        n_parallel: Requests at once, 1 to 256; `pool_size` is another name of it.
        warmup: Answer a dummy prompt first; a failure is only logged.
        config: As for `Llama`.
        pool_size: See *n_parallel*.
        **options: As for `Llama`.

    Attributes:
        llm: The `Llama` below; its methods serve several threads at once.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: A number is out of range.
    """

    def __init__(
        self,
        model_path: ModelSource,
        n_parallel: int = 4,
        warmup: bool = False,
        config: LlamaConfig | None = None,
        *,
        pool_size: int | None = None,
        **options: Unpack[MoreLlamaOptions],
    ) -> None:
        every: LlamaOptions = {
            **options,
            "n_parallel": n_parallel if pool_size is None else pool_size,
        }
        self.llm = Llama(model_path, config, **every)
        if warmup:
            try:
                self.llm.generate("warm up", _WARM_UP_TOKENS)
            except LlamaError:
                _log.warning("the pool could not be warmed up", exc_info=True)

    @property
    def n_parallel(self) -> int:
        """Requests at once."""
        return self.llm.config.n_parallel

    pool_size = n_parallel

    @overload
    async def generate(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerationOptions],
    ) -> str: ...

    @overload
    async def generate(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        *,
        stream: Literal[True],
        **options: Unpack[GenerationOptions],
    ) -> AsyncIterator[str]: ...

    async def generate(
        self,
        prompt: str,
        max_tokens: int | None = 256,
        *,
        stream: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> str | AsyncIterator[str]:
        """Continue a prompt; see `Llama.generate_async`.

        Args:
            prompt: The text, as it is.
            max_tokens: Most tokens to generate.
            stream: Return an async iterator of pieces.
            **options: As for `Llama.generate`, with its errors.
        """
        if stream:
            return await self.llm.generate_async(prompt, max_tokens, stream=True, **options)
        return await self.llm.generate_async(prompt, max_tokens, **options)

    async def generate_batch(
        self,
        prompts: Sequence[str],
        max_tokens: int | None = 256,
        **options: Unpack[GenerationOptions],
    ) -> list[str]:
        """Continue several prompts; the answers come in their order.

        Args:
            prompts: The texts, as they are.
            max_tokens: Most tokens to generate for each.
            **options: As for `Llama.generate`. The first error is raised, and the others end.
        """
        return await _all([self.llm.generate_async(p, max_tokens, **options) for p in prompts])

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
            messages: OpenAI's shape.
            stream: Return an async iterator of chunks.
            **options: See `ChatCompletionOptions`, with the errors of `Llama`.
        """
        if stream:
            return await self.llm.create_chat_completion_async(messages, stream=True, **options)
        return await self.llm.create_chat_completion_async(messages, **options)

    async def create_chat_completion_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        **options: Unpack[ChatCompletionOptions],
    ) -> list[CreateChatCompletionResponse]:
        """Answer several conversations; the responses come in their order.

        Args:
            conversations: Each in OpenAI's shape.
            **options: See `ChatCompletionOptions`. The first error is raised, and the others end.
        """
        ask = self.llm.create_chat_completion_async
        return await _all([ask(messages, **options) for messages in conversations])

    async def embed(
        self, texts: str | Sequence[str], normalize: bool = True
    ) -> list[float] | list[list[float]]:
        """Return embeddings, many texts in a batch; see `Llama.embed`."""
        return await whole_async(lambda: self.llm.embed(texts, normalize))

    def kv_cache_clear(self) -> None:
        """Forget the prefixes of finished requests."""
        self.llm.kv_cache_clear()

    def close(self) -> None:
        """End what runs and free everything. Calling it again does nothing."""
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
    """Return the results in order; when one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
