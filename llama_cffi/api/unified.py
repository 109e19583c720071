"""UnifiedLLM: chat with models of any family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, overload

from ..generation.chat_renderer import as_messages
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
    """Chat with the template, recommended sampling and stop strings of the model's family.

    Args:
        model_path: A GGUF file, `hf:owner/repo:file`, or a loaded `Model`.
        config: See `Llama`.
        **options: See `Llama`.

    Attributes:
        llm: The underlying `Llama`.
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
        """The model family."""
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
        """Answer a message or a conversation; return the content without reasoning.

        Args:
            prompt: The user's message, or messages in OpenAI's format.
            max_tokens: Most tokens to generate; None: until the model ends the answer or the
                context is full.
            system_prompt: The system message, if any.
            stream: Return an iterator of text.
            **options: See `MoreChatCompletionOptions`; they override the recommended sampling.

        Raises:
            ValidationError: An option is out of range, or the model does not support `thinking`.
            ContextOverflowError: The prompt leaves no room for an answer.
        """
        if max_tokens is not None:
            check_int("max_tokens", max_tokens, 1)
        messages: list[Message] = (
            as_messages(prompt, system_prompt)
            if isinstance(prompt, str)
            else [*as_messages("", system_prompt)[:-1], *as_list("prompt", prompt)]
        )
        merged: MoreChatCompletionOptions = {"sampling": "model", **options}
        if stream:
            return _contents(
                self.llm.create_chat_completion(
                    messages, stream=True, max_tokens=max_tokens, **merged
                )
            )
        answer = self.llm.create_chat_completion(messages, max_tokens=max_tokens, **merged)
        return answer["choices"][0]["message"]["content"] or ""

    def reset(self) -> None:
        """Clear the KV cache."""
        self.llm.reset()

    kv_cache_clear = reset

    def close(self) -> None:
        """End running generations and free everything. Calling it again does nothing."""
        self.llm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _contents(chunks: Iterator[CreateChatCompletionStreamResponse]) -> Iterator[str]:
    for chunk in chunks:
        for choice in chunk["choices"]:  # none in the chunk with the usage
            if text := choice["delta"].get("content"):
                yield text
