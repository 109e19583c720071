"""LoRA adapters: GET and POST /lora-adapters, and the field `lora` of a request."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.routing import BaseRoute, Route

from ..scheduler import InferenceEngine
from .body import LIST, take
from .call import Answer, Call, Endpoint, Json
from .errors import invalid, not_supported
from .models import ServedModel

__all__ = ["routes", "use_adapters"]


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    change = Endpoint(_change, list_field="adapters", needs_model=False)
    return [
        Route("/lora-adapters", Endpoint(_list, reads_body=False), methods=["GET"]),
        Route("/lora-adapters", change, methods=["POST"]),
    ]


async def _list(call: Call) -> Answer:
    adapters = (await _model(call)).llm.adapters
    return Json(
        [
            {"id": i, "path": path, "scale": scale}
            for i, (path, scale) in enumerate(adapters.items())
        ]
    )


async def _change(call: Call) -> Answer:
    """Set the scales of requests that have none of their own."""
    model = await _model(call)
    given = take(call.body, {"adapters": LIST}, "adapters")["adapters"]
    scales = _scales(model, "adapters", given)
    await asyncio.to_thread(model.llm.set_adapters, scales)
    return Json({"success": True})


async def _model(call: Call) -> ServedModel:
    """Return the model that the URL names, loaded: a body that is a list cannot name it."""
    call.body["model"] = call.query("model")
    await call.hold_model()
    return call.model


def use_adapters(call: Call) -> None:
    """Have the generations of a request use the adapters in its field `lora`, if it has one.

    Raises:
        ApiError: It is wrong, or the engine has the same adapters for all requests.
    """
    given = take(call.body, {"lora": LIST}).get("lora")
    if given is None:
        return
    call.requests.adapters = _scales(call.model, "lora", given)
    if not isinstance(call.model.llm.engine, InferenceEngine):
        raise not_supported(
            "adapters of single requests need a scheduler; load the model with n_parallel=2 or "
            "more, or with adapters=..."
        )


def _scales(model: ServedModel, name: str, given: list[Any]) -> dict[str, float]:
    """Return the scales of all adapters; those that are not given have 0.

    Raises:
        ApiError: An item is not a known id and a scale.
    """
    paths = [*model.llm.adapters]
    scales = dict.fromkeys(paths, 0.0)
    for i, item in enumerate(given):
        number, scale = (item.get("id"), item.get("scale")) if isinstance(item, dict) else (0, None)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise invalid(name, f'{name}[{i}] must be {{"id": ..., "scale": a number}}')
        if type(number) is not int or not 0 <= number < len(paths):
            known = f"0 to {len(paths) - 1}" if paths else "none; start the server with --lora FILE"
            raise invalid(name, f"{name}[{i}]: there is no adapter {number!r:.60}; ids: {known}")
        scales[paths[number]] = float(scale)
    return scales
