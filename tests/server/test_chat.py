"""POST /v1/chat/completions, with OpenAI's client and without."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel
from support.http_requests import post
from support.server_state import engine_of
from support.strict_sdk import assert_strict

from llama_cffi import LlamaPool

ASK: list[Any] = [{"role": "user", "content": "What is 12 + 30?"}]
GREEDY: dict[str, Any] = {"model": "demo", "messages": ASK, "temperature": 0}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL: dict[str, Any] = {
    "model": "demo", "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [WEATHER], "tool_choice": "required", "temperature": 0,
}  # fmt: skip


def chunks_of(client: openai.OpenAI, **request: Any) -> list[ChatCompletionChunk]:
    chunks = [*client.chat.completions.create(stream=True, **request)]
    for chunk in chunks:
        assert_strict(chunk)
    return chunks


@pytest.mark.behaviour("chat: usage counts are exact")
@pytest.mark.behaviour("chat: id, fingerprint and name of the model are there")
@pytest.mark.behaviour("chat: OpenAI's client works, sync and async")
def test_the_answer_is_that_of_the_python_api(client: openai.OpenAI, pool: LlamaPool) -> None:
    answer = client.chat.completions.create(**GREEDY)
    assert_strict(answer)
    alone = pool.llm.create_chat_completion(ASK, temperature=0)
    assert answer.choices[0].message.content == alone["choices"][0]["message"]["content"]
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "demo"
    assert answer.system_fingerprint
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == alone["usage"]["prompt_tokens"]
    assert answer.usage.completion_tokens == alone["usage"]["completion_tokens"]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.behaviour("chat: a stream begins with the role, and no later chunk has it")
@pytest.mark.behaviour(
    "chat: all chunks have one id, and the last has an empty delta and the reason"
)
@pytest.mark.behaviour("chat: the joined text of a stream is that of the whole answer")
def test_a_stream_has_the_role_first_the_reason_last_and_one_id(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY)
    chunks = chunks_of(client, **GREEDY)
    first, *middle, last = (chunk.choices[0] for chunk in chunks)
    assert first.delta.role == "assistant"
    assert first.delta.content is None
    assert all(choice.delta.role is None for choice in [*middle, last])
    assert all(choice.finish_reason is None for choice in [first, *middle])
    assert last.finish_reason == "stop"
    assert last.delta.content is None
    text = "".join(choice.delta.content or "" for choice in middle)
    assert text == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.behaviour("chat: usage is in a stream only on request")
@pytest.mark.parametrize("asked", [True, False])
def test_usage_is_in_a_stream_only_on_request(client: openai.OpenAI, asked: bool) -> None:
    chunks = chunks_of(client, stream_options={"include_usage": asked}, **GREEDY)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    last = chunks[-1]
    assert (last.choices == []) is asked
    assert (last.usage is not None) is asked
    if asked:
        assert last.usage == client.chat.completions.create(**GREEDY).usage


@pytest.mark.behaviour(
    "robustness: streams are not compressed or buffered, and silent ones get comments"
)
def test_a_stream_ends_with_done_and_is_not_buffered(url: str) -> None:
    reply = post(f"{url}/chat/completions", {**GREEDY, "stream": True})
    assert reply.events[-1] == "[DONE]"
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache, no-store"
    assert reply.headers["x-accel-buffering"] == "no"
    assert "connection" not in reply.headers
    assert "content-encoding" not in reply.headers


@pytest.mark.behaviour("chat: OpenAI's client works, sync and async")
def test_the_async_client_gets_the_same(url: str, client: openai.OpenAI) -> None:
    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as other:
            whole = await other.chat.completions.create(**GREEDY)
            text = ""
            async for chunk in await other.chat.completions.create(stream=True, **GREEDY):
                text += chunk.choices[0].delta.content or ""
            return whole.choices[0].message.content or "", text

    expected = client.chat.completions.create(**GREEDY).choices[0].message.content
    assert asyncio.run(both()) == (expected, expected)


def test_both_paths_exist(server: Any) -> None:
    for path in ("/v1/chat/completions", "/chat/completions"):
        assert post(server.url + path, GREEDY).status == 200


@pytest.mark.behaviour("chat: an answer cut at max_tokens ends with length")
def test_a_cut_answer_ends_with_length(client: openai.OpenAI) -> None:
    forced = {**GREEDY, "messages": [{"role": "user", "content": "Tell me a story."}]}
    answer = client.chat.completions.create(**forced, max_completion_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


@pytest.mark.behaviour("chat: n gives several choices")
def test_several_answers_share_the_prompt(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**{**GREEDY, "n": 2})
    assert_strict(answer)
    assert [choice.index for choice in answer.choices] == [0, 1]
    indices = {c.index for chunk in chunks_of(client, **GREEDY, n=2) for c in chunk.choices}
    assert indices == {0, 1}


@pytest.mark.behaviour(
    "chat: logprobs join to the text, whole and streamed, with bytes and alternatives"
)
def test_logprobs_join_to_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    assert_strict(answer)
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content
    scored = choice.logprobs.content
    text = b"".join(bytes(token.bytes or []) for token in scored).decode()
    assert text.removesuffix("<|im_end|>") == choice.message.content
    assert all(token.logprob <= 0 for token in scored)
    assert all(len(token.top_logprobs) == 3 for token in scored)
    streamed = [
        token.token
        for chunk in chunks_of(client, **GREEDY, logprobs=True)
        for c in chunk.choices
        if c.logprobs is not None
        for token in c.logprobs.content or []
    ]
    assert streamed == [token.token for token in scored]


@pytest.mark.behaviour(
    "tools: a required call has JSON as arguments and a known name, whole and streamed"
)
def test_a_required_tool_is_called_with_valid_json(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CALL)
    assert_strict(answer)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    function: Any = choice.message.tool_calls[0]
    assert function.function.name == "get_weather"
    assert set(json.loads(function.function.arguments)) == {"city"}


@pytest.mark.behaviour(
    "tools: a required call has JSON as arguments and a known name, whole and streamed"
)
def test_a_streamed_call_has_id_and_name_first(client: openai.OpenAI) -> None:
    chunks = chunks_of(client, **CALL)
    parts = [
        part
        for chunk in chunks
        for choice in chunk.choices
        for part in choice.delta.tool_calls or []
        if part.index == 0
    ]
    first = parts[0]
    assert first.id
    assert first.type == "function"
    assert first.function is not None
    assert first.function.name == "get_weather"
    assert all(part.id is None for part in parts[1:])
    pieces = [part.function.arguments or "" for part in parts if part.function is not None]
    assert set(json.loads("".join(pieces))) == {"city"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tools_that_are_no_functions_are_skipped(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "web_search"}, {"type": "local_shell"}, WEATHER]

    def n_prompt(**more: Any) -> int:
        answer = client.chat.completions.create(**GREEDY, **more)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    assert n_prompt(tools=tools) == n_prompt(tools=[WEATHER])
    assert n_prompt(tools=tools[:2], tool_choice="auto") == n_prompt()


class Sum(BaseModel):
    total: int


def test_structured_output_parses(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(**GREEDY, response_format=Sum, max_tokens=60)
    assert isinstance(answer.choices[0].message.parsed, Sum)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}},
          "required": ["a"], "additionalProperties": False}  # fmt: skip


@pytest.mark.behaviour(
    "chat: response_format: json_object with and without a schema, and json_schema"
)
@pytest.mark.behaviour("chat: json_schema and grammar work at the top level")
@pytest.mark.parametrize(
    "more",
    [
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        {"json_schema": SCHEMA},
        {"grammar": r'root ::= "{\"a\":" [0-9] "}"'},
    ],
)
def test_every_way_to_ask_for_json_gives_it(url: str, more: dict[str, Any]) -> None:
    reply = post(f"{url}/chat/completions", {**GREEDY, **more, "max_tokens": 40})
    assert reply.status == 200, reply.body
    assert set(json.loads(reply.json["choices"][0]["message"]["content"])) == {"a"}


@pytest.mark.behaviour("chat: a bad response_format is 400")
@pytest.mark.parametrize(
    "form",
    [
        {"type": "xml"}, {}, {"type": 1}, {"type": "json_object", "schema": 5},
        {"type": "json_object", "schema": "x"}, {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": []}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}},
    ],
)  # fmt: skip
def test_a_bad_response_format_is_refused(url: str, form: Any) -> None:
    reply = post(f"{url}/chat/completions", {**GREEDY, "response_format": form})
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.behaviour("chat: bad messages are 4xx with an error object")
@pytest.mark.parametrize(
    "messages",
    [
        None, "text", [], [123], [{}], [[]], [{"role": 5, "content": "x"}],
        [{"role": "user", "content": 5}], [{"role": "user"}], [{"role": "boss", "content": "x"}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": [5]}],
        [*ASK, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
    ],
)  # fmt: skip
def test_bad_messages_are_refused_by_name(url: str, messages: Any) -> None:
    reply = post(f"{url}/chat/completions", {"messages": messages})
    assert reply.status == 400, reply.body
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["param"] == "messages"


@pytest.mark.behaviour("chat: bad messages are 4xx with an error object")
def test_missing_messages_are_refused(url: str) -> None:
    assert post(f"{url}/chat/completions", {"model": "demo"}).error["param"] == "messages"


@pytest.mark.behaviour("chat: content in parts means the same as text")
def test_text_and_parts_give_the_same_prompt(url: str) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
    both = [post(f"{url}/apply-template", {"messages": m}).json["prompt"] for m in (ASK, parts)]
    assert both[0] == both[1]


def test_a_system_message_in_the_middle_passes(url: str) -> None:
    messages = [*ASK, {"role": "system", "content": "Be brief."}, *ASK]
    reply = post(f"{url}/chat/completions", {**GREEDY, "messages": messages, "max_tokens": 2})
    assert reply.status == 200


@pytest.mark.behaviour("chat: a prompt over the context is 400 with both numbers, before any event")
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_is_400_with_both_numbers(url: str, stream: bool) -> None:
    long = [{"role": "user", "content": "word " * 2000}]
    reply = post(f"{url}/chat/completions", {"messages": long, "stream": stream})
    assert reply.status == 400
    assert reply.error["type"] == "exceed_context_size_error"
    assert reply.error["code"] == "context_length_exceeded"
    assert reply.error["n_ctx"] == 512
    assert reply.error["n_prompt_tokens"] > 512


def test_unknown_fields_are_ignored(url: str) -> None:
    more = {
        "nonsense": 1, "verbosity": "low", "prompt_cache_key": "k", "safety_identifier": "s",
        "service_tier": "auto", "store": False, "metadata": {"a": "b"}, "user": "u",
        "prediction": {"type": "content", "content": "x"},
        "modalities": ["text"], "parallel_tool_calls": True, "timeout_s": "never",
        "logits_processor": "x", "structured": 1,
    }  # fmt: skip
    reply = post(f"{url}/chat/completions", {**GREEDY, **more})
    assert reply.status == 200, reply.body
    assert reply.json["choices"] == post(f"{url}/chat/completions", GREEDY).json["choices"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1), ("top_p", 2), ("n", 0), ("n", 1000), ("max_tokens", 0),
        ("max_tokens", -7), ("top_logprobs", 3), ("reasoning_effort", "huge"),
        ("stream_options", {"include_usage": True}), ("logit_bias", {"999999": 1}),
        ("logit_bias", {"x": 1}), ("logit_bias", [[1]]), ("logit_bias", [[True, 1]]),
        ("stop", [""]), ("samplers", "magic"), ("grammar", "root ::= ("), ("seed", 2**70),
        ("temperature", 1e300), ("audio", {"voice": "x"}), ("tool_choice", "sometimes"),
        ("tools", [5]), ("tools", [{"type": 5}]), ("tools", [{"type": "function"}]),
        ("modalities", ["audio"]), ("dry_sequence_breakers", [5]), ("model", 7),
    ],
)  # fmt: skip
def test_values_out_of_range_are_400_with_their_name(url: str, field: str, value: Any) -> None:
    reply = post(f"{url}/chat/completions", {**GREEDY, field: value})
    assert reply.status == 400, reply.body
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["param"] == field, reply.error["message"]


def test_the_same_seed_gives_the_same_text(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 12,
            "temperature": 1.5}  # fmt: skip
    texts = [
        post(f"{url}/chat/completions", {**body, "seed": seed}).json["choices"][0]["message"]
        for seed in (7, 7, 2**40, 2**40)
    ]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]


@pytest.mark.behaviour("chat: the token count is that of the usage")
def test_counted_tokens_are_those_of_the_usage(url: str) -> None:
    reply = post(f"{url}/chat/completions/input_tokens", {"messages": ASK})
    assert reply.json["object"] == "response.input_tokens"
    usage = post(f"{url}/chat/completions", GREEDY).json["usage"]
    assert reply.json["input_tokens"] == usage["prompt_tokens"]


@pytest.mark.behaviour("chat: cached tokens are counted from the second call on, and the sum stays")
def test_a_repeated_prompt_is_cached(url: str) -> None:
    messages = [{"role": "user", "content": "A long question that nobody asked before, " * 4}]
    body = {**GREEDY, "messages": messages, "max_tokens": 2}
    first, second = (post(f"{url}/chat/completions", body).json["usage"] for _ in range(2))
    assert first["total_tokens"] == second["total_tokens"]
    assert second["prompt_tokens_details"]["cached_tokens"] > 20


def prompt_of(url: str, **body: Any) -> Any:
    return post(f"{url}/apply-template", body)


@pytest.mark.behaviour("chat: the last message of the assistant is continued, as text and as parts")
@pytest.mark.behaviour(
    "chat: continue_final_message does the same, and both switches together are 400"
)
@pytest.mark.behaviour("template: add_generation_prompt on and off")
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("The sum", "The sum"),
        ([{"type": "text", "text": "The"}, {"type": "text", "text": "sum"}], "The\n\nsum"),
    ],
)
def test_a_last_message_of_the_assistant_is_continued(url: str, content: Any, text: str) -> None:
    messages = [*ASK, {"role": "assistant", "content": content}]
    begun = prompt_of(url, messages=messages).json["prompt"]
    assert begun.endswith(f"assistant\n{text}") or begun.endswith(f"</think>\n\n{text}")
    asked = prompt_of(url, messages=messages, continue_final_message=True).json["prompt"]
    assert asked == begun
    for more in ({"continue_final_message": False}, {"add_generation_prompt": True}):
        new = prompt_of(url, messages=messages, **more).json["prompt"]
        assert not new.endswith(text)
    reply = post(f"{url}/chat/completions", {**GREEDY, "messages": messages, "max_tokens": 4})
    assert reply.status == 200, reply.body
    raw = post(f"{url}/completions", {"prompt": begun, "temperature": 0, "max_tokens": 4}).json
    assert reply.json["usage"]["prompt_tokens"] == raw["usage"]["prompt_tokens"]
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert post(f"{url}/chat/completions", {"messages": messages, **both}).status == 400
    user = post(f"{url}/chat/completions", {**GREEDY, "continue_final_message": True})
    assert user.status == 400
    assert user.error["param"] == "continue_final_message"


def test_reasoning_is_a_field_of_its_own(url: str) -> None:
    body = {**GREEDY, "reasoning_effort": "high", "max_tokens": 80}
    answer = post(f"{url}/chat/completions", body).json
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"]
    n = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < n < answer["usage"]["completion_tokens"]
    text = message["reasoning_content"]
    tokens = post(f"{url}/tokenize", {"content": text}).json["tokens"]
    assert abs(n - len(tokens)) <= 6  # the markers and line breaks around it
    assert "think" not in message["content"]
    events = post(f"{url}/chat/completions", {**body, "stream": True}).events[:-1]
    deltas = [event["choices"][0]["delta"] for event in events]
    for name in ("reasoning_content", "content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == message[name]
    history = [*ASK, {"role": "assistant", **message}, *ASK]
    assert post(f"{url}/chat/completions", {**body, "messages": history}).status == 200


@pytest.mark.behaviour("chat: the reasoning of a running answer can be ended by its id")
def test_the_reasoning_of_a_running_answer_can_be_ended(
    url: str, client: openai.OpenAI, pool: LlamaPool
) -> None:
    control = f"{url}/chat/completions/control"
    (end,) = pool.llm.tokenize("</think>", False, True)
    asked = {**GREEDY, "reasoning_effort": "high", "max_tokens": 60, "stream": True}
    body = {"logit_bias": {str(end): -100}, "ignore_eos": True, "reasoning_control": True}
    told: list[Any] = []
    texts: dict[str, str] = {"reasoning_content": "", "content": ""}
    engine_of(pool).pause()  # after the first chunk, before the first token
    try:
        for chunk in client.chat.completions.create(**asked, extra_body=body):
            if not told:
                told.append(post(control, {"id": chunk.id, "action": "reasoning_end"}))
                engine_of(pool).resume()
            delta = chunk.choices[0].delta.model_dump()
            for name in texts:
                texts[name] += delta.get(name) or ""
    finally:
        engine_of(pool).resume()
    assert told[0].status == 200
    assert told[0].json["success"] is True
    alone = post(f"{url}/chat/completions", {**asked, **body, "stream": False}).json
    message = alone["choices"][0]["message"]
    assert not message["content"]  # it reasons to the end
    assert texts["content"]
    assert len(texts["reasoning_content"]) < len(message["reasoning_content"])
    late = post(control, {"id": chunk.id, "action": "reasoning_end"})
    assert (late.status, late.error["param"]) == (404, "id")


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        ({"id": "chatcmpl-0", "action": "reasoning_end"}, 404, "id"),
        ({"id": "chatcmpl-0", "action": "stop"}, 400, "action"),
        ({"id": "chatcmpl-0"}, 400, "action"), ({"action": "reasoning_end"}, 400, "id"),
        ({"id": 3, "action": "reasoning_end"}, 400, "id"),
    ],
)  # fmt: skip
def test_a_wrong_control_is_refused(url: str, given: Any, status: int, param: str) -> None:
    reply = post(f"{url}/chat/completions/control", given)
    assert (reply.status, reply.error["param"]) == (status, param)
    body = {**GREEDY, "reasoning_control": "yes"}
    assert post(f"{url}/chat/completions", body).error["param"] == "reasoning_control"
