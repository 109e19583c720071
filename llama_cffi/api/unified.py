"""UnifiedLLM: one way to ask models of any family."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..validation import as_list, check_int
from .config import LlamaConfig
from .llama import Llama

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..chat.families import Family

__all__ = ["UnifiedLLM"]

# Recommended options under the names that `Llama.create_chat_completion` has.
_NAMES = {"penalty_freq": "frequency_penalty", "penalty_present": "presence_penalty"}


class UnifiedLLM:
    """Answers with the chat template, the sampling and the stops that a model's family wants.

    Args:
        model_path: The GGUF file, or `hf:owner/repo:file`.
        config: As for `Llama`.
        **options: As for `Llama`.

    Attributes:
        llm: The `Llama` below.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        config: LlamaConfig | None = None,
        **options: Any,
    ) -> None:
        self.llm = Llama(model_path, config, **options)

    @property
    def family(self) -> Family:
        """What is known about the model's family."""
        return self.llm.chat.family

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        max_tokens: int | None = 512,
        *,
        thinking: bool | None = None,
        thinking_budget: int | None = None,
        reasoning_effort: str | None = None,
        system_prompt: str = "",
        stream: bool = False,
        **options: Any,
    ) -> str | Iterator[str]:
        """Answer a message or a conversation; the thought is left out.

        Args:
            prompt: The user's message, or messages in OpenAI's shape.
            max_tokens: Most tokens to generate; None = until the context is full.
            thinking: Whether the model shall think first; None = as it is used to.
            thinking_budget: Most tokens of the thought; None = no limit.
            reasoning_effort: `none`, `minimal`, `low`, `medium`, `high`, in place of *thinking*;
                see `thinking.switched`.
            system_prompt: The system message, if any.
            stream: Return an iterator of pieces.
            **options: As for `Llama.create_chat_completion`; they win over the recommended ones.

        Raises:
            ValidationError: max_tokens is below 1, or thinking cannot be switched so.
            ContextOverflowError: The prompt leaves no room; it is a ValidationError, too.
        """
        if max_tokens is not None:
            check_int("max_tokens", max_tokens, 1)
        text = isinstance(prompt, str)
        messages = [{"role": "user", "content": prompt}] if text else as_list("prompt", prompt)
        if system_prompt:
            messages = [{"role": "system", "content": system_prompt}, *messages]
        thinks, _ = self.llm.chat.renderer.resolve_thinking(thinking, reasoning_effort)
        recommended = self.family.recommended(thinks)
        answer = self.llm.create_chat_completion(
            messages,
            **{
                **{_NAMES.get(name, name): value for name, value in recommended.items()},
                "max_tokens": max_tokens,
                "thinking": thinking,
                "thinking_budget": thinking_budget,
                "reasoning_effort": reasoning_effort,
                "stream": stream,
                **options,
            },
        )
        if stream:
            return _contents(answer)
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


def _contents(chunks: Iterator[Any]) -> Iterator[str]:
    for chunk in chunks:
        if text := chunk["choices"][0]["delta"].get("content"):
            yield text
