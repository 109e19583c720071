"""Every call of the official clients that is served, sync and async, read strictly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel
from support.strict_sdk import EXTENSIONS, assert_strict

from llama_cffi.server.http_server import HttpServer

ASK: Any = {"model": "demo", "messages": [{"role": "user", "content": "What is 12 + 30?"}]}
SHORT: Any = {"temperature": 0, "max_tokens": 6}
RESPOND: Any = {"model": "demo", "input": "What is 12 + 30?", "max_output_tokens": 8}
TOOL: Any = {
    "name": "get_weather", "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}},
                   "required": ["city"], "additionalProperties": False},
}  # fmt: skip


class Sum(BaseModel):
    total: int


@pytest.fixture(scope="module")
def claude(server: HttpServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def check(answer: BaseModel) -> None:
    """Fail on fields that are unknown, missing, or of another type; nested values, too."""
    assert_strict(answer, EXTENSIONS | {"_request_id"})


async def chats(client: Any, done: Callable[[Any], Awaitable[Any]]) -> None:
    """Run all calls; *done* awaits what an async client returns."""
    chat = client.chat.completions
    check(await done(chat.create(**ASK, **SHORT)))
    tools = {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"}
    called = await done(chat.create(**ASK, **tools, temperature=0))
    check(called)
    assert called.choices[0].message.tool_calls
    parsed = await done(chat.parse(**ASK, response_format=Sum, max_tokens=60))
    assert isinstance(parsed.choices[0].message.parsed, Sum)
    check(await done(client.completions.create(model="demo", prompt="1 + 1 =", **SHORT)))
    check(await done(client.embeddings.create(model="demo", input=["a", "b"])))
    check(await done(client.models.retrieve("demo")))


async def responds(client: Any, done: Callable[[Any], Awaitable[Any]]) -> str:
    """Run all calls of responses but streams; return the id of one that is stored."""
    response = await done(client.responses.create(**RESPOND))
    check(response)
    again = await done(client.responses.retrieve(response.id))
    check(again)
    assert again.output_text == response.output_text
    parsed = await done(
        client.responses.parse(
            **{**RESPOND, "max_output_tokens": 60}, text_format=Sum, temperature=0
        )
    )
    assert isinstance(parsed.output_parsed, Sum)
    called = await done(
        client.responses.create(
            **{**RESPOND, "max_output_tokens": 60},
            tools=[{"type": "function", "strict": True, **TOOL}], tool_choice="required",
        )
    )  # fmt: skip
    check(called)
    assert called.output[-1].type == "function_call"
    counted = await done(client.responses.input_tokens.count(model="demo", input=RESPOND["input"]))
    check(counted)
    assert counted.input_tokens == response.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="background"):
        await done(client.responses.cancel(response.id))
    with pytest.raises(openai.NotFoundError):
        await done(client.responses.cancel("resp_unknown"))
    await done(client.responses.delete(parsed.id))
    with pytest.raises(openai.NotFoundError):
        await done(client.responses.retrieve(parsed.id))
    found: str = response.id
    return found


async def claudes(client: Any, done: Callable[[Any], Awaitable[Any]]) -> None:
    message = await done(client.messages.create(**ASK, max_tokens=6))
    check(message)
    check(await done(client.messages.count_tokens(**ASK)))
    parsed = await done(client.messages.parse(**ASK, max_tokens=60, output_format=Sum))
    assert isinstance(parsed.parsed_output, Sum)
    tool = {"name": "get_weather", "input_schema": TOOL["parameters"]}
    called = await done(
        client.messages.create(**ASK, max_tokens=60, tools=[tool], tool_choice={"type": "any"})
    )
    check(called)
    assert called.content[-1].type == "tool_use"
    check(await done(client.models.retrieve("demo")))


async def itself(value: Any) -> Any:
    return value


async def awaited(value: Any) -> Any:
    return await value


def test_every_call_of_openais_client(client: openai.OpenAI) -> None:
    asyncio.run(chats(client, itself))
    for model in client.models.list():
        check(model)


def test_every_call_of_openais_client_for_responses(client: openai.OpenAI) -> None:
    response_id = asyncio.run(responds(client, itself))
    for item in client.responses.input_items.list(response_id):
        check(item)
    assert item.content[0].text == RESPOND["input"]  # type: ignore[union-attr]


def test_every_call_of_openais_async_client(url: str) -> None:
    async def all_calls() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            await chats(client, awaited)
            response_id = await responds(client, awaited)
            async for item in client.responses.input_items.list(response_id):
                check(item)
            async for model in client.models.list():
                check(model)

    asyncio.run(all_calls())


def test_every_stream_of_openais_client(client: openai.OpenAI) -> None:
    for chunk in client.chat.completions.create(**ASK, **SHORT, stream=True):
        check(chunk)
    with client.chat.completions.stream(**ASK, **SHORT) as chat:
        assert [event.type for event in chat][-1] in ("content.done", "chunk")
        check(chat.get_final_completion())
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(model="demo", prompt="1 +", **SHORT, stream=True)
    )
    assert text
    for event in client.responses.create(**RESPOND, stream=True):
        check(event)
    with client.responses.stream(**RESPOND) as stream:
        assert [event.type for event in stream][-1] in ("response.completed", "response.incomplete")


def test_every_stream_of_openais_async_client(url: str) -> None:
    async def all_streams() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            async for chunk in await client.chat.completions.create(**ASK, **SHORT, stream=True):
                check(chunk)
            async with client.chat.completions.stream(**ASK, **SHORT) as chat:
                check(await chat.get_final_completion())
            async for event in await client.responses.create(**RESPOND, stream=True):
                check(event)
            async with client.responses.stream(**RESPOND) as stream:
                assert (await stream.get_final_response()).output_text
            asked = {"model": "demo", "prompt": "1 +", "stream": True, **SHORT}
            assert [c async for c in await client.completions.create(**asked)]

    asyncio.run(all_streams())


def test_every_call_of_anthropics_client(claude: anthropic.Anthropic) -> None:
    asyncio.run(claudes(claude, itself))
    (model,) = claude.models.list()
    check(model)
    assert (model.id, model.max_input_tokens) == ("demo", 512)
    for event in claude.messages.create(**ASK, max_tokens=6, stream=True):
        check(event)
    with claude.messages.stream(**ASK, max_tokens=6) as stream:
        assert "".join(stream.text_stream)
        check(stream.get_final_message())


def test_every_call_of_anthropics_async_client(server: HttpServer) -> None:
    async def all_calls() -> None:
        client = anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0)
        async with client:
            await claudes(client, awaited)
            async for model in client.models.list():
                check(model)
            async for event in await client.messages.create(**ASK, max_tokens=6, stream=True):
                check(event)
            async with client.messages.stream(**ASK, max_tokens=6) as stream:
                check(await stream.get_final_message())

    asyncio.run(all_calls())
