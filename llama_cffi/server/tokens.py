"""llama-server's routes about tokens: /tokenize, /detokenize, /apply-template."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.routing import BaseRoute

from .body import BOOL, INTEGER, STRING, Kind, list_of, take
from .call import Answer, Call, Endpoint, Json
from .chat import chat_prompt
from .paths import post

__all__ = ["routes"]

_TOKENIZE: Mapping[str, Kind] = {
    "content": STRING,
    "add_special": BOOL,
    "parse_special": BOOL,
    "with_pieces": BOOL,
}
_DETOKENIZE: Mapping[str, Kind] = {"tokens": list_of(INTEGER)}


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [
        *post("/tokenize", Endpoint(_tokenize)),
        *post("/detokenize", Endpoint(_detokenize)),
        *post("/apply-template", Endpoint(_apply_template)),
    ]


async def _tokenize(call: Call) -> Answer:
    given = take(call.body, _TOKENIZE, "content")
    llm = call.model.llm
    special = given.get("add_special", False), given.get("parse_special", True)
    tokens = await asyncio.to_thread(llm.tokenize, given["content"], *special)
    if not given.get("with_pieces"):
        return Json({"tokens": tokens})
    vocab = llm.model.vocab
    pieces = [(token, vocab.token_to_piece(token, True)) for token in tokens]
    return Json({"tokens": [{"id": token, "piece": _piece(piece)} for token, piece in pieces]})


def _piece(piece: bytes) -> str | list[int]:
    """Return the text of a token, or its bytes if it is part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return [*piece]


async def _detokenize(call: Call) -> Answer:
    given = take(call.body, _DETOKENIZE, "tokens")
    return Json({"content": call.model.llm.detokenize(given["tokens"], special=True)})


async def _apply_template(call: Call) -> Answer:
    return Json({"prompt": await chat_prompt(call)})
