"""/health, /v1/models, /props, and what is not there."""

from __future__ import annotations

import openai
import pytest
from support.http_requests import get, post, send
from support.strict_sdk import assert_strict

from llama_cffi import LlamaPool
from llama_cffi.server.http_server import HttpServer


@pytest.mark.behaviour("basics: starts, and /health is 200")
@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health(server: HttpServer, path: str) -> None:
    reply = get(server.url + path)
    assert (reply.status, reply.json) == (200, {"status": "ok"})


@pytest.mark.behaviour("basics: /models has one entry, whose id is the alias")
def test_models_tell_their_context_size(client: openai.OpenAI) -> None:
    page = client.models.list()
    (model,) = page.data
    assert_strict(model)
    assert model.id == "demo"
    facts = model.model_extra
    assert facts is not None
    assert facts["aliases"] == ["demo", "other-name"]
    assert facts["meta"]["n_ctx"] == 512
    assert {"n_ctx_train", "n_params", "size", "n_vocab", "n_embd"} < facts["meta"].keys()
    assert client.models.retrieve("other-name") == model
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt-9")


@pytest.mark.behaviour(
    "basics: /props has the file, the slots, the context of a slot, and the default seed"
)
def test_props(server: HttpServer, pool: LlamaPool) -> None:
    props = get(f"{server.url}/props").json
    assert (props["role"], props["total_slots"]) == ("model", 4)
    assert (props["model_alias"], props["model_path"]) == ("demo", pool.model_path)
    defaults = props["default_generation_settings"]
    assert defaults["n_ctx"] == 512
    assert (defaults["params"]["seed"], defaults["params"]["temperature"]) == (-1, 0.8)
    assert defaults["params"]["n_predict"] == -1
    assert "im_start" in props["chat_template"]


def test_props_cannot_be_changed(server: HttpServer) -> None:
    reply = post(f"{server.url}/props", {})
    assert (reply.status, reply.error["type"]) == (501, "not_supported_error")
    assert get(f"{server.url}/props").json["endpoint_props"] is False


def test_unknown_paths_and_methods_are_errors_in_openais_shape(server: HttpServer) -> None:
    unknown = get(f"{server.url}/v1/nothing")
    assert unknown.status == 404
    assert "GET /v1/nothing" in unknown.error["message"]
    method = get(f"{server.url}/v1/chat/completions")
    assert method.status == 405
    assert method.error["message"]
    assert "POST" in method.headers["allow"]
    assert post(f"{server.url}/v1/models", {}).status == 405


def test_translation_is_refused_with_a_sentence(server: HttpServer) -> None:
    reply = send("POST", f"{server.url}/v1/audio/translations", b"x" * 100,
                 {"content-type": "multipart/form-data; boundary=x"})  # fmt: skip
    assert reply.status == 501
    assert "audio" in reply.error["message"]
    assert reply.headers["x-should-retry"] == "false"
