"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from starlette.routing import BaseRoute

from ..call import Answer, Call, Endpoint, Json, Protocol, Stream
from ..chat import admit_chat, llama_extensions
from ..errors import ApiError
from ..media import load_messages
from ..paths import post
from ..sse import event
from .answer import Event, error_body, events, message_object
from .request import ChatRequest, chat_request

__all__ = ["ANTHROPIC", "routes"]


def _body(error: ApiError, id: str) -> dict[str, object]:
    return error_body(error.status, error.message, id)


ANTHROPIC = Protocol(
    _body, lambda error, id: event(_body(error, id), "error"), id_header="request-id"
)


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [
        *post("/messages", Endpoint(_create, ANTHROPIC), bare=False),
        *post("/messages/count_tokens", Endpoint(_count, ANTHROPIC), bare=False),
    ]


async def _create(call: Call) -> Answer:
    model = call.model
    extensions = llama_extensions(call.body)
    messages, options = _chat(call)
    prepared = await admit_chat(call, messages, options, stream=True)
    n_prompt = len(prepared.request.tokens)  # message_start tells it
    prepared = replace(prepared, extensions=extensions)
    chunks = await model.llm.create_chat_completion_async(prepared, stream=True)
    if call.body.get("stream") is True:
        return Stream(_encoded(events(chunks, options, n_prompt)))
    return Json(await message_object(chunks, options))


async def _count(call: Call) -> Answer:
    given, options = _chat(call)
    messages = await load_messages(call, given)
    prepared = await call.model.llm.chat.prepare_async(messages, options, stream=True)
    return Json({"input_tokens": len(prepared.request.tokens)})


def _chat(call: Call) -> ChatRequest:
    request = chat_request(call.body, call.model.llm.chat.family)
    request.options["model"] = call.model.name
    return request


async def _encoded(found: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(found):
        async for name, data in found:
            yield event(data, name)
