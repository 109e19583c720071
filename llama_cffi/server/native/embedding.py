"""POST /embedding and /embeddings."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.routing import BaseRoute

from ...api.aio import whole_async
from ..body import INTEGER, LIST, STRING, Kind, either, take
from ..call import Answer, Call, Endpoint, Json
from ..errors import invalid
from ..fields import texts_or_ids
from ..paths import bare_post

__all__ = ["routes"]

_FIELDS: Mapping[str, Kind] = {
    "input": either(STRING, LIST),
    "content": either(STRING, LIST),
    "embd_normalize": INTEGER,
}


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    embed = Endpoint(_embed)
    return [bare_post("/embedding", embed), bare_post("/embeddings", embed)]


async def _embed(call: Call) -> Answer:
    model = call.model
    given = take(call.body, _FIELDS)
    name = "input" if "input" in given else "content"
    if name not in given:
        raise invalid("input", "input is missing; it must be a string or a list")
    norm = given.get("embd_normalize")
    if norm not in (None, -1, 2):
        raise invalid("embd_normalize", f"embd_normalize must be 2 or -1 for none, got {norm}")
    inputs = texts_or_ids(name, given[name], len(model.llm.model.vocab))
    call.admit(model)

    def embed() -> list[list[float] | list[list[float]]]:
        embedder = model.llm.embedder
        # As in llama-server, the vectors of tokens keep their length unless asked otherwise.
        scaled = embedder.pooling != "none" if norm is None else norm == 2
        return [row.tolist() for row in embedder.embed(inputs, normalize=scaled)]

    rows = await whole_async(embed)
    return Json(
        [
            {"index": i, "embedding": row if row and isinstance(row[0], list) else [row]}
            for i, row in enumerate(rows)
        ]
    )
