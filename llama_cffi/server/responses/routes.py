"""POST /v1/responses and /v1/responses/input_tokens; reading and deleting what is stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.routing import BaseRoute, Route

from ..call import Answer, Call, Endpoint, Json, Stream
from ..chat import count_tokens, llama_extensions, prepare_chat, start_chat_stream
from ..errors import ApiError, invalid
from ..paths import post
from ..sse import event
from .events import events, response_object
from .items import page_of
from .request import ResponseRequest, chat_request

__all__ = ["routes"]


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    stored = "/v1/responses/{id}"
    return [
        *post("/responses", Endpoint(_create)),
        *post("/responses/input_tokens", Endpoint(_count)),
        Route(stored, Endpoint(_get, reads_body=False), methods=["GET"]),
        Route(stored, Endpoint(_delete, reads_body=False), methods=["DELETE"]),
        Route(f"{stored}/input_items", Endpoint(_input_items, reads_body=False), methods=["GET"]),
        Route(f"{stored}/cancel", Endpoint(_cancel, reads_body=False), methods=["POST"]),
    ]


async def _create(call: Call) -> Answer:
    store = call.state.responses
    extensions = llama_extensions(call.body)
    request = chat_request(call.body, store, call.model.name)
    prepared = await prepare_chat(call, _chat_body(request))
    chunks = await start_chat_stream(call, replace(prepared, extensions=extensions))
    if request.stream:
        return Stream(_encoded(events(request, chunks, store)))
    return Json(await response_object(request, chunks, store))


async def _count(call: Call) -> Answer:
    n = await count_tokens(call, _chat_body(chat_request(call.body, call.state.responses)))
    return Json({"object": "response.input_tokens", "input_tokens": n})


async def _get(call: Call) -> Answer:
    found = call.state.responses.get(call.path_params["id"])
    if found is None:
        raise _unknown(call)
    return Json(found.response)


async def _input_items(call: Call) -> Answer:
    items = call.state.responses.input_items(call.path_params["id"])
    if items is None:
        raise _unknown(call)
    return Json(page_of(items, call.query))


async def _cancel(call: Call) -> Answer:
    if call.state.responses.get(call.path_params["id"]) is None:
        raise _unknown(call)
    message = "only responses with background: true can be cancelled; close the connection instead"
    raise invalid("response_id", message)


async def _delete(call: Call) -> Answer:
    if not call.state.responses.remove(call.path_params["id"]):
        raise _unknown(call)
    return Json({"id": call.path_params["id"], "object": "response", "deleted": True})


def _chat_body(request: ResponseRequest) -> dict[str, Any]:
    return {"messages": request.messages, "stream": True, **request.options}


def _unknown(call: Call) -> ApiError:
    message = f"no response {call.path_params['id']!r} is stored; old ones are dropped"
    return ApiError(404, message, "not_found_error", code="not_found")


async def _encoded(found: AsyncGenerator[dict[str, object], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(found):
        async for data in found:
            yield event(data, str(data["type"]))
