"""Anthropic's own client, with the server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from support.http_requests import post
from support.server_state import n_requests, wait_for
from support.strict_sdk import strictly

from llama_cffi import LlamaPool
from llama_cffi.server.http_server import HttpServer

ASK: Any = {
    "model": "demo",
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "What is 21 + 21?"}],
    "extra_body": {"temperature": 0},
}
BODY = {**{name: value for name, value in ASK.items() if name != "extra_body"}, "temperature": 0}
TOOL: Any = {
    "name": "get_weather",
    "description": "Get the weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest.fixture(scope="module")
def claude(server: HttpServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_message_has_the_types_of_the_client(claude: anthropic.Anthropic, url: str) -> None:
    raw = post(f"{url}/messages", BODY)
    strictly(Message, raw.json)
    message = claude.messages.create(**ASK)
    assert message.content[0].type == "text"
    assert "42" in message.content[0].text
    assert message.stop_reason == "end_turn"
    assert message.model == "demo"
    assert raw.headers["request-id"].startswith("req_")


@pytest.mark.behaviour("messages: events have Anthropic's names, fields and order")
@pytest.mark.behaviour("robustness: streams are read in strict mode by the official clients' types")
def test_a_stream_gives_the_message(claude: anthropic.Anthropic, url: str) -> None:
    whole = claude.messages.create(**ASK)
    with claude.messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text  # type: ignore[union-attr]
    assert final.stop_reason == whole.stop_reason
    reply = post(f"{url}/messages", {**BODY, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    names = [line[7:] for line in reply.body.decode().split("\n") if line.startswith("event: ")]
    assert names == [data["type"] for data in reply.events]
    assert (names[0], names[-1]) == ("message_start", "message_stop")
    for data in reply.events:
        strictly(RawMessageStreamEvent, data)


def test_a_forced_tool_is_called(claude: anthropic.Anthropic) -> None:
    asked = {**ASK, "max_tokens": 64, "tools": [TOOL], "tool_choice": {"type": "any"}}
    message = claude.messages.create(**asked)
    (use,) = [block for block in message.content if block.type == "tool_use"]
    assert use.name == "get_weather"
    assert isinstance(use.input["city"], str)
    assert message.stop_reason == "tool_use"


def test_the_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(**ASK, stop_sequences=["2"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "2")


@pytest.mark.behaviour(
    "messages: count_tokens counts messages, system and tools, without max_tokens"
)
@pytest.mark.behaviour("messages: the count has input_tokens only")
def test_the_count_is_the_usage(claude: anthropic.Anthropic, url: str) -> None:
    counted = {name: ASK[name] for name in ("model", "messages")}
    count = claude.messages.count_tokens(**counted)
    usage = claude.messages.create(**ASK).usage
    assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    answer = post(f"{url}/messages/count_tokens", counted).json
    assert [*answer] == ["input_tokens"]
    strictly(MessageTokensCount, answer)


def test_the_async_client_works(server: HttpServer) -> None:
    async def ask() -> str:
        client = anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0)
        async with client, client.messages.stream(**ASK) as stream:
            return "".join([text async for text in stream.text_stream])

    assert "42" in asyncio.run(ask())


@pytest.mark.behaviour("messages: errors have Anthropic's shape")
@pytest.mark.parametrize("streamed", [False, True])
def test_errors_have_the_form_of_anthropic(claude: anthropic.Anthropic, streamed: bool) -> None:
    long = [{"role": "user", "content": "word " * 2000}]
    with pytest.raises(anthropic.BadRequestError) as error:
        claude.messages.create(**{**ASK, "messages": long, "stream": streamed})
    body: Any = error.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert "512" in body["error"]["message"]
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(**{**ASK, "max_tokens": 0, "stream": streamed})


def test_a_client_that_leaves_frees_its_slot(claude: anthropic.Anthropic, pool: LlamaPool) -> None:
    story = [{"role": "user", "content": "Count from 1 to 100."}]
    stream = claude.messages.create(**{**ASK, "messages": story, "max_tokens": 400, "stream": True})
    next(iter(stream))
    stream.close()
    wait_for(lambda: n_requests(pool) == 0)
