"""Requests recorded from Codex CLI and Claude Code: taken, and answered in events they read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import RawMessageStreamEvent
from openai.types.responses import ResponseStreamEvent
from support.agent_requests import (
    CLAUDE_CODE_HEADERS,
    CLAUDE_CODE_TURN,
    CODEX_HEADERS,
    CODEX_TURN,
)
from support.http_requests import post
from support.strict_sdk import strictly

from llama_cffi.api.config import LlamaConfig
from llama_cffi.demo import model_path
from llama_cffi.server.http_server import HttpServer
from llama_cffi.server.serving import serve


@pytest.fixture(scope="module")
def roomy() -> Iterator[HttpServer]:
    config = LlamaConfig(n_parallel=2, n_ctx=2048, n_threads=1)
    with serve(model_path(), config, port=0, aliases=["demo"]) as server:
        yield server


@pytest.mark.behaviour(
    "robustness: requests like those of Codex CLI and Claude Code are answered",
    "robustness: streams are read in strict mode by the official clients' types",
)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_codex_gets_the_events_that_it_waits_for(roomy: HttpServer, choice: str) -> None:
    body = {**CODEX_TURN, "tool_choice": choice, "max_output_tokens": 60, "temperature": 0}
    reply = post(f"{roomy.url}/v1/responses", body, **CODEX_HEADERS)
    assert reply.status == 200, reply.body
    assert "content-encoding" not in reply.headers
    events = [event for event in reply.events if event != "[DONE]"]
    for event in events:
        strictly(ResponseStreamEvent, event)
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    response = events[-1]["response"]
    assert response["usage"]["input_tokens"] > 0
    assert {tool["type"] for tool in response["tools"]} <= {"function", "namespace", "web_search"}
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    assert {call["name"] for call in calls} == ({"run"} if choice == "required" else set())


@pytest.mark.behaviour(
    "robustness: requests like those of Codex CLI and Claude Code are answered",
    "robustness: streams are read in strict mode by the official clients' types",
    "messages: a tool_result is a text, blocks, or an error",
)
@pytest.mark.parametrize("choice", ["auto", "any"])
def test_claude_code_gets_the_events_that_it_waits_for(roomy: HttpServer, choice: str) -> None:
    thinking = "adaptive" if choice == "auto" else "disabled"
    body = {
        **CLAUDE_CODE_TURN, "max_tokens": 60, "temperature": 0, "tool_choice": {"type": choice},
        "thinking": {"type": thinking},
    }  # fmt: skip
    reply = post(f"{roomy.url}/v1/messages?beta=true", body, **CLAUDE_CODE_HEADERS)
    assert reply.status == 200, reply.body
    events = [event for event in reply.events if event["type"] != "ping"]
    for event in events:
        strictly(RawMessageStreamEvent, event)
    names = [event["type"] for event in events]
    assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])
    started = [event["content_block"] for event in events if "content_block" in event]
    calls = [block["name"] for block in started if block["type"] == "tool_use"]
    assert calls == (["Read"] if choice == "any" else [])
    counted = post(f"{roomy.url}/v1/messages/count_tokens?beta=true", body).json["input_tokens"]
    usage = events[-2]["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted


def test_the_32000_tokens_that_claude_code_asks_for_need_no_such_context(roomy: HttpServer) -> None:
    body = {**CLAUDE_CODE_TURN, "stream": False, "stop_sequences": [*"0123456789 aeiou"]}
    answer: Any = post(f"{roomy.url}/v1/messages?beta=true", body, **CLAUDE_CODE_HEADERS)
    assert answer.status == 200, answer.body
