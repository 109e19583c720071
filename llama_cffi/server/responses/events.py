"""The chunks of a chat completion as a response object, and as the events that lead to it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from ...errors import LlamaError
from .items import with_ids
from .objects import Kind, OutputItem, new_id, response_usage

if TYPE_CHECKING:
    from ...api.types import CreateChatCompletionStreamResponse
    from ..response_store import Item, ResponseStore
    from .request import ResponseRequest

    Chunk = CreateChatCompletionStreamResponse
    Event = dict[str, object]

__all__ = ["ResponseFold", "events", "response_object"]

_log = logging.getLogger(__name__)
_TEXT_EVENTS: Mapping[Kind, str] = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
}


async def events(
    request: ResponseRequest, chunks: AsyncIterator[Chunk], store: ResponseStore | None = None
) -> AsyncGenerator[Event, None]:
    """Yield the events of a response.

    The first two come before the first chunk is awaited. The last one is `response.completed`,
    `response.incomplete` or, after an error, `response.failed`; each has the whole response.

    Args:
        request: The request.
        chunks: The chunks of its chat completion.
        store: Where the response is stored, before its last event, if the request asks for it.
    """
    fold = ResponseFold(request)
    for event in fold.start():
        yield event
    try:
        async with _closing(chunks):
            async for chunk in chunks:
                for event in fold.push(chunk):
                    yield event
        last = fold.finish()
        _keep(fold, store)
    except Exception as error:
        if not isinstance(error, LlamaError):
            _log.exception("a response failed")
        last = fold.fail(error)
    for event in last:
        yield event


async def response_object(
    request: ResponseRequest, chunks: AsyncIterator[Chunk], store: ResponseStore | None = None
) -> Item:
    """Return the response object; see `events`, but errors are raised."""
    fold = ResponseFold(request)
    async with _closing(chunks):
        async for chunk in chunks:
            fold.push(chunk)
    fold.finish()
    _keep(fold, store)
    return {**fold.response, **fold.timings}


@asynccontextmanager
async def _closing(chunks: AsyncIterator[Chunk]) -> AsyncIterator[None]:
    """End the generation when the caller leaves."""
    try:
        yield
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def _keep(fold: ResponseFold, store: ResponseStore | None) -> None:
    if store is not None and fold.request.store:
        output = fold.response["output"]
        store.put(fold.response, [*with_ids(fold.request.conversation), *output])


class ResponseFold:
    """Makes a response of the chunks of a chat completion; how they cut the text is irrelevant.

    Items follow each other as reasoning, text and calls do in the chunks; at most one is open.

    Args:
        request: The request.

    Attributes:
        request: The request.
        response: The response object, as it is now.
        timings: llama-server's `timings`, if they were asked for.
    """

    def __init__(self, request: ResponseRequest) -> None:
        self.request = request
        self.response: Item = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **request.settings,
        }
        self.timings: Item = {}
        self._n_events = 0
        self._open: OutputItem | None = None
        self._key: str | int = ""  # what the open item consists of; a call's index
        self._reason: str | None = None

    def start(self) -> list[Event]:
        """Return the events before the first chunk."""
        return [
            self._event(f"response.{name}", response=self._snapshot())
            for name in ("created", "in_progress")
        ]

    def push(self, chunk: Chunk) -> list[Event]:
        """Add a chunk; return its events."""
        if usage := chunk.get("usage"):
            self.response["usage"] = response_usage(usage)
        found = [event for choice in chunk["choices"] for event in self._choice(choice)]
        if timings := chunk.get("timings"):
            self.timings = {"timings": timings}
            if found:
                found[-1].update(self.timings)
        if progress := chunk.get("prompt_progress"):
            event = self._event("response.in_progress", response=self._snapshot())
            found.append({**event, "prompt_progress": progress})
        return found

    def finish(self) -> list[Event]:
        """End the response after the last chunk; return the last events."""
        is_cut = self._reason == "length"
        status: Literal["incomplete", "completed"] = "incomplete" if is_cut else "completed"
        found = [*self._close(status)]
        if is_cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = int(time.time())
        return [*found, self._end(status)]

    def fail(self, error: Exception) -> list[Event]:
        """End the response after an error; return the last event."""
        message = str(error) if isinstance(error, LlamaError) else ""
        self.response["error"] = {
            "code": "server_error",
            "message": message or "the server failed; its log says why",
        }
        if self._open is not None:
            self.response["output"].append(self._open.as_dict("incomplete"))
        return [self._end("failed")]

    def _choice(self, choice: Mapping[str, Any]) -> Iterator[Event]:
        delta = choice["delta"]
        scores = (choice.get("logprobs") or {}).get("content") or []
        if reasoning := delta.get("reasoning_content"):
            yield from self._text("reasoning", reasoning)
        if content := delta.get("content"):
            yield from self._text("message", content, scores)
        for part in delta.get("tool_calls") or ():
            yield from self._call(part)
        self._reason = choice["finish_reason"]

    def _text(self, kind: Kind, text: str, logprobs: Any = ()) -> Iterator[Event]:
        if self._open is None or self._key != kind:
            yield from self._begin(OutputItem(kind, None, self.request.encrypts_reasoning), kind)
        yield from self._grow(text, logprobs)

    def _call(self, part: Mapping[str, Any]) -> Iterator[Event]:
        function = part.get("function") or {}
        if self._open is None or self._key != part["index"]:
            call = {"call_id": part["id"], "name": function["name"]}
            yield from self._begin(OutputItem("function_call", call), part["index"])
        if arguments := function.get("arguments"):
            yield from self._grow(arguments)

    def _begin(self, item: OutputItem, key: str | int) -> Iterator[Event]:
        yield from self._close("completed")
        self._open, self._key = item, key
        yield self._item_event("response.output_item.added", item.as_dict("in_progress"))
        if item.kind != "function_call":
            place = self._place(item)
            yield self._event("response.content_part.added", **place, part=item.part())

    def _grow(self, text: str, logprobs: Any = ()) -> Iterator[Event]:
        item = self._open
        assert item is not None
        item.add(text, logprobs)
        fields: Item = {**self._place(item), "delta": text}
        if item.kind == "message":
            fields["logprobs"] = item.event_logprobs(len(logprobs))
        yield self._event(f"{_TEXT_EVENTS[item.kind]}.delta", **fields)

    def _close(self, status: Literal["completed", "incomplete"]) -> Iterator[Event]:
        item, self._open = self._open, None
        if item is None:
            return
        place = self._place(item)
        fields: Item = {"arguments" if item.kind == "function_call" else "text": item.text}
        if item.kind == "message":
            fields["logprobs"] = item.event_logprobs()
        yield self._event(f"{_TEXT_EVENTS[item.kind]}.done", **place, **fields)
        if item.kind != "function_call":
            yield self._event("response.content_part.done", **place, part=item.part())
        done = item.as_dict(status)
        yield self._item_event("response.output_item.done", done)
        self.response["output"].append(done)

    def _end(self, status: Literal["completed", "incomplete", "failed"]) -> Event:
        self._open = None
        self.response["status"] = status
        return self._event(f"response.{status}", response=self._snapshot(), **self.timings)

    def _place(self, item: OutputItem) -> Item:
        place: Item = {"item_id": item.id, "output_index": len(self.response["output"])}
        return place if item.kind == "function_call" else {**place, "content_index": 0}

    def _item_event(self, kind: str, item: Item) -> Event:
        return self._event(kind, output_index=len(self.response["output"]), item=item)

    def _snapshot(self) -> Item:
        """Return the response, as it is now: events may be written later."""
        return {**self.response, "output": [*self.response["output"]]}

    def _event(self, kind: str, **fields: object) -> Event:
        event: Event = {"type": kind, "sequence_number": self._n_events, **fields}
        self._n_events += 1
        return event
