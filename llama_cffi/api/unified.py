"""UnifiedLLM: chat with models of any family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, overload

from ..chat.reasoning import ReasoningSplitter
from ..errors import ValidationError
from ..generation.chat_renderer import as_messages
from ..generation.model_source import ModelSource
from ..validation import as_list, check_int, checked_arguments, not_picklable
from .chat_completions import MoreChatCompletionOptions
from .config import LlamaConfig, LlamaOptions
from .llama import Llama
from .model_facts import ContextSize

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

    _reasoning_effort: str | None = None

    @checked_arguments()
    def __init__(
        self,
        model_path: ModelSource,
        config: LlamaConfig | None = None,
        **options: Unpack[LlamaOptions],
    ) -> None:
        self.llm = Llama(model_path, config, **options)

    __reduce__ = not_picklable(
        "pass the model's path to the other process and open it there; threads can share it"
    )

    def __repr__(self) -> str:
        state = "closed" if self.llm.closed else f"family={self.family.name!r}"
        return f"UnifiedLLM({self.llm.model_path!r}, {state})"

    @property
    def family(self) -> Family:
        """The model family."""
        return self.llm.renderer.family

    @property
    def supports_thinking(self) -> bool:
        """Whether the model can reason before it answers."""
        return self.family.thinking != "never"

    @property
    def n_ctx(self) -> ContextSize:
        """Context size: tokens of prompt and answer together; `n_ctx()` is the same."""
        return self.llm.n_ctx

    def n_tokens(self, text: str) -> int:
        """Return the number of tokens of *text*; see `Llama.n_tokens`."""
        return self.llm.n_tokens(text)

    def set_reasoning_level(self, level: str | None) -> None:
        """Set the default of `reasoning_effort` for the next calls.

        Args:
            level: OpenAI's `none`, `minimal`, `low`, `medium` or `high`; None: the model's default.

        Raises:
            ValidationError: The level is unknown, or the model does not support it.
        """
        self.llm.renderer.resolve_thinking(None, level)
        self._reasoning_effort = level

    @overload
    def generate(
        self,
        prompt: str | Sequence[Message],
        system_prompt: str | None = None,
        max_tokens: int | None = 512,
        *,
        stream: Literal[False] = False,
        **options: Unpack[MoreChatCompletionOptions],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[Message],
        system_prompt: str | None = None,
        max_tokens: int | None = 512,
        *,
        stream: Literal[True],
        **options: Unpack[MoreChatCompletionOptions],
    ) -> Iterator[str]: ...

    @checked_arguments()
    def generate(
        self,
        prompt: str | Sequence[Message],
        system_prompt: str | None = None,
        max_tokens: int | None = 512,
        *,
        stream: bool = False,
        **options: Unpack[MoreChatCompletionOptions],
    ) -> str | Iterator[str]:
        """Answer a message or a conversation; return the content without reasoning.

        Args:
            prompt: The user's message, or messages in OpenAI's format.
            system_prompt: The system message, if any.
            max_tokens: Most tokens to generate; None: until the model ends the answer or the
                context is full.
            stream: Return an iterator of text.
            **options: See `MoreChatCompletionOptions`; they override the recommended sampling.

        Raises:
            ValidationError: An option is out of range, or the model does not support `thinking`.
            ContextOverflowError: The prompt leaves no room for an answer.
        """
        messages, merged = self._prepare(prompt, system_prompt, max_tokens, options)
        if stream:
            return _contents(
                self.llm.create_chat_completion(
                    messages, stream=True, max_tokens=max_tokens, **merged
                )
            )
        answer = self.llm.create_chat_completion(messages, max_tokens=max_tokens, **merged)
        return answer["choices"][0]["message"]["content"] or ""

    def generate_with_thinking(
        self,
        prompt: str | Sequence[Message],
        system_prompt: str | None = None,
        max_tokens: int | None = 512,
        **options: Unpack[MoreChatCompletionOptions],
    ) -> tuple[str, str]:
        """Answer with reasoning, if the model supports it; return reasoning and content.

        Args:
            prompt: See `generate` for the arguments and errors.
            system_prompt: See `generate`.
            max_tokens: See `generate`.
            **options: See `generate`.
        """
        messages, merged = self._prepare(prompt, system_prompt, max_tokens, options)
        given = merged.get("thinking"), merged.get("reasoning_effort")
        if self.supports_thinking and given == (None, None):
            merged["thinking"] = True
        answer = self.llm.create_chat_completion(messages, max_tokens=max_tokens, **merged)
        message = answer["choices"][0]["message"]
        return message.get("reasoning_content") or "", message["content"] or ""

    def strip_thinking(self, text: str) -> str:
        """Return *text* without the reasoning at its beginning.

        Raises:
            ValidationError: It is not a str.
        """
        if not isinstance(text, str):
            raise ValidationError(f"text must be a str, got {text!r}")
        markers = self.family.reasoning
        if markers is None:
            return text
        splitter = ReasoningSplitter(*markers)
        parts = [*splitter.push(text), *splitter.finish()]
        return "".join(part.text for part in parts if part.kind == "content")

    def _prepare(
        self,
        prompt: str | Sequence[Message],
        system_prompt: str | None,
        max_tokens: int | None,
        options: MoreChatCompletionOptions,
    ) -> tuple[list[Message], MoreChatCompletionOptions]:
        if max_tokens is not None:
            check_int("max_tokens", max_tokens, 1)
        system = "" if system_prompt is None else system_prompt
        messages: list[Message] = (
            as_messages(prompt, system)
            if isinstance(prompt, str)
            else [*as_messages("", system)[:-1], *as_list("prompt", prompt)]
        )
        merged: MoreChatCompletionOptions = {"sampling": "model", **options}
        given = merged.get("thinking"), merged.get("reasoning_effort")
        if self._reasoning_effort is not None and given == (None, None):
            merged["reasoning_effort"] = self._reasoning_effort
        return messages, merged

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
