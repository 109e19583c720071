"""Reranking in the shapes of Jina, Cohere and text-embeddings-inference (TEI)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute, Route

from ..api.aio import whole_async
from .body import BOOL, INTEGER, LIST, STRING, Kind, take
from .call import Answer, Call, Endpoint, Json
from .errors import invalid, not_supported
from .models import ServedModel
from .paths import post

if TYPE_CHECKING:
    from ..embeddings.embedder import RerankResult

__all__ = ["routes"]

_FIELDS: Mapping[str, Kind] = {
    "query": STRING,
    "documents": LIST,
    "texts": LIST,
    "top_n": INTEGER,
    "return_documents": BOOL,
    "return_text": BOOL,
}
_MAX_DOCUMENTS = 10_000


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    jina = Endpoint(_jina)
    return [
        *post("/rerank", jina),
        *post("/reranking", jina),
        Route("/v2/rerank", Endpoint(_cohere), methods=["POST"]),
    ]


async def _jina(call: Call) -> Answer:
    """Answer in Jina's shape, or in TEI's when the documents are called `texts`."""
    given = take(call.body, _FIELDS, "query")
    if "texts" in given and "documents" not in given:
        texts = _documents("texts", given)
        results = await _ranked(call, given, texts)
        shown = given.get("return_text", False)
        return Json(
            [
                {"index": r.index, "score": r.score, **({"text": r.document} if shown else {})}
                for r in results
            ]
        )
    documents = _documents("documents", given)
    results = await _ranked(call, given, documents)
    n = _n_tokens(call.model, given["query"], documents)
    return Json(
        {
            "model": call.model.name,
            "object": "list",
            "usage": {"prompt_tokens": n, "total_tokens": n},
            "results": _results(results, given.get("return_documents", False)),
        }
    )


async def _cohere(call: Call) -> Answer:
    given = take(call.body, _FIELDS, "query")
    documents = _documents("documents", given)
    results = await _ranked(call, given, documents)
    n = _n_tokens(call.model, given["query"], documents)
    return Json(
        {
            "id": call.id,
            "results": _results(results, given.get("return_documents", False)),
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": n},
            },
        }
    )


def _documents(name: str, given: Mapping[str, Any]) -> list[str]:
    """Return the documents: strings, or objects with a text.

    Raises:
        ApiError: They are something else.
    """
    documents = given.get(name)
    if not documents:
        raise invalid(name, f"{name} must be a list of at least one string")
    if len(documents) > _MAX_DOCUMENTS:
        message = f"{name} has {len(documents)} items; at most {_MAX_DOCUMENTS} are allowed"
        raise invalid(name, message)
    found = []
    for i, item in enumerate(documents):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise invalid(name, f"{name}[{i}] must be a string, or an object with a text")
        found.append(text)
    return found


async def _ranked(call: Call, given: Mapping[str, Any], documents: list[str]) -> list[RerankResult]:
    model, query = call.model, given["query"]
    top_n = given.get("top_n")
    if top_n is not None and top_n < 0:
        raise invalid("top_n", f"top_n must be at least 0, got {top_n}")
    call.admit(model)
    if await whole_async(lambda: model.llm.embedder.pooling) != "rank":
        raise not_supported(
            f"{model.name} is not a reranker, or was not loaded with pooling='rank'; load one, "
            "such as bge-reranker-v2-m3, with --pooling rank"
        )
    return await whole_async(lambda: model.llm.rerank(query, documents, top_n=top_n))


def _results(results: list[RerankResult], shown: bool) -> list[dict[str, object]]:
    return [
        {
            "index": r.index,
            "relevance_score": r.score,
            **({"document": {"text": r.document}} if shown else {}),
        }
        for r in results
    ]


def _n_tokens(model: ServedModel, query: str, documents: list[str]) -> int:
    """Return the number of tokens of the query, for each document, and the documents."""
    count = model.llm.n_tokens
    return count(query, False) * len(documents) + sum(count(text, False) for text in documents)
