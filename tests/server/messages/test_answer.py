"""Answers of the Messages API: parsed strictly by the types of the package `anthropic`.

Streams are also read by its client, which must build the message that is sent whole.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from support.anthropic_requests import CLAUDE_CODE, HELLO, SUM, WEATHER
from support.strict_sdk import strictly

from llama_cffi import LlamaPool
from llama_cffi.demo import model_path
from llama_cffi.server.messages import (
    ChatRequest,
    Event,
    chat_request,
    error_body,
    events,
    message_object,
)

THINKING = {**SUM, "thinking": {"type": "enabled", "budget_tokens": 1024}}
ASK_WEATHER: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [WEATHER],
}
ANY: dict[str, Any] = {"model": "demo", "max_tokens": 9, "messages": HELLO["messages"]}


@pytest.fixture(scope="module")
def pool() -> Iterator[LlamaPool]:
    with LlamaPool(model_path(), n_ctx=1024, n_threads=1) as pool:
        yield pool


async def replay(chunks: Sequence[Any]) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk


def answer(pool: LlamaPool, body: dict[str, Any]) -> tuple[ChatRequest, list[Any]]:
    """Return the request, and the chunks of its answer."""
    request = chat_request({"temperature": 0, **body}, pool.llm.chat.family)

    async def run() -> list[Any]:
        stream = await pool.create_chat_completion(request.messages, stream=True, **request.options)
        return [chunk async for chunk in stream]

    return request, asyncio.run(run())


def folded(chunks: Sequence[Any], options: Any, n_prompt: int = 0) -> list[Event]:
    async def run() -> list[Event]:
        return [event async for event in events(replay(chunks), options, n_prompt)]

    return asyncio.run(run())


def whole(chunks: Sequence[Any], options: Any) -> Any:
    return asyncio.run(message_object(replay(chunks), options))


RESPONSE: dict[str, Any] = {}


def respond(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(**RESPONSE)


TRANSPORT = httpx2.Client(transport=httpx2.MockTransport(respond))
CLIENT = anthropic.Anthropic(api_key="key", max_retries=0, http_client=TRANSPORT)


def read(found: Sequence[Event]) -> Message:
    """Return the message that the client builds from a stream."""
    text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in found)
    headers = {"content-type": "text/event-stream"}
    RESPONSE.clear()
    RESPONSE.update(status_code=200, text=text, headers=headers)
    with CLIENT.messages.stream(**ANY) as stream:
        return stream.get_final_message()


def read_whole(message: object, status: int = 200) -> Message:
    """Return the message that the client makes of a body."""
    RESPONSE.clear()
    RESPONSE.update(status_code=status, json=message)
    made: Message = CLIENT.messages.create(**ANY)
    return made


def check(found: Sequence[Event], message: object) -> Message:
    """Check types and order of events, and that the client builds *message* from them."""
    for name, event in found:
        assert strictly(RawMessageStreamEvent, event).type == name
    blocks: list[list[Any]] = []
    names = [name for name, _ in found]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    for name, event in found[1:-2]:
        data: Any = event
        if name == "content_block_start":
            blocks.append([])
        blocks[-1].append(data["content_block"] if "content_block" in data else data.get("delta"))
        assert data["index"] == len(blocks) - 1
    for begin, *deltas, end in blocks:
        assert end is None  # content_block_stop
        kinds = [delta["type"] for delta in deltas]
        if begin["type"] == "thinking":
            assert begin == {"type": "thinking", "thinking": "", "signature": ""}
            assert kinds.pop() == "signature_delta"
            assert {*kinds} == {"thinking_delta"}
        elif begin["type"] == "text":
            assert begin == {"type": "text", "text": ""}
            assert {*kinds} == {"text_delta"}
        else:
            assert begin["input"] == {}
            assert {*kinds} <= {"input_json_delta"}
    built = read(found)
    given: Message = strictly(Message, message)
    assert built.to_dict() == {**given.to_dict(), "stop_details": None}
    assert read_whole(message) == given
    return given


def ask(pool: LlamaPool, body: dict[str, Any]) -> Message:
    """Answer *body*, check both forms of the answer, and return it."""
    request, chunks = answer(pool, body)
    return check(folded(chunks, request.options), whole(chunks, request.options))


@pytest.mark.behaviour("messages: an answer has Anthropic's shape and no other fields")
def test_an_answer_has_the_required_fields_and_no_others(pool: LlamaPool) -> None:
    request, chunks = answer(pool, {**HELLO, "model": "claude-x"})
    message = whole(chunks, request.options)
    found = check(folded(chunks, request.options), message)
    assert list(message) == [
        "id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage",
    ]  # fmt: skip
    assert message["id"].startswith("msg_")
    assert (found.model, found.role, found.stop_reason) == ("claude-x", "assistant", "end_turn")
    (block,) = found.content
    assert block.type == "text"
    assert block.text == "Hello! How can I help you?"
    assert found.usage.output_tokens == 8
    assert "choices" not in message
    assert "object" not in message


@pytest.mark.behaviour("messages: a conversation of several turns is answered")
@pytest.mark.behaviour("robustness: requests like those of Codex CLI and Claude Code are answered")
def test_a_request_of_claude_code_is_answered(pool: LlamaPool) -> None:
    found = ask(pool, {**CLAUDE_CODE, "max_tokens": 20})
    assert found.content
    assert found.usage.output_tokens == 20 or found.stop_reason != "max_tokens"


@pytest.mark.behaviour("messages: missing messages are 4xx, and an empty list is answered")
def test_an_empty_list_of_messages_is_answered(pool: LlamaPool) -> None:
    assert ask(pool, {"messages": [], "max_tokens": 2}).usage.output_tokens == 2


def test_max_tokens_ends_the_answer(pool: LlamaPool) -> None:
    found = ask(pool, {**HELLO, "max_tokens": 3})
    assert (found.stop_reason, found.usage.output_tokens) == ("max_tokens", 3)


def test_a_full_context_ends_the_answer_with_a_reason_of_its_own(tiny_model: Path) -> None:
    with LlamaPool(tiny_model, n_ctx=64, n_threads=1) as pool:
        request, chunks = answer(pool, {**HELLO, "max_tokens": 4096})
        found = whole(chunks, request.options)
    assert found["usage"]["input_tokens"] + found["usage"]["output_tokens"] <= 65
    assert found["stop_reason"] == "model_context_window_exceeded"


@pytest.mark.parametrize("stop", ["How", "help you"])
def test_a_stop_sequence_is_named(pool: LlamaPool, stop: str) -> None:
    found = ask(pool, {**HELLO, "stop_sequences": ["nowhere", stop]})
    (block,) = found.content
    assert block.type == "text"
    assert block.text == "Hello! How can I help you?".partition(stop)[0]
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", stop)


def test_a_stop_sequence_that_does_not_occur_is_not_named(pool: LlamaPool) -> None:
    found = ask(pool, {**HELLO, "stop_sequences": ["nowhere"]})
    assert (found.stop_reason, found.stop_sequence) == ("end_turn", None)


@pytest.mark.behaviour(
    "messages: thinking is streamed with a signature, then text, as blocks 0 and 1"
)
def test_thinking_comes_first_with_a_signature(pool: LlamaPool) -> None:
    found = ask(pool, THINKING)
    thinking, text = found.content
    assert thinking.type == "thinking"
    assert thinking.thinking.startswith("17 + 25")
    assert thinking.signature
    assert (text.type == "text" and text.text) == "42"


def test_a_thinking_budget_ends_the_thinking(pool: LlamaPool) -> None:
    free, bound = (
        ask(pool, {**SUM, "thinking": {"type": "enabled", "budget_tokens": n}}).content[0]
        for n in (1024, 4)
    )
    assert free.type == bound.type == "thinking"
    assert len(bound.thinking) < len(free.thinking)


@pytest.mark.behaviour(
    "messages: a call is a tool_use block with an object as input, and the stop_reason says so"
)
@pytest.mark.parametrize("choice", [None, {"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_call_has_an_object_as_input(pool: LlamaPool, choice: Any) -> None:
    found = ask(pool, {**ASK_WEATHER, "tool_choice": choice})
    (call,) = found.content
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    assert call.id
    assert found.stop_reason == "tool_use"


@pytest.mark.behaviour("tools: with none, and without tools, nothing is called")
def test_without_a_choice_of_tools_there_is_no_call(pool: LlamaPool) -> None:
    found = ask(pool, {**ASK_WEATHER, "max_tokens": 20, "tool_choice": {"type": "none"}})
    assert "tool_use" not in {block.type for block in found.content}


def test_the_format_json_schema_is_enforced(pool: LlamaPool) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "schema": schema}}
    (block,) = ask(pool, {**SUM, "max_tokens": 60, "output_config": form}).content
    assert block.type == "text"
    assert [*json.loads(block.text)] == ["sum"]


def test_cached_tokens_are_counted_apart(pool: LlamaPool) -> None:
    system = "Answer kindly. " * 40
    first, second = (ask(pool, {**HELLO, "system": system}).usage for _ in range(2))
    assert first.cache_creation_input_tokens == second.cache_creation_input_tokens == 0
    assert second.cache_read_input_tokens
    assert second.cache_read_input_tokens > 0
    assert (first.cache_read_input_tokens or 0) + first.input_tokens == (
        second.cache_read_input_tokens + second.input_tokens
    )


def test_counted_tokens_are_those_of_the_answer(pool: LlamaPool) -> None:
    body = {"system": "Be brief.", "tools": [WEATHER], "messages": HELLO["messages"]}
    request = chat_request(body, pool.llm.chat.family)  # without max_tokens
    prepared = pool.llm.chat.prepare(request.messages, request.options, stream=True)
    n_tokens = len(prepared.request.tokens)
    assert strictly(MessageTokensCount, {"input_tokens": n_tokens}).input_tokens == n_tokens
    usage = ask(pool, {**body, "max_tokens": 2}).usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == n_tokens
    _, chunks = answer(pool, {**body, "max_tokens": 2})
    start: Any = folded(chunks, request.options, n_tokens)[0][1]
    assert start["message"]["usage"]["input_tokens"] == n_tokens


def test_the_client_gets_an_error_in_the_middle_of_a_stream(pool: LlamaPool) -> None:
    request, chunks = answer(pool, HELLO)

    async def failing() -> AsyncIterator[Any]:
        for chunk in chunks[:4]:
            yield chunk
        raise RuntimeError("broken")

    async def run() -> list[Event]:
        found = []
        try:
            async for event in events(failing(), request.options):
                found.append(event)
        except RuntimeError as error:
            found.append(("error", error_body(500, str(error), "req_1")))
        return found

    found = asyncio.run(run())
    assert [name for name, _ in found[:3]] == [
        "message_start", "content_block_start", "content_block_delta",
    ]  # fmt: skip
    assert "message_stop" not in dict(found)
    with pytest.raises(anthropic.APIStatusError, match="broken"):
        read(found)


@pytest.mark.behaviour("messages: errors have Anthropic's shape")
@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (401, "authentication_error", anthropic.AuthenticationError),
        (403, "permission_error", anthropic.PermissionDeniedError),
        (404, "not_found_error", anthropic.NotFoundError),
        (413, "request_too_large", anthropic.RequestTooLargeError),
        (422, "invalid_request_error", anthropic.UnprocessableEntityError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (500, "api_error", anthropic.InternalServerError),
        (501, "api_error", anthropic.InternalServerError),
        (503, "overloaded_error", anthropic.ServiceUnavailableError),
        (504, "timeout_error", anthropic.DeadlineExceededError),
        (529, "overloaded_error", anthropic.OverloadedError),
    ],
)
def test_errors_have_the_shape_and_the_types_of_anthropic(
    status: int, kind: str, error: type[anthropic.APIStatusError]
) -> None:
    body = error_body(status, "what was wrong", "req_1")
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": "what was wrong"},
        "request_id": "req_1",
    }
    if status != 413:  # documented, but not one of the types
        assert strictly(ErrorResponse, body).error.message == "what was wrong"
    with pytest.raises(error, match="what was wrong"):
        read_whole(body, status)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=3)


@st.composite
def chunk_lists(draw: st.DrawFn) -> tuple[list[Any], dict[str, Any], str, str, list[Any]]:
    """Chunks, the options, and the reasoning, text and calls that they make up."""
    parts = draw(st.lists(st.sampled_from(["text", "call"]), max_size=4))
    reasoning = draw(st.text(max_size=12))
    deltas: list[Any] = [{"role": "assistant", "content": draw(st.sampled_from(["", None]))}]
    deltas += [{"reasoning_content": piece} for piece in draw(pieces(reasoning))]
    texts, calls = "", list[Any]()
    for part in parts:
        if part == "text":
            text = draw(st.text(max_size=12))
            texts += text
            deltas += [{"content": piece} for piece in draw(pieces(text))]
            continue
        arguments = draw(ARGUMENTS)
        index, call_id = len(calls), f"call{len(calls)}"
        first, *rest = draw(pieces(json.dumps(arguments))) or [""]
        head = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": first}}
        deltas.append({"tool_calls": [{"index": index, **head}]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in rest
        ]
        calls.append(arguments)
    reason = draw(st.sampled_from(["tool_calls" if calls else "stop", "length"]))
    stops = draw(st.lists(st.text(min_size=1, max_size=2), max_size=2))
    stop = draw(st.sampled_from([None, "<|im_end|>", *stops])) if reason != "length" else None
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": reason})
    choices[-1]["stop_reason"] = stop
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 7,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": draw(st.integers(0, 9))},
    }
    chunks: list[Any] = [{**base, "choices": [choice], "usage": None} for choice in choices]
    chunks.append({**base, "choices": [], "usage": usage})
    options = {"stop": stops, "max_tokens": draw(st.sampled_from([7, 8]))}
    return chunks, options, reasoning, texts, calls


def pieces(text: str) -> st.SearchStrategy[list[str]]:
    """Cut a text anywhere."""
    cuts = st.lists(st.integers(0, len(text)), max_size=5).map(sorted)
    return cuts.map(lambda at: [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)])


@pytest.mark.behaviour(
    "messages: blocks start and stop in pairs, with indices from 0 without holes"
)
@pytest.mark.behaviour("messages: the input of a streamed call joins to JSON")
@settings(max_examples=120)
@given(chunk_lists())
def test_any_cut_gives_the_message_that_the_client_builds(
    case: tuple[list[Any], dict[str, Any], str, str, list[Any]],
) -> None:
    chunks, options, reasoning, texts, calls = case
    found = check(folded(chunks, options), whole(chunks, options))
    blocks = found.content
    assert "".join(b.thinking for b in blocks if b.type == "thinking") == reasoning
    assert "".join(b.text for b in blocks if b.type == "text") == texts
    assert [b.input for b in blocks if b.type == "tool_use"] == calls
    choice, usage = chunks[-2]["choices"][0], chunks[-1]["usage"]
    if choice["stop_reason"] in options["stop"]:
        assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", choice["stop_reason"])
    else:
        by_limit = {7: "max_tokens", 8: "model_context_window_exceeded"}[options["max_tokens"]]
        expected = {"stop": "end_turn", "tool_calls": "tool_use", "length": by_limit}
        assert (found.stop_reason, found.stop_sequence) == (expected[choice["finish_reason"]], None)
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert (found.usage.input_tokens, found.usage.cache_read_input_tokens) == (9 - cached, cached)


@pytest.mark.parametrize(
    "value",
    [
        {"type": "message_stop", "more": 1},
        {"type": "content_block_stop"},
        {"type": "content_block_delta", "index": "0", "delta": {"type": "text_delta", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "t": ""}},
    ],
)
def test_the_strict_check_refuses_unknown_missing_and_wrong_fields(value: Any) -> None:
    with pytest.raises(AssertionError, match=r"no field|needs the field|is not int"):
        strictly(RawMessageStreamEvent, value)
