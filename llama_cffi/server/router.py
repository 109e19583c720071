"""POST /models/load and /models/unload, as llama-server's router has them."""

from __future__ import annotations

from starlette.routing import BaseRoute

from .body import STRING, take
from .call import Answer, Call, Endpoint, Json
from .paths import post
from .served_model import ServedModel

__all__ = ["routes"]


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [
        *post("/models/load", Endpoint(_load, needs_model=False)),
        *post("/models/unload", Endpoint(_unload, needs_model=False)),
    ]


async def _load(call: Call) -> Answer:
    """Begin to load a model; `GET /models` tells when it is loaded."""
    call.state.models.residency.load(_named(call))
    return Json({"success": True})


async def _unload(call: Call) -> Answer:
    call.state.models.residency.unload(_named(call))
    return Json({"success": True})


def _named(call: Call) -> ServedModel:
    return call.state.models.named(take(call.body, {"model": STRING}, "model")["model"])
