"""POST /embedding and /embeddings, llama-server's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support.http_requests import post

from llama_cffi import LlamaPool
from llama_cffi.demo import model_path
from llama_cffi.server.http_server import HttpServer


@pytest.mark.parametrize("path", ["/embedding", "/embeddings"])
@pytest.mark.parametrize("field", ["input", "content"])
def test_embeddings_are_a_list(server: HttpServer, pool: LlamaPool, path: str, field: str) -> None:
    ids = pool.llm.tokenize("a dog", True)
    answer = post(server.url + path, {field: ["a cat", "the weather"]}).json
    assert [item["index"] for item in answer] == [0, 1]
    for item, text in zip(answer, ["a cat", "the weather"], strict=True):
        assert item.keys() == {"index", "embedding"}
        (vector,) = item["embedding"]
        assert vector == pytest.approx(pool.llm.embed(text), abs=1e-6)
    (item,) = post(server.url + path, {field: ids}).json
    assert item["embedding"][0] == pytest.approx(pool.llm.embed("a dog"), abs=1e-6)


def test_embeddings_can_keep_their_length(server: HttpServer) -> None:
    (raw,) = post(f"{server.url}/embedding", {"input": "a cat", "embd_normalize": -1}).json
    (unit,) = post(f"{server.url}/embedding", {"input": "a cat"}).json
    length = math.hypot(*raw["embedding"][0])
    assert length != pytest.approx(1, rel=1e-3)
    scaled = [x / length for x in raw["embedding"][0]]
    assert scaled == pytest.approx(unit["embedding"][0], abs=1e-5)


@pytest.mark.parametrize(
    "body",
    [{}, {"input": []}, {"input": 3}, {"content": [10**9]}, {"input": "a", "embd_normalize": 1}],
)
def test_wrong_inputs_of_embeddings_are_400(server: HttpServer, body: Any) -> None:
    reply = post(f"{server.url}/embedding", body)
    assert reply.status == 400
    assert reply.error["message"]


@pytest.mark.behaviour(
    "embeddings: without pooling each token has a raw vector, and OpenAI's route is 400"
)
def test_every_token_has_a_vector_without_pooling() -> None:
    with (
        LlamaPool(
            model_path(), n_parallel=1, n_ctx=64, n_threads=1, embeddings=True, pooling="none"
        ) as pool,
        pool.serve() as server,
    ):
        (item,) = post(f"{server.url}/embedding", {"input": "a small cat"}).json
        assert len(item["embedding"]) == len(pool.llm.tokenize("a small cat", True)) > 1
        assert {len(row) for row in item["embedding"]} == {pool.llm.model.n_embd_out}
