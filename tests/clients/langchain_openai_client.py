"""langchain-openai: ChatOpenAI and OpenAIEmbeddings."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

ASK = "What is 12 + 30?"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


@pytest.fixture
def chat(url: str) -> ChatOpenAI:
    return model(url)


def model(url: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="local", temperature=0, **more)


def test_invoke_and_its_usage(chat: ChatOpenAI) -> None:
    answer = chat.invoke(ASK)
    assert isinstance(answer, AIMessage)
    assert answer.content
    usage = answer.usage_metadata
    assert usage is not None
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"


@pytest.mark.parametrize("api", ["completions", "responses"])
def test_stream_and_async_give_the_text_of_invoke(url: str, api: str) -> None:
    chat = model(url, use_responses_api=api == "responses", stream_usage=True)
    whole = chat.invoke(ASK)
    streamed: Any = None
    for chunk in chat.stream(ASK):
        streamed = chunk if streamed is None else streamed + chunk
    assert isinstance(streamed, AIMessageChunk)
    assert streamed.text == whole.text
    assert streamed.usage_metadata is not None
    assert streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert asyncio.run(chat.ainvoke(ASK)).text == whole.text

    async def collect() -> str:
        return "".join([chunk.text async for chunk in chat.astream(ASK)])

    assert asyncio.run(collect()) == whole.text


def test_a_batch_keeps_its_order(chat: ChatOpenAI) -> None:
    questions = ["What is 1 + 1?", "What is 20 + 30?", "What is 7 + 2?"]
    alone = [chat.invoke(question).content for question in questions]
    assert [answer.content for answer in chat.batch(questions)] == alone


@pytest.mark.parametrize("api", ["completions", "responses"])
@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called_and_their_results_taken(
    url: str, weather: dict[str, Any], api: str, streamed: bool
) -> None:
    chat = model(url, use_responses_api=api == "responses", max_tokens=200)
    bound = chat.bind_tools([weather], tool_choice="get_weather", parallel_tool_calls=False)
    question = HumanMessage("What is the weather in Paris?")
    if streamed:
        message: Any = None
        for chunk in bound.stream([question]):
            message = chunk if message is None else message + chunk
    else:
        message = bound.invoke([question])
    (call,) = message.tool_calls
    assert call["name"] == "get_weather"
    assert isinstance(call["args"]["city"], str)
    assert message.invalid_tool_calls == []
    history = [question, message, ToolMessage("sunny", tool_call_id=call["id"])]
    assert chat.bind_tools([weather]).invoke(history).response_metadata


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_is_a_value_of_its_type(chat: ChatOpenAI, method: Any) -> None:
    asked = chat.with_structured_output(Person, method=method)
    person = asked.invoke("Alice is 30 years old.")
    assert isinstance(person, Person)


def test_json_mode_is_json(chat: ChatOpenAI) -> None:
    asked = chat.with_structured_output(method="json_mode").bind(max_tokens=300)
    assert isinstance(asked.invoke("Alice is 30 years old. Answer as JSON."), dict)


def test_logprobs_are_in_the_metadata(url: str) -> None:
    answer = model(url, logprobs=True, top_logprobs=2).invoke(ASK)
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) >= 2


def test_reasoning_comes_by_the_responses_api(url: str) -> None:
    chat = model(url, use_responses_api=True, reasoning={"effort": "high"}, max_tokens=400)
    answer = chat.invoke(ASK)
    kinds = {block["type"] for block in answer.content_blocks}
    assert kinds <= {"reasoning", "text"}


def test_completions(url: str) -> None:
    llm = OpenAI(base_url=f"{url}/v1", api_key="none", model="local", temperature=0, max_tokens=5)
    assert llm.invoke("1 + 1 =") == "".join(llm.stream("1 + 1 ="))


def test_embeddings_need_no_tokenizer_of_openai(url: str) -> None:
    embeddings = OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key="none", model="local", check_embedding_ctx_length=False
    )
    cat, dog = embeddings.embed_documents(["a cat", "a dog"])
    assert cat != dog
    assert math.isclose(math.hypot(*cat), 1, rel_tol=1e-3)
    assert embeddings.embed_query("a cat") == pytest.approx(cat, abs=0.01)
    assert asyncio.run(embeddings.aembed_query("a cat")) == pytest.approx(cat, abs=0.01)
