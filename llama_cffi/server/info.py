"""What the server is and has: /health, /v1/models, /props."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from .. import __version__
from ..errors import LlamaError
from ..generation.sampling_params import SamplingParams
from .call import Answer, Call, Endpoint, Json
from .errors import ApiError, not_supported
from .messages.models import for_either_client
from .models import ServedModel
from .native.generation_settings import generation_settings
from .paths import get, post

__all__ = ["routes"]


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    no_audio = Endpoint(_transcribe, reads_body=False)
    return [
        *get("/health", Endpoint(_health, reads_body=False, is_public=True)),
        *get("/models", Endpoint(for_either_client(_list), reads_body=False, is_public=True)),
        *get(
            "/models/{name:path}",
            Endpoint(for_either_client(_retrieve), reads_body=False, is_public=True),
        ),
        Route("/props", Endpoint(_props, reads_body=False), methods=["GET"]),
        Route("/props", Endpoint(_set_props, reads_body=False), methods=["POST"]),
        *post("/audio/transcriptions", no_audio, bare=False),
        *post("/audio/translations", no_audio, bare=False),
    ]


async def _health(call: Call) -> Answer:
    if call.state.is_draining:
        raise ApiError(503, "the server is shutting down", "unavailable_error")
    try:
        for model in call.state.models:
            model.check_open()
    except LlamaError as e:
        raise ApiError(503, str(e), "unavailable_error") from e
    return Json({"status": "ok"})


async def _list(call: Call) -> Answer:
    return Json({"object": "list", "data": [_described(model) for model in call.state.models]})


async def _retrieve(call: Call) -> Answer:
    name = call.path_params["name"]
    for model in call.state.models:
        if name in model.aliases:
            return Json(_described(model))
    raise ApiError(
        404, f"the model {name!r} does not exist", "not_found_error", code="model_not_found"
    )


def _described(model: ServedModel) -> dict[str, object]:
    """Return OpenAI's model, and as `meta` what llama-server tells of it."""
    llm = model.llm
    facts = llm.model
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "llama_cffi",
        "aliases": [*model.aliases],
        "meta": {
            "n_ctx": int(llm.n_ctx),
            "n_ctx_train": facts.n_ctx_train,
            "n_params": facts.n_params,
            "size": facts.size_bytes,
            "n_vocab": len(facts.vocab),
            "n_embd": facts.n_embd,
        },
    }


async def _props(call: Call) -> Answer:
    model = call.state.models.find(call.query("model"))
    llm = model.llm
    vocab, build, settings = llm.model.vocab, llm.model.library.build, call.state.settings
    bos, eos = ("" if t is None else vocab.text(t) for t in (vocab.bos, vocab.eos))
    return Json(
        {
            "default_generation_settings": {
                "n_ctx": int(llm.n_ctx),
                "params": generation_settings(
                    llm.sampling or SamplingParams(), vocab, llm.config.seed, n_predict=-1
                ),
            },
            "total_slots": llm.config.n_parallel,
            "role": "model",
            "model_alias": model.name,
            "model_path": llm.model_path,
            "modalities": {"vision": False, "video": False, "audio": False},
            "chat_template": llm.get_chat_template(),
            "bos_token": bos,
            "eos_token": eos,
            "build_info": f"llama_cffi {__version__}, llama.cpp {build.tag or build.version}",
            "is_sleeping": False,
            "endpoint_slots": settings.slots,
            "endpoint_metrics": settings.metrics,
            "endpoint_props": False,
        }
    )


async def _set_props(_: Call) -> Answer:
    raise not_supported("the properties cannot be changed; start the server with other options")


async def _transcribe(_: Call) -> Answer:
    raise not_supported("this server does not transcribe audio yet")
