"""pydantic-ai and instructor: typed answers, through OpenAI's and Anthropic's clients."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import instructor
import openai
import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

ASK = "Alice is 30 years old."


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


def model(url: str, kind: str) -> Any:
    if kind == "messages":
        return AnthropicModel("local", provider=AnthropicProvider(base_url=url, api_key="none"))
    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    of_kind = OpenAIChatModel if kind == "chat" else OpenAIResponsesModel
    return of_kind("local", provider=provider)


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
def test_pydantic_ai_answers_and_streams(url: str, kind: str) -> None:
    agent = Agent(model(url, kind), model_settings={"temperature": 0, "max_tokens": 300})
    whole = agent.run_sync("What is 12 + 30?")
    assert whole.output
    assert whole.usage.output_tokens > 0

    async def streamed() -> str:
        async with agent.run_stream("What is 12 + 30?") as result:
            return "".join([text async for text in result.stream_text(delta=True)])

    assert asyncio.run(streamed()) == whole.output


@pytest.mark.parametrize("how", [NativeOutput, ToolOutput])
@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_pydantic_ai_returns_a_value_of_the_type(url: str, kind: str, how: Any) -> None:
    settings: Any = {"temperature": 0, "max_tokens": 300}
    agent = Agent(model(url, kind), output_type=how(Person), model_settings=settings)
    assert isinstance(agent.run_sync(ASK).output, Person)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_instructor_returns_a_value_of_the_type(url: str, mode: instructor.Mode) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        asked = instructor.from_openai(client, mode=mode)
        person = asked.chat.completions.create(
            model="local", messages=[{"role": "user", "content": ASK}], response_model=Person,
            temperature=0, max_tokens=300, max_retries=0,
        )  # fmt: skip
    assert isinstance(person, Person)


def test_instructor_returns_a_value_through_anthropics_client(url: str) -> None:
    with anthropic.Anthropic(base_url=url, api_key="none") as client:
        asked = instructor.from_anthropic(client)
        person = asked.messages.create(
            model="local", messages=[{"role": "user", "content": ASK}], response_model=Person,
            temperature=0, max_tokens=300, max_retries=0,
        )  # fmt: skip
    assert isinstance(person, Person)
