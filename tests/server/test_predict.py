"""POST /predict, as Vertex AI asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.http_requests import post
from support.server_state import n_requests, wait_for

from llama_cffi import LlamaPool

ASK = {"messages": [{"role": "user", "content": "What is 12 + 30?"}], "temperature": 0}


@pytest.fixture(scope="module")
def vertex(pool: LlamaPool) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIP_MODE", "PREDICTION")
        patch.setenv("AIP_PREDICT_ROUTE", "/vertex/predict")
        with pool.serve() as server:
            yield f"{server.url}/vertex/predict"


@pytest.mark.behaviour("Vertex: a camelCase request is answered")
def test_a_camel_case_request_is_answered_as_by_its_route(vertex: str, url: str) -> None:
    instance = {"@requestFormat": "chatCompletions", **ASK, "max_tokens": 8, "stream": True}
    (answer,) = post(vertex, {"instances": [instance]}).json["predictions"]
    expected = post(f"{url}/chat/completions", {**ASK, "max_tokens": 8}).json
    assert answer["choices"] == expected["choices"]


@pytest.mark.behaviour("Vertex: several instances are answered in order")
def test_several_instances_keep_their_order_and_their_own_errors(
    vertex: str, pool: LlamaPool
) -> None:
    instances = [
        {"@requestFormat": "completions", "prompt": "1 +", "max_tokens": 2},
        {"@requestFormat": "/v1/embeddings", "input": "a cat"},
        {"@requestFormat": "chatCompletions", "messages": 5},
        {"@requestFormat": "messages", **ASK, "max_tokens": 2},
    ]
    reply = post(vertex, {"instances": instances})
    assert reply.status == 200
    kinds = [one.get("object") or one.get("type") for one in reply.json["predictions"]]
    assert kinds == ["text_completion", "list", None, "message"]
    assert reply.json["predictions"][2]["error"]["param"] == "messages"
    wait_for(lambda: n_requests(pool) == 0)


@pytest.mark.parametrize(
    "instances", [None, [], 5, [5], [{}], [{"@requestFormat": "x"}], [ASK] * 129]
)
def test_wrong_instances_are_400(vertex: str, instances: Any) -> None:
    reply = post(vertex, {"instances": instances})
    assert reply.status == 400
    assert reply.error["param"] == "instances"


def test_without_vertex_there_is_no_route(server: Any) -> None:
    assert post(f"{server.url}/predict", {"instances": []}).status == 404
