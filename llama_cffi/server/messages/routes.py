"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.routing import BaseRoute

from ..call import Answer, Call, Endpoint, Json, Protocol, Stream
from ..errors import ApiError
from ..models import ServedModel
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
    messages, options = chat_request(call.body, model.llm.chat.family)
    options["model"] = model.name
    call.admit(model)
    # message_start tells it.
    n_prompt = await asyncio.to_thread(_n_tokens, model, messages, options)
    model.check_length(n_prompt)
    chunks = await model.llm.create_chat_completion_async(messages, stream=True, **options)
    if call.body.get("stream") is True:
        return Stream(_encoded(events(chunks, options, n_prompt)))
    return Json(await message_object(chunks, options))


async def _count(call: Call) -> Answer:
    model = call.model
    messages, options = chat_request(call.body, model.llm.chat.family)
    return Json({"input_tokens": await asyncio.to_thread(_n_tokens, model, messages, options)})


def _n_tokens(model: ServedModel, messages: Any, options: Any) -> int:
    return len(model.llm.chat.prepare(messages, options, stream=True).request.tokens)


async def _encoded(found: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(found):
        async for name, data in found:
            yield event(data, name)
