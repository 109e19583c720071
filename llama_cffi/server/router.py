"""Loading, unloading and deleting models, as llama-server's router and OpenAI's API have them."""

from __future__ import annotations

from starlette.routing import BaseRoute

from .body import STRING, take
from .call import Answer, Call, Endpoint, Json
from .errors import not_supported
from .paths import delete, post
from .served_model import ServedModel

__all__ = ["routes"]


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [
        *post("/models/load", Endpoint(_load, needs_model=False)),
        *post("/models/unload", Endpoint(_unload, needs_model=False)),
        *delete("/models", Endpoint(_delete, reads_body=False)),
        *delete("/models/{name:path}", Endpoint(_delete, reads_body=False)),
    ]


async def _load(call: Call) -> Answer:
    """Begin to load a model; `GET /models` tells when it is loaded."""
    call.state.models.residency.load(_named(call))
    return Json({"success": True})


async def _unload(call: Call) -> Answer:
    call.state.models.residency.unload(_named(call))
    return Json({"success": True})


async def _delete(call: Call) -> Answer:
    """Delete the files of the model in the path, or in `?model=`."""
    models = call.state.models
    if not call.state.settings.allow_delete:
        raise not_supported("this server does not delete models; start it with --allow-delete")
    name = call.path_params.get("name")
    if name is None:
        await models.delete(models.named(call.query("model") or ""))
        return Json({"success": True})
    await models.delete(models.named(name))
    return Json({"id": name, "object": "model", "deleted": True})


def _named(call: Call) -> ServedModel:
    return call.state.models.named(take(call.body, {"model": STRING}, "model")["model"])
