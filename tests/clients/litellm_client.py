"""litellm: OpenAI's and Anthropic's protocol by one function."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import litellm
import pytest
from pydantic import BaseModel, Field

ASK = [{"role": "user", "content": "What is 12 + 30?"}]
PROTOCOLS = ["openai", "anthropic"]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


def options(url: str, protocol: str) -> dict[str, Any]:
    base = f"{url}/v1" if protocol == "openai" else url
    return {
        "model": f"{protocol}/local", "api_base": base, "api_key": "none", "temperature": 0,
        "max_tokens": 300, "num_retries": 0,
    }  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_stream_and_async_give_the_whole_text(url: str, protocol: str) -> None:
    asked = options(url, protocol)
    whole = litellm.completion(messages=ASK, **asked)
    text = whole.choices[0].message.content
    assert text
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    more = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = [*litellm.completion(messages=ASK, **asked, **more)]
    rebuilt = litellm.stream_chunk_builder(chunks, messages=ASK)
    assert rebuilt.choices[0].message.content == text
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens
    again = asyncio.run(litellm.acompletion(messages=ASK, **asked))
    assert again.choices[0].message.content == text


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tools_are_called_and_their_results_taken(
    url: str, weather: dict[str, Any], protocol: str, streamed: bool
) -> None:
    asked = options(url, protocol)
    question = {"role": "user", "content": "What is the weather in Paris?"}
    answer = litellm.completion(
        messages=[question], tools=[weather], tool_choice="required", stream=streamed, **asked
    )
    if streamed:
        answer = litellm.stream_chunk_builder([*answer], messages=[question])
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert all("city" in json.loads(c.function.arguments) for c in message.tool_calls)
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls
    ]
    history = [question, message.model_dump(), *results]
    assert litellm.completion(messages=history, tools=[weather], **asked).usage.prompt_tokens > 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_structured_output_is_a_value_of_its_type(url: str, protocol: str) -> None:
    question = [{"role": "user", "content": "Alice is 30 years old."}]
    answer = litellm.completion(messages=question, response_format=Person, **options(url, protocol))
    assert Person.model_validate_json(answer.choices[0].message.content)


def test_reasoning_is_a_field_of_its_own(url: str) -> None:
    answer = litellm.completion(
        messages=ASK, extra_body={"reasoning_effort": "high"}, **options(url, "openai")
    )
    assert "<think>" not in (answer.choices[0].message.content or "")


def test_completions(url: str) -> None:
    asked = {**options(url, "text-completion-openai"), "api_base": f"{url}/v1", "max_tokens": 5}
    whole = litellm.text_completion(prompt="1 + 1 =", **asked)
    chunks = litellm.text_completion(prompt="1 + 1 =", stream=True, **asked)
    assert "".join(c.choices[0].text or "" for c in chunks) == whole.choices[0].text


def test_responses(url: str) -> None:
    asked = {"model": "openai/local", "api_base": f"{url}/v1", "api_key": "none"}
    whole = litellm.responses(input="What is 12 + 30?", **asked)
    assert whole.status == "completed"
    events = [*litellm.responses(input="What is 12 + 30?", stream=True, **asked)]
    assert events[-1].type == "response.completed"


def test_the_messages_route(url: str) -> None:
    asked = {**options(url, "anthropic"), "max_tokens": 50}
    answer: Any = asyncio.run(litellm.anthropic.messages.acreate(messages=ASK, **asked))
    assert answer["type"] == "message"
    assert answer["usage"]["output_tokens"] > 0


def test_embeddings(url: str) -> None:
    asked = {"model": "openai/local", "api_base": f"{url}/v1", "api_key": "none"}
    cat, dog = (
        item["embedding"] for item in litellm.embedding(input=["a cat", "a dog"], **asked).data
    )
    assert cat != dog
    assert math.isclose(math.hypot(*cat), 1, rel_tol=1e-3)


def test_a_long_prompt_is_its_context_error(url: str) -> None:
    long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(litellm.BadRequestError, match="2048"):
        litellm.completion(messages=long, **options(url, "openai"))
