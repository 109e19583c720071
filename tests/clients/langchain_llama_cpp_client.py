"""langchain-llama-cpp: ChatLlama speaks to llama-server natively, by way of llama-swap."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_llama_cpp import ChatLlama
from langchain_llama_cpp.chat_models import request_field_names
from pydantic import BaseModel, Field

ASK = "What is 12 + 30?"
# A value of every field that it can send.
VALUES: dict[str, Any] = {
    "max_tokens": 8, "stop": ["zzz"], "ignore_eos": False, "t_max_predict_ms": 10000,
    "n_indent": 0, "n": 1, "temperature": 0.5, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0,
    "top_k": 20, "top_p": 0.9, "min_p": 0.05, "typical_p": 1.0, "top_n_sigma": -1.0,
    "xtc_probability": 0.0, "xtc_threshold": 0.1, "mirostat": 0, "mirostat_tau": 5.0,
    "mirostat_eta": 0.1, "adaptive_target": -1.0, "adaptive_decay": 0.9, "min_keep": 0,
    "samplers": ["top_k", "min_p", "temperature"], "seed": -1, "backend_sampling": False,
    "repeat_penalty": 1.0, "repeat_last_n": 64, "frequency_penalty": 0.0,
    "presence_penalty": 0.0, "dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2,
    "dry_penalty_last_n": -1, "dry_sequence_breakers": ["\n", ":"], "logit_bias": [[5, -1.0]],
    "grammar": 'root ::= "a" | "b"', "json_schema": {"type": "integer"},
    "chat_template_kwargs": {"enable_thinking": False}, "reasoning_format": "auto",
    "reasoning_effort": "low", "reasoning_budget_tokens": -1, "reasoning_budget_message": "",
    "reasoning_control": False, "add_generation_prompt": True, "continue_final_message": False,
    "echo": False, "logprobs": True, "top_logprobs": 2, "n_probs": 2,
    "post_sampling_probs": False, "return_tokens": True, "timings_per_token": True,
    "response_fields": ["content"], "cache_prompt": True, "n_cache_reuse": 0, "n_keep": 0,
    "n_discard": 0, "id_slot": -1, "lora": [], "return_progress": False, "sse_ping_interval": 5,
}  # fmt: skip


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


def model(url: str, **more: Any) -> ChatLlama:
    return ChatLlama(base_url=url, model="local", **{"temperature": 0, "max_tokens": 300, **more})


def test_invoke_stream_and_async_give_one_text(url: str) -> None:
    chat = model(url)
    whole = chat.invoke(ASK)
    usage = whole.usage_metadata
    assert usage is not None
    streamed: Any = None
    for chunk in chat.stream(ASK):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.content == whole.content
    assert streamed.usage_metadata["total_tokens"] == usage["total_tokens"]
    assert asyncio.run(chat.ainvoke(ASK)).content == whole.content

    async def collect() -> str:
        return "".join([str(chunk.content) async for chunk in chat.astream(ASK)])

    assert asyncio.run(collect()) == whole.content


def test_timings_are_told(url: str) -> None:
    chat = model(url)
    timings = chat.invoke(ASK).response_metadata["timings"]
    assert timings["predicted_n"] > 0
    chunks = [*chat.stream(ASK)]
    assert any("timings" in chunk.response_metadata for chunk in chunks)


def test_reasoning_is_apart_and_goes_back(url: str) -> None:
    chat = model(url, reasoning_effort="high")
    answer = chat.invoke(ASK)
    assert isinstance(answer, AIMessage)
    assert "<think>" not in str(answer.content)
    assert chat.invoke([HumanMessage(ASK), answer, HumanMessage(ASK)]).usage_metadata


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called_and_their_results_taken(
    url: str, weather: dict[str, Any], streamed: bool
) -> None:
    bound = model(url).bind_tools([weather], tool_choice="any")
    question = HumanMessage("What is the weather in Paris?")
    if streamed:
        message: Any = None
        for chunk in bound.stream([question]):
            message = chunk if message is None else message + chunk
    else:
        message = bound.invoke([question])
    assert message.tool_calls[0]["name"] == "get_weather"
    assert message.invalid_tool_calls == []
    results = [ToolMessage("sunny", tool_call_id=call["id"]) for call in message.tool_calls]
    assert model(url).bind_tools([weather]).invoke([question, message, *results]).usage_metadata


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_is_a_value_of_its_type(url: str, method: Any) -> None:
    asked = model(url).with_structured_output(Person, method=method)
    assert isinstance(asked.invoke("Alice is 30 years old."), Person)


@pytest.mark.parametrize("field", request_field_names())
def test_every_field_that_it_sends_is_taken(url: str, field: str) -> None:
    more = {"logprobs": True} if field == "top_logprobs" else {}
    chat = model(url, **{"max_tokens": 8, **more, field: VALUES[field]})
    assert chat.invoke(ASK) is not None
    if field not in ("response_fields", "n"):
        assert [*chat.stream(ASK)]


def test_a_long_prompt_is_its_context_overflow(url: str) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        model(url).invoke("word " * 3000)
    assert isinstance(caught.value, httpx.HTTPStatusError)
    assert caught.value.n_prompt_tokens > caught.value.n_ctx == 2048


def test_the_servers_defaults_are_told(url: str) -> None:
    defaults = model(url).get_server_defaults()
    assert defaults["n_ctx"] == 2048
    assert {"temperature", "top_k", "top_p", "min_p", "seed"} <= defaults.keys()
