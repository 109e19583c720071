"""Named streams, as llama-server has them: read on after a lost connection, and stopped by name.

A request with `stream: true` names its stream in the header `X-Conversation-Id`.
"""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from .body import STRING, list_of, take
from .call import Answer, Call, Endpoint, Json, Stream
from .errors import ApiError, invalid
from .stream_store import RecordedStream

__all__ = ["routes"]


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    read, stop = Endpoint(_read, reads_body=False), Endpoint(_stop, reads_body=False)
    lookup = Endpoint(_lookup, needs_model=False)
    paths = ("/v1/stream", "/v1/stream/{name:path}")
    return [
        *(Route(path, read, methods=["GET"]) for path in paths),
        *(Route(path, stop, methods=["DELETE"]) for path in paths),
        Route("/v1/streams/lookup", lookup, methods=["POST"]),
    ]


async def _read(call: Call) -> Answer:
    """Send a stream from a byte on, and what comes until its end."""
    name, start = _name(call), call.query("from") or "0"
    streams = call.state.streams.find(call.owner, [name])
    if not streams:
        raise _unknown(name)
    (stream,) = streams
    if not stream.has_begun:
        message = f"the stream {name!r:.60} has not begun: its model is being loaded"
        raise ApiError(503, message, "unavailable_error", headers={"Retry-After": "1"})
    if not (start.isascii() and start.isdecimal() and len(start) <= 15):
        raise invalid("from", f"from must be a number of bytes, got {start!r:.60}")
    stream.check(int(start))
    return Stream(stream.read(int(start)), has_pings=True)


async def _stop(call: Call) -> Answer:
    name = _name(call)
    if not call.state.streams.stop(call.owner, name):
        raise _unknown(name)
    return Json(None, 204)


async def _lookup(call: Call) -> Answer:
    """Tell of the streams whose names the client knows."""
    names = take(call.body, {"conversation_ids": list_of(STRING)}, "conversation_ids")
    found = call.state.streams.find(call.owner, names["conversation_ids"])
    return Json([_described(stream) for stream in found])


def _described(stream: RecordedStream) -> dict[str, object]:
    return {
        "conversation_id": stream.name,
        "is_done": stream.ended_s is not None,
        "total_bytes": stream.n_bytes,
        "started_at": int(stream.started_s * 1000),
        "completed_at": int((stream.ended_s or 0) * 1000),
    }


def _name(call: Call) -> str:
    """Return the name in the path, or in the query."""
    name = call.path_params.get("name") or call.query("conv_id")
    if not name:
        raise invalid("conv_id", "the stream's name is missing: /v1/stream?conv_id=NAME")
    return name


def _unknown(name: str) -> ApiError:
    message = (
        f"there is no stream {name!r:.60}; only requests with stream: true and the header "
        "X-Conversation-Id have one, until 5 minutes after their end"
    )
    return ApiError(404, message, "not_found_error", code="not_found", param="conv_id")
