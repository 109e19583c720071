"""What llama-server's tests check of chats, messages, tools, embeddings and reranking.

Each test is named after its line; lines whose tests stand beside the module are not repeated.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.anthropic_requests import CLAUDE_CODE, WEATHER
from support.codex_requests import CODEX
from support.http_requests import post

from llama_cffi import Llama, LlamaPool
from llama_cffi.demo import model_path
from llama_cffi.server.http_server import HttpServer

ASK: list[Any] = [{"role": "user", "content": "What is 12 + 30?"}]
CHAT: dict[str, Any] = {"messages": ASK, "temperature": 0, "max_tokens": 8}
FUNCTION = {
    "name": "get_weather", "description": "Get the weather.",
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"], "additionalProperties": False,
    },
}  # fmt: skip
USE = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}


@pytest.fixture(scope="module")
def roomy() -> Iterator[HttpServer]:
    """A server with a longer context, one request at a time, and no pooling of embeddings."""
    with (
        Llama(
            model_path(), n_ctx=2048, n_threads=1, embeddings=True, pooling="none", flash_attn=True
        ) as llm,
        llm.serve() as server,
    ):
        yield server


@pytest.fixture(scope="module")
def thinker() -> Iterator[str]:
    """The URL of a server whose template shows the reasoning of earlier turns."""
    source = "{% for m in messages %}{{ m.reasoning_content or '' }}{{ m.content }}{% endfor %}"
    with (
        Llama(model_path(), n_ctx=64, n_threads=1, chat_format=source) as llm,
        llm.serve() as server,
    ):
        yield f"{server.url}/v1"


def claude(url: str, *messages: Any, **more: Any) -> Any:
    body = {"max_tokens": 8, "temperature": 0, "messages": [*messages] or ASK, **more}
    return post(f"{url}/messages", body)


def n_tokens(url: str, *messages: Any, **more: Any) -> int:
    reply = post(f"{url}/messages/count_tokens", {"messages": [*messages] or ASK, **more})
    assert reply.status == 200, reply.body
    assert [*reply.json] == ["input_tokens"]
    found: int = reply.json["input_tokens"]
    return found


@pytest.mark.behaviour(
    "chat: cached tokens are counted from the second call on, and the sum stays",
)
def test_chat_cached_tokens_are_0_at_first_then_more(url: str, pool: LlamaPool) -> None:
    pool.kv_cache_clear()
    body = {**CHAT, "messages": [{"role": "user", "content": "Nobody has asked this. " * 8}]}
    first, second = (post(f"{url}/chat/completions", body).json["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] > 0
    assert first["total_tokens"] == second["total_tokens"]


@pytest.mark.behaviour(
    "chat: logit_bias of a word's tokens forbids it",
)
def test_chat_logit_bias_from_tokenised_words_forbids_them(url: str) -> None:
    plain = post(f"{url}/chat/completions", CHAT).json["choices"][0]["message"]["content"]
    tokens = {
        token
        for word in (plain, f" {plain}", *plain)
        for token in post(f"{url}/tokenize", {"content": word}).json["tokens"]
    }
    bias = {"logit_bias": {str(token): -100 for token in tokens}}
    forbidden = post(f"{url}/chat/completions", {**CHAT, **bias}).json
    assert plain not in forbidden["choices"][0]["message"]["content"]


@pytest.mark.behaviour(
    "chat: a bad grammar is 400, and the server lives",
)
def test_chat_a_bad_grammar_leaves_the_server_alive(url: str) -> None:
    for stream in (False, True):
        body = {**CHAT, "grammar": "root ::= (", "stream": stream}
        assert post(f"{url}/chat/completions", body).status == 400
    assert post(f"{url}/chat/completions", CHAT).status == 200


def test_chat_accepts_the_fields_of_openais_service(url: str) -> None:
    more = {"service_tier": "flex", "safety_identifier": "u1", "prompt_cache_key": "k1"}
    for path, body in (("chat/completions", CHAT), ("responses", {"input": "x"})):
        assert post(f"{url}/{path}", {**body, **more, "max_output_tokens": 2}).status == 200
    for path, body in (("chat/completions", CHAT), ("responses", {"input": "x"})):
        assert post(f"{url}/{path}", {**body, "service_tier": 5}).status == 400


def test_anthropic_system_as_text_and_blocks_gives_the_same_count(url: str) -> None:
    plain = n_tokens(url)
    text = n_tokens(url, system="Be brief.")
    blocks = n_tokens(url, system=[{"type": "text", "text": "Be brief."}])
    assert plain < text == blocks


@pytest.mark.behaviour(
    "messages: a conversation of several turns is answered",
)
def test_anthropic_several_turns_are_answered(url: str) -> None:
    turns = [ASK[0], {"role": "assistant", "content": "42"}, {"role": "user", "content": "Sure?"}]
    reply = claude(url, *turns)
    assert reply.status == 200
    assert n_tokens(url, *turns) > n_tokens(url)
    assert reply.json["role"] == "assistant"


@pytest.mark.parametrize(
    "content",
    ["It is sunny.", [{"type": "text", "text": "It is"}, {"type": "text", "text": "sunny."}]],
)
@pytest.mark.parametrize("is_error", [False, True])
def test_anthropic_tool_result_as_text_blocks_and_error(
    url: str, content: Any, is_error: bool
) -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": content}
    if is_error:
        result["is_error"] = True
    turns = [{"role": "assistant", "content": [USE]}, {"role": "user", "content": [result]}]
    reply = claude(url, ASK[0], *turns, tools=[WEATHER])
    assert reply.status == 200, reply.body
    assert reply.json["type"] == "message"


@pytest.mark.behaviour(
    "messages: a picture for a text model is refused by name",
)
@pytest.mark.parametrize("in_result", [False, True])
def test_anthropic_an_image_for_a_text_model_is_refused_by_name(url: str, in_result: bool) -> None:
    block: Any = IMAGE
    turns: list[Any] = [ASK[0]]
    if in_result:
        block = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [IMAGE]}
        turns.append({"role": "assistant", "content": [USE]})
    reply = claude(url, *turns, {"role": "user", "content": [block]})
    assert reply.status == 400
    assert reply.json["type"] == "error"
    assert "picture" in reply.json["error"]["message"]


def test_anthropic_sampling_fields_are_used(url: str) -> None:
    story = {"role": "user", "content": "Tell me a story."}
    texts = [
        claude(url, story, temperature=1.9, **more).json["content"][0]["text"]
        for more in ({"top_k": 1}, {"top_k": 1}, {"top_p": 0.0001})
    ]
    assert texts[0] == texts[1] == texts[2] == claude(url, story).json["content"][0]["text"]


def test_anthropic_missing_messages_are_refused_an_empty_list_is_not(url: str) -> None:
    assert post(f"{url}/messages", {"max_tokens": 4}).status == 400
    assert post(f"{url}/messages", {"max_tokens": 4, "messages": []}).status == 200


def test_anthropic_is_not_openais_shape(url: str) -> None:
    message = claude(url).json
    chat = post(f"{url}/chat/completions", CHAT).json
    assert not {"choices", "object", "created", "timings"} & message.keys()
    assert not {"type", "content", "stop_reason"} & chat.keys()
    assert message["content"][0]["text"] == chat["choices"][0]["message"]["content"]


@pytest.mark.behaviour(
    "messages: thinking is streamed with a signature, then text, as blocks 0 and 1",
)
@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_thinking_comes_first_with_a_signature(url: str, stream: bool) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    reply = claude(url, max_tokens=90, thinking=thinking, stream=stream)
    if not stream:
        kinds = [block["type"] for block in reply.json["content"]]
        assert reply.json["content"][0]["signature"]
    else:
        kinds = [
            event["content_block"]["type"]
            for event in reply.events
            if event["type"] == "content_block_start"
        ]
        deltas = [e["delta"]["type"] for e in reply.events if e["type"] == "content_block_delta"]
        places = [deltas.index(f"{kind}_delta") for kind in ("thinking", "signature", "text")]
        assert places == sorted(places)
        indices = [event["index"] for event in reply.events if "content_block" in event]
        assert indices == [0, 1]
    assert kinds == ["thinking", "text"]


@pytest.mark.behaviour(
    "messages: thinking of earlier turns raises the count and reaches the template",
)
def test_anthropic_thinking_in_the_history_raises_the_count(thinker: str) -> None:
    def turns(*blocks: Any) -> list[Any]:
        call = {"role": "assistant", "content": [*blocks, USE]}
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}
        return [ASK[0], call, {"role": "user", "content": [result]}]

    thought = {"type": "thinking", "thinking": "I need to look it up first.", "signature": "x"}
    assert n_tokens(thinker, *turns(thought)) > n_tokens(thinker, *turns())


def test_claude_codes_request_is_answered(roomy: HttpServer) -> None:
    body = {**CLAUDE_CODE, "max_tokens": 6}
    events = post(f"{roomy.url}/v1/messages?beta=true", body, **{"anthropic-beta": "x"}).events
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")


def test_codexs_request_is_answered(roomy: HttpServer) -> None:
    body = {**CODEX, "reasoning": None, "max_output_tokens": 4}
    events = post(f"{roomy.url}/v1/responses", body).events
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] in ("response.completed", "response.incomplete")


@pytest.mark.behaviour(
    "tools: with none, and without tools, nothing is called",
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {}, {"tools": []}, {"tools": None},
        {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "none"},
    ],
)  # fmt: skip
def test_tool_call_none_without_tools_or_with_none(
    url: str, more: dict[str, Any], stream: bool
) -> None:
    weather = [{"role": "user", "content": "What is the weather in Paris?"}]
    body = {**CHAT, "messages": weather, **more, "stream": stream}
    reply = post(f"{url}/chat/completions", body)
    assert reply.status == 200
    assert b"tool_calls" not in reply.body


def function(name: str, about: str, **types: str) -> Any:
    """A tool that needs all its parameters."""
    properties = {key: {"type": kind} for key, kind in types.items()}
    schema = {"type": "object", "properties": properties, "required": [*types]}
    return {
        "type": "function",
        "function": {"name": name, "description": about, "parameters": schema},
    }


TOOLS = [
    function("get_weather", "Get the weather in a city", city="string"),
    function("get_time", "Get the current time in a city", city="string"),
    function("multiply", "Multiply two numbers", a="integer", b="integer"),
]
CALLS: dict[str, tuple[str, dict[str, object]]] = {
    "What is the weather in Paris?": ("get_weather", {"city": "Paris"}),
    "How is the weather in Oslo?": ("get_weather", {"city": "Oslo"}),
    "What is the weather in Berlin today?": ("get_weather", {"city": "Berlin"}),
    "What time is it in Rome?": ("get_time", {"city": "Rome"}),
    "Tell me the time in Tokyo.": ("get_time", {"city": "Tokyo"}),
    "What is the time in Lima?": ("get_time", {"city": "Lima"}),
    "What is 12 times 7?": ("multiply", {"a": 12, "b": 7}),
    "Multiply 31 by 4.": ("multiply", {"a": 31, "b": 4}),
    "What is 6 * 9?": ("multiply", {"a": 6, "b": 9}),
}


@pytest.mark.behaviour("tools: a real model calls the right tool")
@pytest.mark.parametrize("stream", [False, True])
def test_the_demo_model_calls_the_right_tool(client: openai.OpenAI, stream: bool) -> None:
    def calls(question: str) -> list[tuple[str, object]]:
        asked: Any = {
            "model": "demo", "messages": [{"role": "user", "content": question}], "tools": TOOLS,
            "tool_choice": "auto", "temperature": 0, "max_tokens": 80,
        }  # fmt: skip
        if stream:
            with client.chat.completions.stream(**asked) as events:
                message: Any = events.get_final_completion().choices[0].message
        else:
            message = client.chat.completions.create(**asked).choices[0].message
        found = [call.function for call in message.tool_calls or ()]
        return [(each.name, json.loads(each.arguments)) for each in found]

    assert calls("Hello") == []
    right = [question for question, call in CALLS.items() if calls(question) == [call]]
    assert len(right) >= len(CALLS) - 1  # a very small model


@pytest.mark.behaviour(
    "tools: reasoning is apart from the call",
)
@pytest.mark.parametrize("stream", [False, True])
def test_tool_call_keeps_thoughts_apart(url: str, stream: bool) -> None:
    tools = {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"}
    weather = [{"role": "user", "content": "What is the weather in Paris?"}]
    body = {
        "messages": weather, "temperature": 0, "max_tokens": 120, "reasoning_effort": "high",
        "thinking_budget": 16, "stream": stream, **tools,
    }  # fmt: skip
    reply = post(f"{url}/chat/completions", body)
    choices = (
        [choice for event in reply.events[:-1] for choice in event["choices"]]
        if stream
        else reply.json["choices"]
    )
    parts = [choice["delta" if stream else "message"] for choice in choices]
    assert "".join(part.get("reasoning_content") or "" for part in parts)
    assert not "".join(part.get("content") or "" for part in parts)
    calls = [call for part in parts for call in part.get("tool_calls") or ()]
    arguments = "".join(call["function"].get("arguments") or "" for call in calls)
    assert [*json.loads(arguments)] == ["city"]


@pytest.mark.behaviour(
    "embeddings: texts and token ids can be mixed, and a text may be empty",
)
def test_embedding_mixed_text_and_ids_give_one_vector_each(url: str) -> None:
    body = {"input": ["a cat", [5, 6, 7], ""]}
    reply = post(f"{url}/embeddings", body).json
    assert [item["index"] for item in reply["data"]] == [0, 1, 2]
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] > 3


@pytest.mark.behaviour(
    "embeddings: the same text several times has the same vector",
)
def test_embedding_same_text_many_times_gives_the_same_vector(url: str) -> None:
    reply = post(f"{url}/embeddings", {"input": ["the same"] * 4}).json
    first, *others = (item["embedding"] for item in reply["data"])
    for other in others:
        assert other == pytest.approx(first, abs=1e-2)


def test_embedding_base64_has_the_floats(client: openai.OpenAI) -> None:
    ask: Any = {"model": "demo", "input": "a cat"}
    floats = client.embeddings.create(**ask, encoding_format="float").data[0].embedding
    raw: Any = client.embeddings.create(**ask, encoding_format="base64").data[0].embedding
    data = base64.b64decode(raw)
    assert [*struct.unpack(f"<{len(data) // 4}f", data)] == pytest.approx(floats, abs=1e-6)


@pytest.mark.behaviour(
    "embeddings: flash attention changes nothing",
    "embeddings: without pooling each token has a raw vector, and OpenAI's route is 400",
)
def test_embedding_with_flash_attention_and_without_pooling(roomy: HttpServer, url: str) -> None:
    rows = post(f"{roomy.url}/embeddings", {"input": "a cat", "embd_normalize": -1}).json
    tokens = rows[0]["embedding"]
    mean = [sum(column) / len(tokens) for column in zip(*tokens, strict=True)]
    norm = sum(value * value for value in mean) ** 0.5
    pooled = post(f"{url}/embeddings", {"input": "a cat"}).json["data"][0]["embedding"]
    assert [value / norm for value in mean] == pytest.approx(pooled, abs=0.05)
    assert post(f"{roomy.url}/v1/embeddings", {"input": "a cat"}).status == 400
