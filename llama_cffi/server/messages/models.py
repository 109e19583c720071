"""GET /v1/models in Anthropic's shape, for clients that send the header `anthropic-version`."""

from __future__ import annotations

import datetime
from typing import Any

from ..call import Answer, Call, Handler, Json

__all__ = ["for_either_client"]


def for_either_client(handler: Handler) -> Handler:
    """Return a handler whose OpenAI models get Anthropic's shape where that is expected."""

    async def handle(call: Call) -> Answer:
        answer = await handler(call)
        if "anthropic-version" not in call.headers or not isinstance(answer, Json):
            return answer
        value: Any = answer.value
        return Json(_page(value["data"]) if "data" in value else _model(value))

    return handle


def _page(models: list[dict[str, Any]]) -> dict[str, object]:
    found = [_model(model) for model in models]
    ids = [model["id"] for model in found]
    return {
        "data": found,
        "has_more": False,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }


def _model(model: dict[str, Any]) -> dict[str, object]:
    created = datetime.datetime.fromtimestamp(model["created"], datetime.timezone.utc)
    meta = model.get("meta") or {}
    return {
        "type": "model",
        "id": model["id"],
        "display_name": model["id"],
        "created_at": created.isoformat(),
        "lifecycle": "active",
        "max_input_tokens": meta.get("n_ctx"),
        "max_tokens": meta.get("n_ctx"),
    }
