"""What an app is made with: its template, its names, its key."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.http_requests import get, post

from llama_cffi import LlamaPool
from llama_cffi.api.config import LlamaConfig
from llama_cffi.server.http_server import HttpServer
from llama_cffi.server.serving import serve

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
# As templates of Llama 3.2 and others show the date.
DATED = (
    "{{ 'Today is ' + strftime_now('%Y-%m-%d') + '.' }}"
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def dated(tiny_model: Path) -> Iterator[HttpServer]:
    config = LlamaConfig(n_parallel=2, n_ctx=64, n_threads=1, chat_format=DATED)
    with serve(tiny_model, config, port=0, aliases=["first", "second"], api_keys=["secret"]) as it:
        yield it


@pytest.mark.behaviour(
    "template: the date is in the prompt where the template asks for it",
    "chat: a template can be given on the command line",
    "template: add_generation_prompt on and off",
)
def test_the_given_template_is_used_and_shows_the_date(dated: HttpServer) -> None:
    key = {"x-api-key": "secret"}
    before = datetime.date.today()
    prompt = post(f"{dated.url}/apply-template", ASK, **key).json["prompt"]
    days = {before, datetime.date.today()}  # midnight may be between
    assert prompt in {f"Today is {day}.<user>hello<assistant>" for day in days}
    finished = [*ASK["messages"], {"role": "assistant", "content": "hi"}]
    body = {"messages": finished, "add_generation_prompt": True}
    both = post(f"{dated.url}/apply-template", body, **key).json["prompt"]
    assert both.endswith("<user>hello<assistant>hi<assistant>")
    counted = post(f"{dated.url}/v1/chat/completions/input_tokens", ASK, **key).json
    assert counted["input_tokens"] == len(prompt)  # a token of this model is a byte


@pytest.mark.behaviour(
    "security: the right key is served, by both headers and by the client",
    "basics: several aliases and tags are told, and any alias works as the model",
)
def test_the_client_is_served_with_the_key_and_by_any_alias(dated: HttpServer) -> None:
    with openai.OpenAI(base_url=f"{dated.url}/v1", api_key="secret", max_retries=0) as client:
        for name in ("first", "second"):
            answer = client.completions.create(model=name, prompt="a", max_tokens=1)
            assert answer.model == "first"
        (model,) = client.models.list().data
        assert model.model_extra is not None
        assert set(model.model_extra["aliases"]) == {"first", "second"}
    with (
        openai.OpenAI(base_url=f"{dated.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="wrong"),
    ):
        client.completions.create(model="first", prompt="a", max_tokens=1)


@pytest.mark.behaviour("embeddings: mean pooling, one text and many")
def test_mean_pooling_of_one_text_and_of_many(tiny_model: Path) -> None:
    config = LlamaConfig(n_parallel=2, n_ctx=64, n_threads=1, pooling="mean")
    with serve(tiny_model, config, port=0) as server:
        url = f"{server.url}/v1/embeddings"
        many = post(url, {"input": ["a", "bc", "a"]}).json["data"]
        (one,) = post(url, {"input": "bc"}).json["data"]
    assert many[1]["embedding"] == pytest.approx(one["embedding"], abs=1e-5)
    assert many[0]["embedding"] == pytest.approx(many[2]["embedding"], abs=1e-5)
    assert many[0]["embedding"] != pytest.approx(one["embedding"], abs=1e-2)


def test_properties_are_also_at_llama_swaps_path(server: HttpServer, pool: LlamaPool) -> None:
    """langchain-llama-cpp asks for them there."""
    props = get(f"{server.url}/upstream/demo/props")
    assert props.json == get(f"{server.url}/props").json
    assert props.json["default_generation_settings"]["n_ctx"] == int(pool.llm.n_ctx)
