"""marimo_chat: a model as the function that `marimo.ui.chat` calls. marimo is not imported."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol, cast

from ..api.llama import Llama
from ..api.pool import LlamaPool
from ..errors import ValidationError
from ..validation import check_str, shown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from typing_extensions import Unpack

    from ..api.chat_completions import ChatCompletionOptions, Message
    from ..api.types import CreateChatCompletionStreamResponse

__all__ = ["ChatConfig", "ChatMessage", "marimo_chat"]

_SETTINGS = (
    "max_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty",
)  # fmt: skip


class ChatMessage(Protocol):
    """What is read of marimo's `ChatMessage`; also its `parts` and `attachments`."""

    role: str
    content: object


class ChatConfig(Protocol):
    """marimo's `ChatModelConfig`: settings of the user, None where there is none."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    frequency_penalty: float | None
    presence_penalty: float | None


def marimo_chat(
    llm: Llama | LlamaPool, system: str | None = None, **options: Unpack[ChatCompletionOptions]
) -> Callable[[Sequence[ChatMessage], ChatConfig], AsyncIterator[str]]:
    """Return a function for `marimo.ui.chat`: it streams the answer to a conversation.

    marimo's stop button ends the generation. Reasoning is not shown.

    Args:
        llm: The model.
        system: A system message before the conversation.
        **options: See `ChatCompletionOptions`; they win over the settings of the chat element,
            which are 100 tokens and temperature 0.5 unless its `config` says otherwise.

    Raises:
        ValidationError: *llm* is something else; and when it is called: a message has an
            attachment, or an option is out of range.
    """
    found = llm.llm if isinstance(llm, LlamaPool) else llm
    if not isinstance(found, Llama):
        raise ValidationError(f"llm must be a Llama or a LlamaPool, got {shown(llm)}")
    first: list[Message] = []
    if system is not None:
        first = [{"role": "system", "content": check_str("system", system)}]

    async def answer(messages: Sequence[ChatMessage], config: ChatConfig) -> AsyncIterator[str]:
        merged: ChatCompletionOptions = {**_settings(config), **options}
        chunks = await found.create_chat_completion_async(
            [*first, *map(_message, messages)], stream=True, **merged
        )
        stream = cast("AsyncGenerator[CreateChatCompletionStreamResponse, None]", chunks)
        async with aclosing(stream):
            async for chunk in stream:
                for choice in chunk["choices"]:
                    if text := choice["delta"].get("content"):
                        yield text

    return answer


def _settings(config: ChatConfig) -> ChatCompletionOptions:
    found = {name: getattr(config, name, None) for name in _SETTINGS}
    given = {name: value for name, value in found.items() if value is not None}
    return cast("ChatCompletionOptions", given)


def _message(message: ChatMessage) -> Message:
    parts = getattr(message, "parts", None) or ()
    kinds = {getattr(part, "type", None) for part in parts}
    if getattr(message, "attachments", None) or "file" in kinds:
        raise ValidationError("the message has an attachment, which this model cannot read")
    content = message.content
    if content is None:
        content = "".join(part.text for part in parts if getattr(part, "type", None) == "text")
    return {"role": message.role, "content": content if isinstance(content, str) else str(content)}
