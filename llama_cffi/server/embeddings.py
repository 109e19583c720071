"""OpenAI's embeddings: POST /v1/embeddings."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute

from .body import INTEGER, LIST, STRING, Kind, either, take
from .call import Answer, Call, Endpoint, Json
from .errors import invalid
from .fields import texts_or_ids
from .paths import post

__all__ = ["routes"]

_FIELDS: Mapping[str, Kind] = {
    "input": either(STRING, LIST),
    "encoding_format": STRING,
    "dimensions": INTEGER,
    "user": STRING,
}


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    # llama-server's /embeddings, without /v1, has another response.
    return post("/embeddings", Endpoint(_create), bare=False)


async def _create(call: Call) -> Answer:
    model = call.model
    given = take(call.body, _FIELDS, "input")
    form = given.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise invalid("encoding_format", f"encoding_format must be float or base64, got {form!r}")
    inputs = texts_or_ids("input", given["input"], len(model.llm.model.vocab))
    dimensions = given.get("dimensions")
    n_embd = model.llm.model.n_embd_out
    if dimensions is not None and not 1 <= dimensions <= n_embd:
        message = f"dimensions must be from 1 to {n_embd}, got {dimensions}"
        raise invalid("dimensions", message)
    if model.llm.config.pooling == "none":
        raise invalid(
            "input",
            "the model was loaded with pooling='none', which has no vector of a whole text; load "
            "it with another pooling",
        )
    call.admit(model)
    done: Any = await model.llm.create_embedding_async(inputs, model.name)
    for item in done["data"]:
        vector = item["embedding"]
        if dimensions is not None:
            vector = _unit(vector[:dimensions])
        item["embedding"] = _base64(vector) if form == "base64" else vector
    return Json(done)


def _unit(vector: Sequence[float]) -> list[float]:
    length = math.hypot(*vector)
    return [x / length for x in vector] if length else [*vector]


def _base64(vector: Sequence[float]) -> str:
    """Return a vector as OpenAI's base64: float32, little-endian."""
    data = array("f", vector)
    if sys.byteorder == "big":
        data.byteswap()
    return base64.b64encode(data.tobytes()).decode("ascii")
