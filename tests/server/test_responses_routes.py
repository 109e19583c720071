"""The Responses API through OpenAI's own client, with the server on loopback."""

from __future__ import annotations

from typing import Any, Literal

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel
from support.http_requests import post, send
from support.server_state import n_requests, wait_for
from support.strict_sdk import strictly

from llama_cffi import LlamaPool

ASK: Any = {"model": "demo", "input": "What is 21 + 21?", "max_output_tokens": 8, "temperature": 0}


class Weather(BaseModel):
    sky: Literal["clear", "cloudy"]


@pytest.mark.behaviour("responses: ids have their prefixes, and output_text and usage are there")
def test_a_response_has_the_types_of_the_client(client: openai.OpenAI, url: str) -> None:
    strictly(Response, post(f"{url}/responses", ASK).json)
    response = client.responses.create(**ASK)
    assert "42" in response.output_text
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.output_tokens > 0


@pytest.mark.behaviour("robustness: streams are read in strict mode by the official clients' types")
def test_a_stream_gives_the_response(client: openai.OpenAI, url: str) -> None:
    reply = post(f"{url}/responses", {**ASK, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert [data["sequence_number"] for data in reply.events] == list(range(len(reply.events)))
    for data in reply.events:
        strictly(ResponseStreamEvent, data)
    with client.responses.stream(**ASK) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == client.responses.create(**ASK).output_text


def test_a_conversation_continues_by_its_id(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASK)
    more = {**ASK, "input": "And 1 + 1?", "previous_response_id": first.id}
    second = client.responses.create(**more)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="stored"):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(**more)


def test_what_is_not_stored_is_not_found(client: openai.OpenAI) -> None:
    response = client.responses.create(**ASK, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_an_answer_is_parsed(client: openai.OpenAI) -> None:
    asked = {**ASK, "input": "Weather in Paris?", "max_output_tokens": 400}
    parsed = client.responses.parse(**asked, text_format=Weather).output_parsed
    assert isinstance(parsed, Weather)


def test_input_tokens_are_the_usage(client: openai.OpenAI, url: str) -> None:
    response = client.responses.create(**ASK)
    counted = post(f"{url}/responses/input_tokens", ASK).json
    assert response.usage is not None
    assert counted["input_tokens"] == response.usage.input_tokens


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"input": 5}, "input"),
        ({"input": [{"type": "message", "role": 3, "content": "x"}]}, "input"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"text": {"format": {"type": "xml"}}}, "text"),
        ({"previous_response_id": "resp_unknown"}, "previous_response_id"),
    ],
)
def test_wrong_fields_are_refused_before_the_headers(
    url: str, wrong: dict[str, Any], param: str, streamed: bool
) -> None:
    reply = post(f"{url}/responses", {**ASK, **wrong, "stream": streamed})
    assert reply.status == 400
    assert param in reply.error["message"]


def test_a_prompt_that_is_too_long_is_refused_with_numbers(url: str) -> None:
    reply = post(f"{url}/responses", {**ASK, "input": "word " * 2000, "stream": True})
    assert (reply.status, reply.error["type"]) == (400, "exceed_context_size_error")
    assert reply.error["n_prompt_tokens"] > reply.error["n_ctx"] == 512


def test_a_client_that_leaves_frees_its_slot(client: openai.OpenAI, pool: LlamaPool) -> None:
    asked = {**ASK, "input": "Count from 1 to 100.", "max_output_tokens": 400}
    stream = client.responses.create(**asked, stream=True)
    next(iter(stream))
    stream.close()
    wait_for(lambda: n_requests(pool) == 0)


def test_unknown_ids_are_not_found(url: str) -> None:
    for method in ("GET", "DELETE"):
        assert send(method, f"{url}/responses/resp_x").status == 404
