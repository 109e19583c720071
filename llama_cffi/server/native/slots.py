"""GET /slots: what the sequences of the KV cache are doing."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from ...scheduler import InferenceEngine, Request
from ..call import Answer, Call, Endpoint, Json
from ..errors import ApiError, not_supported
from ..models import ServedModel

__all__ = ["routes"]


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [Route("/slots", Endpoint(_list, reads_body=False), methods=["GET"])]


async def _list(call: Call) -> Answer:
    if not call.state.settings.slots:
        raise not_supported("this server does not tell its slots; start it with --slots")
    slots = _slots(call.state.models.find(call.query("model")))
    if call.query("fail_on_no_slot") == "1" and all(slot["is_processing"] for slot in slots):
        message, headers = f"all {len(slots)} slots are busy", {"Retry-After": "1"}
        raise ApiError(503, message, "unavailable_error", headers=headers)
    return Json(slots)


def _slots(model: ServedModel) -> list[dict[str, object]]:
    """Return the state of each slot, without prompts and answers."""
    llm = model.llm
    engine = llm.engine
    running: dict[int | None, Request] = {}
    if isinstance(engine, InferenceEngine):
        running = {request.seq_id: request for request in [*engine.scheduler.running]}
        is_busy = [i in running for i in range(llm.config.n_parallel)]
    else:
        is_busy = [model.n_requests > 0]
    common = {"n_ctx": int(llm.n_ctx), "speculative": llm.config.draft is not None}
    return [
        {"id": i, **common, "is_processing": busy, **_task(running.get(i))}
        for i, busy in enumerate(is_busy)
    ]


def _task(request: Request | None) -> dict[str, object]:
    if request is None:
        return {}
    n = request.n_generated
    n_remain = request.max_tokens - n
    return {
        "id_task": request.number,
        "n_prompt_tokens": len(request.prompt),
        "n_prompt_tokens_processed": min(request.num_computed_tokens, len(request.prompt)),
        "next_token": {"has_next_token": n_remain > 0, "n_decoded": n, "n_remain": n_remain},
    }
