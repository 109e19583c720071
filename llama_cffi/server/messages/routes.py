"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from starlette.routing import BaseRoute

from ...api.chat_completions import ChatCompletionOptions, PreparedChat
from ..call import Answer, Call, Endpoint, Json, Protocol, Stream
from ..chat import llama_extensions
from ..errors import ApiError
from ..paths import post
from ..sse import event
from .answer import Event, error_body, events, message_object
from .request import chat_request

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
    call.admit(model)
    prepared, options = await _prepared(call)
    n_prompt = len(prepared.request.tokens)  # message_start tells it
    model.check_length(n_prompt)
    prepared = replace(prepared, extensions=extensions)
    chunks = await model.llm.create_chat_completion_async(prepared, stream=True)
    if call.body.get("stream") is True:
        return Stream(_encoded(events(chunks, options, n_prompt)))
    return Json(await message_object(chunks, options))


async def _count(call: Call) -> Answer:
    prepared, _ = await _prepared(call)
    return Json({"input_tokens": len(prepared.request.tokens)})


async def _prepared(call: Call) -> tuple[PreparedChat, ChatCompletionOptions]:
    chat = call.model.llm.chat
    messages, options = chat_request(call.body, chat.family)
    options["model"] = call.model.name
    return await chat.prepare_async(messages, options, stream=True), options


async def _encoded(found: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(found):
        async for name, data in found:
            yield event(data, name)
