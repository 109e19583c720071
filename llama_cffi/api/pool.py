"""LlamaPool: many requests at once, from asyncio."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import LlamaError
from .aio import whole_async
from .config import LlamaConfig
from .llama import Llama

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LlamaPool"]

_log = logging.getLogger("llama_cffi.api.pool")
_WARM_UP_TOKENS = 3


class LlamaPool:
    """Answers up to *pool_size* requests at once, with one copy of the weights.

    All of them share a batch; see `InferenceEngine`. More wait for their turn, in order.

    Args:
        model_path: The GGUF file, or `hf:owner/repo:file`.
        pool_size: Requests at once, 1 to 256.
        warmup: Answer a dummy prompt first; when that fails it is logged only.
        config: As for `Llama`.
        **options: As for `Llama`.

    Attributes:
        llm: The `Llama` below; its methods serve several threads at once.

    Raises:
        ModelLoadError: The model cannot be loaded.
        ValidationError: A number is out of range.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        pool_size: int = 4,
        warmup: bool = False,
        config: LlamaConfig | None = None,
        **options: Any,
    ) -> None:
        self.llm = Llama(model_path, config, parallel=pool_size, **options)
        if warmup:
            try:
                self.llm.generate("warm up", _WARM_UP_TOKENS)
            except LlamaError:
                _log.warning("the pool could not be warmed up", exc_info=True)

    @property
    def pool_size(self) -> int:
        """Requests at once."""
        return self.llm.config.parallel

    async def generate(self, prompt: str, max_tokens: int = 128, **options: Any) -> Any:
        """Continue a prompt; see `Llama.generate_async`, also for a stream.

        Args:
            prompt: The text, as it is.
            max_tokens: Most tokens to generate.
            **options: As for `Llama.generate`, with its errors.
        """
        return await self.llm.generate_async(prompt, max_tokens, **options)

    async def generate_batch(
        self, prompts: Sequence[str], max_tokens: int = 128, **options: Any
    ) -> list[str]:
        """Continue several prompts; the answers come in their order.

        Args:
            prompts: The texts, as they are.
            max_tokens: Most tokens to generate for each.
            **options: As for `Llama.generate`. The first error is raised, and the others end.
        """

        def begin(prompt: str) -> Callable[[], str]:
            pieces = self.llm.generate(prompt, max_tokens, stream=True, **options)
            return lambda: "".join(pieces)

        return await whole_async(lambda: _all(map(begin, prompts)))

    async def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> Any:
        """Answer a conversation; see `Llama.create_chat_completion_async`.

        Args:
            messages: OpenAI's shape.
            **options: As for `Llama.create_chat_completion`, with its errors.
        """
        return await self.llm.create_chat_completion_async(messages, **options)

    async def create_chat_completion_batch(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]], **options: Any
    ) -> list[Any]:
        """Answer several conversations; the responses come in their order.

        Args:
            conversations: Each in OpenAI's shape.
            **options: As for `Llama.create_chat_completion`, without a stream. The first error is
                raised, and the others end.
        """
        options = {**options, "stream": False, "deferred": True}
        ask = self.llm.create_chat_completion
        return await whole_async(lambda: _all(ask(c, **options) for c in conversations))

    async def embed(self, texts: str | Sequence[str], **options: Any) -> Any:
        """Return embeddings, many texts in a batch; see `Llama.embed`."""
        return await self.llm.embed_async(texts, **options)

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


def _all(begun: Iterable[Callable[[], Any]]) -> list[Any]:
    """Begin all, then wait for each."""
    return [wait() for wait in list(begun)]
