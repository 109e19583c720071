"""Reranking in three shapes, with a tiny BERT that has a classification head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gguf
import pytest
from support.http_requests import post
from support.tiny_encoders import write_bert

from llama_cffi import Llama
from llama_cffi.server.http_server import HttpServer

QUERY, DOCUMENTS = "abc", ["a b c", "d e f", "c b a", "p"]


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    path = tmp_path_factory.mktemp("rank") / "rank.gguf"
    write_bert(path, pooling=gguf.PoolingType.RANK, head=True)
    with Llama(path, embeddings=True, n_threads=1, n_ctx=64) as llm:
        yield llm


@pytest.fixture(scope="module")
def rank_server(ranker: Llama) -> Iterator[HttpServer]:
    with ranker.serve() as server:
        yield server


def ask(rank_server: HttpServer, path: str = "/v1/rerank", **more: Any) -> Any:
    reply = post(rank_server.url + path, {"query": QUERY, "documents": DOCUMENTS, **more})
    assert reply.status == 200, reply.body
    return reply.json


@pytest.mark.behaviour("rerank: usage is there")
@pytest.mark.parametrize("path", ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking"])
def test_jinas_shape_is_sorted_as_the_python_api(
    rank_server: HttpServer, ranker: Llama, path: str
) -> None:
    answer = ask(rank_server, path)
    assert answer["object"] == "list"
    assert answer["model"] == "rank"
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    expected = [
        {"index": r.index, "relevance_score": pytest.approx(r.score)}
        for r in ranker.rerank(QUERY, DOCUMENTS)
    ]
    assert answer["results"] == expected


@pytest.mark.behaviour("rerank: top_n clamps in every shape")
@pytest.mark.parametrize(("top_n", "n"), [(None, 4), (2, 2), (4, 4), (99, 4)])
def test_top_n_clamps_in_every_shape(rank_server: HttpServer, top_n: int | None, n: int) -> None:
    assert len(ask(rank_server, top_n=top_n)["results"]) == n
    assert len(ask(rank_server, "/v2/rerank", top_n=top_n)["results"]) == n
    tei = post(f"{rank_server.url}/rerank", {"query": QUERY, "texts": DOCUMENTS, "top_n": top_n})
    assert len(tei.json) == n


def test_documents_are_returned_on_request(rank_server: HttpServer) -> None:
    for result in ask(rank_server, return_documents=True)["results"]:
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}


@pytest.mark.behaviour("rerank: text-embeddings-inference's shape, with and without the text")
def test_teis_shape_is_a_list(rank_server: HttpServer) -> None:
    body = {"query": QUERY, "texts": DOCUMENTS}
    plain = post(f"{rank_server.url}/rerank", body).json
    shown = post(f"{rank_server.url}/rerank", {**body, "return_text": True}).json
    assert [set(item) for item in plain] == [{"index", "score"}] * 4
    assert [item["text"] for item in shown] == [DOCUMENTS[item["index"]] for item in plain]
    scores = [item["score"] for item in plain]
    assert scores == sorted(scores, reverse=True)


def test_coheres_shape_takes_objects(rank_server: HttpServer) -> None:
    answer = ask(rank_server, "/v2/rerank", documents=[{"text": text} for text in DOCUMENTS])
    assert answer["id"]
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    assert answer["meta"]["api_version"] == {"version": "2"}
    assert answer["results"] == ask(rank_server)["results"]


@pytest.mark.behaviour("rerank: bad bodies are 400")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("query", None), ("query", 5), ("query", ["x"]), ("documents", None), ("documents", []),
        ("documents", "x"), ("documents", [5]), ("documents", [{}]), ("top_n", -1), ("top_n", "x"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_400_with_its_name(
    rank_server: HttpServer, field: str, value: Any
) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, field: value}
    reply = post(f"{rank_server.url}/v1/rerank", body)
    assert reply.status == 400
    assert reply.error["param"] == field


def test_a_model_that_does_not_rerank_is_501(url: str) -> None:
    reply = post(f"{url}/rerank", {"query": QUERY, "documents": DOCUMENTS})
    assert reply.status == 501
    assert reply.error["type"] == "not_supported_error"


def test_an_encoder_refuses_to_generate(rank_server: HttpServer) -> None:
    reply = post(f"{rank_server.url}/v1/completions", {"prompt": "a b c", "max_tokens": 2})
    assert reply.status in (400, 501), reply.body
    assert reply.error["message"]
