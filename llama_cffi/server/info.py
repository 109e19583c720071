"""What the server is and has: /health, /v1/models, /props."""

from __future__ import annotations

import asyncio

from starlette.routing import BaseRoute, Route

from .. import __version__
from ..chat.media_parts import MARKER
from ..errors import LlamaError
from .call import Answer, Call, Endpoint, Json, stopping
from .errors import ApiError, not_supported
from .messages.models import for_either_client
from .models import ModelState, ServedModel
from .native.generation_settings import generation_settings
from .paths import get

__all__ = ["routes"]


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [
        *get("/health", Endpoint(_health, reads_body=False, is_public=True)),
        *get("/models", Endpoint(for_either_client(_list), reads_body=False, is_public=True)),
        *get(
            "/models/{name:path}",
            Endpoint(for_either_client(_retrieve), reads_body=False, is_public=True),
        ),
        Route("/props", Endpoint(_props, reads_body=False), methods=["GET"]),
        # llama-swap's path of the same, which langchain-llama-cpp asks for.
        Route("/upstream/{name:path}/props", Endpoint(_props, reads_body=False), methods=["GET"]),
        Route("/props", Endpoint(_set_props, reads_body=False), methods=["POST"]),
    ]


async def _health(call: Call) -> Answer:
    if call.state.is_draining:
        raise stopping()
    try:
        for model in call.state.models:
            model.check_open()
    except LlamaError as e:
        raise ApiError(503, str(e), "unavailable_error") from e
    return Json({"status": "ok"})


async def _list(call: Call) -> Answer:
    """List the models; `?reload=1` reads presets and folder again first."""
    models = call.state.models
    if call.query("reload") in ("1", "true"):
        call.check_key()  # only reading is public
        await models.reload()
    await asyncio.to_thread(lambda: [model.card for model in models])  # of new ones, from the file
    return Json({"object": "list", "data": [_described(model) for model in models]})


async def _retrieve(call: Call) -> Answer:
    model = call.state.models.named(call.path_params["name"])
    await asyncio.to_thread(lambda: model.card)
    return Json(_described(model))


def _described(model: ServedModel) -> dict[str, object]:
    """Return OpenAI's model, with what llama-server tells of it, also while it is not loaded."""
    card = model.card
    status: dict[str, object] = {"value": model.state.value}
    if model.state is ModelState.LOADING:
        status["progress"] = round(model.progress, 3)
    if model.failure is not None:
        status |= {"failed": True, "error": model.failure}
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "llama_cffi",
        "aliases": [*model.aliases],
        "tags": [*model.entry.tags],
        "status": status,
        "architecture": {
            "input_modalities": [*card.modalities] if card else ["text"],
            "output_modalities": [card.output if card else "text"],
        },
        "meta": None
        if card is None
        else {
            "n_ctx": card.n_ctx,
            "n_ctx_train": card.n_ctx_train,
            "n_params": card.n_params,
            "size": card.size_bytes,
            "n_vocab": card.n_vocab,
            "n_embd": card.n_embd,
        },
    }


async def _props(call: Call) -> Answer:
    """Tell about a model; without one among several, about the server."""
    models, settings = call.state.models, call.state.settings
    name = call.path_params.get("name", call.query("model"))
    if name is None and len(models) > 1:
        return Json(
            {
                "role": "router",
                "max_instances": settings.models_max,
                "models_autoload": settings.models_autoload,
                "build_info": f"llama_cffi {__version__}",
            }
        )
    model = models.find(name)
    card = await asyncio.to_thread(lambda: model.card)
    if card is None:
        raise ApiError(503, f"nothing is known of {model.name} before it is loaded")
    return Json(
        {
            "default_generation_settings": {
                "n_ctx": card.n_ctx,
                "params": generation_settings(card.sampling, card.seed, n_predict=-1),
            },
            "total_slots": card.n_slots,
            "role": "model",
            "model_alias": model.name,
            "model_path": card.path,
            "modalities": {
                "vision": "image" in card.modalities,
                "video": False,
                "audio": "audio" in card.modalities,
            },
            "media_marker": MARKER,
            "chat_template": card.chat_template,
            "bos_token": card.bos,
            "eos_token": card.eos,
            "build_info": f"llama_cffi {__version__}, llama.cpp {card.build or 'not loaded'}",
            "is_sleeping": model.state is ModelState.SLEEPING,
            "endpoint_slots": settings.slots,
            "endpoint_metrics": settings.metrics,
            "endpoint_props": False,
        }
    )


async def _set_props(_: Call) -> Answer:
    raise not_supported("the properties cannot be changed; start the server with other options")
