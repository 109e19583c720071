"""LlamaIndex: OpenAILike and OpenAILikeEmbedding."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

ASK = [ChatMessage(role="user", content="What is 12 + 30?")]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


@pytest.fixture
def llm(url: str) -> OpenAILike:
    return OpenAILike(
        model="local", api_base=f"{url}/v1", api_key="none", context_window=2048, temperature=0,
        max_tokens=300, is_chat_model=True, is_function_calling_model=True,
        should_use_structured_outputs=True,
    )  # fmt: skip


def test_stream_and_async_give_the_whole_text(llm: OpenAILike) -> None:
    whole = llm.chat(ASK).message.content
    assert whole
    assert [*llm.stream_chat(ASK)][-1].message.content == whole
    assert asyncio.run(llm.achat(ASK)).message.content == whole

    async def last() -> Any:
        return [chunk async for chunk in await llm.astream_chat(ASK)][-1].message.content

    assert asyncio.run(last()) == whole


def test_completions(llm: OpenAILike) -> None:
    plain = llm.model_copy(update={"is_chat_model": False, "max_tokens": 5})
    assert [*plain.stream_complete("1 + 1 =")][-1].text == plain.complete("1 + 1 =").text


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called(llm: OpenAILike, streamed: bool) -> None:
    def get_weather(city: str) -> str:
        """Get the weather."""
        return f"sunny in {city}"

    asked: dict[str, Any] = {
        "tools": [FunctionTool.from_defaults(get_weather)],
        "user_msg": "What is the weather in Paris?",
        "tool_required": True,
    }
    if streamed:
        answer = [*llm.stream_chat_with_tools(**asked)][-1]
    else:
        answer = llm.chat_with_tools(**asked)
    calls = llm.get_tool_calls_from_response(answer)
    assert {call.tool_name for call in calls} == {"get_weather"}
    assert all(isinstance(call.tool_kwargs["city"], str) for call in calls)


def test_structured_output_is_a_value_of_its_type(llm: OpenAILike) -> None:
    answer = llm.as_structured_llm(Person).complete("Alice is 30 years old.")
    assert isinstance(answer.raw, Person)


def test_embeddings(url: str) -> None:
    embedding = OpenAILikeEmbedding(model_name="local", api_base=f"{url}/v1", api_key="none")
    cat, dog = embedding.get_text_embedding_batch(["a cat", "a dog"])
    assert cat != dog
    assert math.isclose(math.hypot(*cat), 1, rel_tol=1e-3)
    assert asyncio.run(embedding.aget_query_embedding("a cat")) == pytest.approx(cat, abs=0.01)
