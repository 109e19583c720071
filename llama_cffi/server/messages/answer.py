"""Chunks of a chat completion as a message, whole or as events: one fold for both."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from ...chat.scanner import loads

if TYPE_CHECKING:
    from ...api.chat_completions import ChatCompletionOptions
    from ...api.types import CreateChatCompletionStreamResponse

__all__ = ["Event", "error_body", "events", "message_object"]

Event: TypeAlias = tuple[str, dict[str, object]]

_SIGNATURE = "unsigned"  # of reasoning; clients only send it back
# Type of a block -> its deltas: their type, and the field that has the text.
_DELTAS = {
    "thinking": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "tool_use": ("input_json_delta", "partial_json"),
}
_EXTENSIONS = ("timings", "prompt_progress")
_ERRORS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


async def events(
    chunks: AsyncIterator[CreateChatCompletionStreamResponse],
    options: ChatCompletionOptions,
    n_prompt: int = 0,
) -> AsyncGenerator[Event, None]:
    """Yield the events of a stream: names and data.

    What *chunks* raise passes through; the `error` event is `("error", error_body(...))`.

    Args:
        chunks: Of the chat completion with *options*, streamed.
        options: Those of `chat_request`.
        n_prompt: Number of tokens of the prompt, for the first event; the last but one has the
            final counts in any case.
    """
    fold = _Fold(options, n_prompt)
    async for chunk in chunks:
        for event in fold.push(chunk):
            yield event
    for event in fold.finish():
        yield event


async def message_object(
    chunks: AsyncIterator[CreateChatCompletionStreamResponse], options: ChatCompletionOptions
) -> dict[str, object]:
    """Return the whole message: that which clients build from `events`.

    Args:
        chunks: Of the chat completion with *options*, streamed.
        options: Those of `chat_request`.
    """
    message: dict[str, Any] = {}
    block: dict[str, Any] = {}
    text: list[str] = []
    async for name, event in events(chunks, options):
        data: Any = event
        if name == "message_start":
            message = data["message"]
        elif name == "content_block_start":
            block, text = data["content_block"], []
            message["content"].append(block)
        elif name == "content_block_delta" and data["delta"]["type"] == "signature_delta":
            block["signature"] = data["delta"]["signature"]
        elif name == "content_block_delta":
            text.append(data["delta"][_DELTAS[block["type"]][1]])
        elif name == "content_block_stop" and block["type"] == "tool_use":
            block["input"] = loads("".join(text)) or {}
        elif name == "content_block_stop":
            block[block["type"]] = "".join(text)
        elif name == "message_delta":
            message.update({n: v for n, v in data.items() if n not in ("type", "delta")})
            message.update(data["delta"])
    return message


def error_body(status: int, message: str, request_id: str | None = None) -> dict[str, object]:
    """Return the body of an error, which is also the data of an `error` event.

    Args:
        status: The HTTP status.
        message: What was wrong.
        request_id: That of the header `request-id`.
    """
    kind = _ERRORS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": request_id,
    }


class _Fold:
    """Turns chunks into events. Blocks never overlap, so only the last one can be open."""

    def __init__(self, options: ChatCompletionOptions, n_prompt: int) -> None:
        stops: Any = options.get("stop")
        self._stops: list[str] = stops or []
        self._max_tokens = options.get("max_tokens") or 0
        self._n_prompt, self._n_cached, self._n_generated = n_prompt, 0, 0
        self._has_begun = False
        self._index = -1  # of the last block
        self._open = ""  # its type, until it ends
        self._finish_reason, self._stop = "", None
        self._timings: object = None

    def push(self, chunk: Any) -> Iterator[Event]:
        """Yield the events of a chunk."""
        found = [*self._events(chunk)]
        extensions = {name: chunk[name] for name in _EXTENSIONS if name in chunk}
        self._timings = extensions.get("timings", self._timings)
        if not found and "prompt_progress" in extensions:
            found = [_event("ping")]
        if found and extensions:
            name, last = found.pop()
            found.append((name, {**last, **extensions}))
        yield from found

    def _events(self, chunk: Any) -> Iterator[Event]:
        if not self._has_begun:
            self._has_begun = True
            yield self._start(chunk)
        if usage := chunk.get("usage"):
            self._n_prompt, self._n_generated = usage["prompt_tokens"], usage["completion_tokens"]
            self._n_cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        for choice in chunk["choices"]:
            yield from self._push_delta(choice["delta"])
            if choice["finish_reason"]:
                self._finish_reason, self._stop = choice["finish_reason"], choice.get("stop_reason")

    def finish(self) -> Iterator[Event]:
        """Yield the events after the last chunk."""
        yield from self._end_block()
        reason, stop = self._stop_reason()
        delta = {"stop_reason": reason, "stop_sequence": stop}
        more = {} if self._timings is None else {"timings": self._timings}
        yield _event("message_delta", delta=delta, usage=self._usage(), **more)
        yield _event("message_stop")

    def _start(self, chunk: Any) -> Event:
        message = {
            "id": "msg_" + chunk["id"].removeprefix("chatcmpl-"),
            "type": "message",
            "role": "assistant",
            "model": chunk["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }
        return _event("message_start", message=message)

    def _usage(self) -> dict[str, int]:
        return {
            "input_tokens": self._n_prompt - self._n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self._n_cached,
            "output_tokens": self._n_generated,
        }

    def _stop_reason(self) -> tuple[str, str | None]:
        if self._stop in self._stops:
            return "stop_sequence", self._stop
        if self._finish_reason == "length":
            is_full = self._n_generated < self._max_tokens
            return "model_context_window_exceeded" if is_full else "max_tokens", None
        return "tool_use" if self._finish_reason == "tool_calls" else "end_turn", None

    def _push_delta(self, delta: Any) -> Iterator[Event]:
        if text := delta.get("reasoning_content"):
            if self._open != "thinking":
                yield from self._begin("thinking", thinking="", signature="")
            yield self._delta(text)
        if text := delta.get("content"):
            if self._open != "text":
                yield from self._begin("text", text="")
            yield self._delta(text)
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            if "id" in call:
                yield from self._begin("tool_use", id=call["id"], name=function["name"], input={})
            if text := function.get("arguments"):
                yield self._delta(text)

    def _begin(self, kind: str, **fields: object) -> Iterator[Event]:
        yield from self._end_block()
        self._index, self._open = self._index + 1, kind
        block = {"type": kind, **fields}
        yield _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, text: str) -> Event:
        kind, field = _DELTAS[self._open]
        delta = {"type": kind, field: text}
        return _event("content_block_delta", index=self._index, delta=delta)

    def _end_block(self) -> Iterator[Event]:
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": _SIGNATURE}
            yield _event("content_block_delta", index=self._index, delta=delta)
        if self._open:
            yield _event("content_block_stop", index=self._index)
        self._open = ""


def _event(name: str, **fields: object) -> Event:
    return name, {"type": name, **fields}
