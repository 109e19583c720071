"""UnifiedLLM: one way to ask models of any family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, overload

from ..generation.model_source import ModelSource
from ..validation import as_list, check_int
from .chat_completions import MoreChatCompletionOptions
from .config import LlamaConfig, LlamaOptions
from .llama import Llama

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..chat.families import Family
    from .chat_completions import Message
    from .types import CreateChatCompletionStreamResponse

__all__ = ["UnifiedLLM"]


class UnifiedLLM:
    """Answers with the chat template, the sampling and the stops that a model's family wants.

    Args:
        model_path: A GGUF file, `hf:owner/repo:file`, or a loaded `Model`.
        config: As for `Llama`.
        **options: As for `Llama`.

    Attributes:
        llm: The `Llama` below.
    """

    def __init__(
        self,
        model_path: ModelSource,
        config: LlamaConfig | None = None,
        **options: Unpack[LlamaOptions],
    ) -> None:
        self.llm = Llama(model_path, config, **options)

    @property
    def family(self) -> Family:
        """The model's family."""
        return self.llm.renderer.family

    @overload
    def generate(
        self,
        prompt: str | Sequence[Message],
        max_tokens: int | None = 512,
        *,
        system_prompt: str = "",
        stream: Literal[False] = False,
        **options: Unpack[MoreChatCompletionOptions],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[Message],
        max_tokens: int | None = 512,
        *,
        system_prompt: str = "",
        stream: Literal[True],
        **options: Unpack[MoreChatCompletionOptions],
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str | Sequence[Message],
        max_tokens: int | None = 512,
        *,
        system_prompt: str = "",
        stream: bool = False,
        **options: Unpack[MoreChatCompletionOptions],
    ) -> str | Iterator[str]:
        """Answer a message or a conversation; reasoning is left out.

        Args:
            prompt: The user's message, or messages in OpenAI's shape.
            max_tokens: Most tokens to generate; None: until the model ends or the context is full.
            system_prompt: The system message, if any.
            stream: Return an iterator of pieces.
            **options: See `MoreChatCompletionOptions`; they win over what is recommended.

        Raises:
            ValidationError: max_tokens is below 1, or thinking cannot be switched so.
            ContextOverflowError: The prompt leaves no room for an answer.
        """
        if max_tokens is not None:
            check_int("max_tokens", max_tokens, 1)
        messages: list[Message] = (
            [{"role": "user", "content": prompt}]
            if isinstance(prompt, str)
            else as_list("prompt", prompt)
        )
        if system_prompt:
            messages = [{"role": "system", "content": system_prompt}, *messages]
        every: MoreChatCompletionOptions = {"sampling": "model", **options}
        if stream:
            return _contents(
                self.llm.create_chat_completion(
                    messages, stream=True, max_tokens=max_tokens, **every
                )
            )
        answer = self.llm.create_chat_completion(messages, max_tokens=max_tokens, **every)
        return answer["choices"][0]["message"]["content"] or ""

    def reset(self) -> None:
        """Forget what was evaluated."""
        self.llm.reset()

    kv_cache_clear = reset

    def close(self) -> None:
        """Free everything. Calling it again does nothing."""
        self.llm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _contents(chunks: Iterator[CreateChatCompletionStreamResponse]) -> Iterator[str]:
    for chunk in chunks:
        if text := chunk["choices"][0]["delta"].get("content"):
            yield text
