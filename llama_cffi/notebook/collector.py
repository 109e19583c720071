"""The chunks of a streamed chat completion, put together as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..api.types import (
        ChatCompletionLogprobToken,
        CreateChatCompletionResponse,
        CreateChatCompletionStreamResponse,
    )

__all__ = ["Collector"]


class Collector:
    """Puts the chunks of one answer without tools together.

    Attributes:
        finish_reason: Why the answer ended; None until then.
    """

    def __init__(self) -> None:
        # In parts, because a str that grows by each token would be copied for each token.
        self._parts: dict[str, list[str]] = {"reasoning_content": [], "content": []}
        self._logprobs: list[ChatCompletionLogprobToken] = []
        self._head: dict[str, Any] = {}
        self._more: dict[str, Any] = {}
        self.finish_reason: str | None = None

    def add(self, chunk: CreateChatCompletionStreamResponse) -> None:
        """Add a chunk."""
        self._head = {name: chunk.get(name) for name in ("id", "created", "model")}
        for name in ("usage", "timings"):
            if value := chunk.get(name):
                self._more[name] = value
        for choice in chunk["choices"]:
            delta: Any = choice["delta"]
            for name, parts in self._parts.items():
                parts.append(delta.get(name) or "")
            if logprobs := choice.get("logprobs"):
                self._logprobs += logprobs["content"] or ()
            self.finish_reason = choice["finish_reason"] or self.finish_reason

    @property
    def text(self) -> str:
        """The content so far, without the reasoning."""
        return "".join(self._parts["content"])

    @property
    def message(self) -> dict[str, Any]:
        """The message so far."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if reasoning := "".join(self._parts["reasoning_content"]):
            message["reasoning_content"] = reasoning
        return message

    def response(self) -> CreateChatCompletionResponse:
        """Return OpenAI's response; before the last chunk the finish reason is None."""
        logprobs = {"content": self._logprobs, "refusal": None} if self._logprobs else None
        choice = {
            "index": 0,
            "message": self.message,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }
        response: Any = {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            **self._more,
        }
        return response  # type: ignore[no-any-return]
