"""The Responses API as chat completions: what clients send, and each event and object they get."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx2
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from openai.types.responses import Response, ResponseFailedEvent, ResponseStreamEvent
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from support.codex_requests import CODEX
from support.strict_sdk import problems, strictly

from llama_cffi import LlamaPool
from llama_cffi.demo import model_path
from llama_cffi.errors import CancelledError, ValidationError
from llama_cffi.server.responses import (
    ResponseFold,
    ResponseStore,
    chat_request,
    events,
    response_object,
)

Json = dict[str, Any]
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
SUM_FORMAT = {
    "type": "json_schema",
    "name": "sum",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["answer"],
        "additionalProperties": False,
    },
}
ASKED: dict[str, Json] = {
    "text": {"input": "What is 17 + 25?"},
    "logprobs": {
        "input": "What is 17 + 25?",
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    },
    "reasoning": {"input": "What is 17 + 25?", "reasoning": {"effort": "medium"}},
    "call": {"input": "What is the weather in Paris?", "tools": [WEATHER]},
    "calls": {"input": "What is the weather in Paris and in Rome?", "tools": [WEATHER]},
    "required": {
        "input": "What is the weather in Paris?",
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "name": "get_weather"},
    },
    "schema": {"input": "What is 17 + 25?", "text": {"format": SUM_FORMAT}},
    "cut": {"input": "What is 17 + 25?", "max_output_tokens": 1},
    "cut call": {
        "input": "What is the weather in Paris?",
        "tools": [WEATHER],
        "max_output_tokens": 14,
    },
}


def chunk(delta: Json | None = None, reason: str | None = None, logprobs: Any = None) -> Json:
    """Return a chunk of a chat completion."""
    choice = {"index": 0, "delta": delta or {}, "logprobs": logprobs, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "choices": [choice]}


def usage_chunk(n_prompt: int = 30, n_cached: int = 10, n: int = 20, n_reasoning: int = 5) -> Json:
    usage = {
        "prompt_tokens": n_prompt,
        "completion_tokens": n,
        "total_tokens": n_prompt + n,
        "prompt_tokens_details": {"cached_tokens": n_cached},
        "completion_tokens_details": {"reasoning_tokens": n_reasoning},
    }
    return {**chunk(), "choices": [], "usage": usage}


def call(index: int, name: str = "", arguments: str = "") -> Json:
    first = {"id": f"call_{index}", "type": "function"} if name else {}
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return {"tool_calls": [{"index": index, **first, "function": function}]}


THINKS = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Two "}),
    chunk({"reasoning_content": "cities."}),
    chunk({"content": "I "}),
    chunk({"content": "look."}),
    chunk(call(0, "get_weather", "{")),
    chunk(call(0, arguments='"city": "Paris"}')),
    chunk(call(1, "get_weather", '{"city": "Rome"}')),
    chunk({}, "tool_calls"),
    usage_chunk(),
]


async def as_stream(chunks: Sequence[Any], error: Exception | None = None) -> AsyncIterator[Any]:
    for each in chunks:
        yield each
    if error is not None:
        raise error


def streamed(
    body: Json,
    chunks: Sequence[Any],
    store: ResponseStore | None = None,
    error: Exception | None = None,
) -> list[Json]:
    """Return the events of a response, each checked by the SDK's type."""

    async def collect() -> list[Json]:
        request = chat_request(body, store, "demo")
        return [event async for event in events(request, as_stream(chunks, error), store)]

    found = json.loads(json.dumps(asyncio.run(collect())))
    for event in found:
        strictly(ResponseStreamEvent, event)  # type: ignore[arg-type]
    assert [event["sequence_number"] for event in found] == [*range(len(found))]
    return found  # type: ignore[no-any-return]


def whole(body: Json, chunks: Sequence[Any], store: ResponseStore | None = None) -> Json:
    """Return the response, checked by the SDK's type."""
    request = chat_request(body, store, "demo")
    found = asyncio.run(response_object(request, as_stream(chunks), store))
    strictly(Response, found)
    return found


def comparable(response: Json) -> Json:
    """Return a response without what is new each time."""
    found = json.loads(json.dumps(response))
    for each in (found, *found["output"]):
        each.pop("id")
    return {**found, "created_at": 0, "completed_at": bool(found["completed_at"])}


def order(found: Sequence[Json]) -> list[str]:
    """Return the types of events, adjacent equal ones once, without `response.`."""
    names = [event["type"].removeprefix("response.") for event in found]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


TEXT_ORDER = [
    "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
    "content_part.done", "output_item.done",
]  # fmt: skip
THINK_ORDER = [name.replace("output_text", "reasoning_text") for name in TEXT_ORDER]
CALL_ORDER = [
    "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
    "output_item.done",
]  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[LlamaPool]:
    with LlamaPool(model_path(), n_parallel=2, n_ctx=2048, n_threads=1) as pool:
        yield pool


Ask = Callable[..., list[Json]]


@pytest.fixture(scope="module")
def ask(pool: LlamaPool) -> Ask:
    """Return the chunks of the model's answer to a request."""

    def run(body: Json, store: ResponseStore | None = None) -> list[Json]:
        async def collect() -> list[Any]:
            request = chat_request({"temperature": 0, **body}, store, "demo")
            chunks = await pool.create_chat_completion(
                request.messages, stream=True, **request.options
            )
            return [each async for each in chunks]

        return asyncio.run(collect())

    return run


@pytest.fixture(scope="module")
def answers(ask: Ask) -> dict[str, list[Json]]:
    return {"thinks": THINKS, **{name: ask(body) for name, body in ASKED.items()}}


@pytest.mark.behaviour("robustness: streams are read in strict mode by the official clients' types")
@pytest.mark.parametrize("name", ["thinks", *ASKED])
def test_stream_and_whole_response_are_equal_and_strict(
    answers: dict[str, list[Json]], name: str
) -> None:
    body = ASKED.get(name, {"input": "x"})
    found, response = streamed(body, answers[name]), whole(body, answers[name])
    assert found[-1]["type"] == f"response.{response['status']}"
    assert comparable(found[-1]["response"]) == comparable(response)
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == found[-1]["response"]["output"] != []
    for event in (found[0], found[1]):
        assert (event["response"]["status"], event["response"]["output"]) == ("in_progress", [])
        assert event["response"]["id"] == found[-1]["response"]["id"]


@pytest.mark.behaviour(
    "responses: a stream has one id, and its deltas join to the text of the items"
)
@pytest.mark.parametrize("name", ["thinks", *ASKED])
def test_deltas_join_to_what_is_done(answers: dict[str, list[Json]], name: str) -> None:
    """Of each item: one id, one index, the deltas are the text, and parts are the item's."""
    items: dict[str, Json] = {}
    for event in streamed(ASKED.get(name, {"input": "x"}), answers[name]):
        kind = event["type"].split(".")
        if kind[1:] == ["output_item", "added"]:
            assert event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            items[event["item"]["id"]] = {"index": event["output_index"], "text": ""}
        elif "item_id" in event:
            item = items[event["item_id"]]
            assert event["output_index"] == item["index"]
            assert event.get("content_index", 0) == 0
            if kind[-1] == "delta":
                item["text"] += event["delta"]
            elif "part" in event:
                assert event["part"]["text"] == item["text"]
            else:
                assert event.get("text", event.get("arguments")) == item["text"]
        elif kind[1:] == ["output_item", "done"]:
            done, text = event["item"], items[event["item"]["id"]]["text"]
            assert text == (
                done["arguments"] if "arguments" in done else done["content"][0]["text"]
            )
    assert items


def test_the_demo_model_answers(answers: dict[str, list[Json]]) -> None:
    def output(name: str) -> list[Json]:
        return whole(ASKED[name], answers[name])["output"]  # type: ignore[no-any-return]

    (message,) = output("text")
    assert message["id"].startswith("msg_")
    assert (message["role"], message["content"][0]["text"]) == ("assistant", "42")
    for name, cities in {"call": ["Paris"], "calls": ["Paris", "Rome"]}.items():
        calls = output(name)
        assert [json.loads(each["arguments"]) for each in calls] == [{"city": c} for c in cities]
        assert {each["name"] for each in calls} == {"get_weather"}
        assert all(each["id"].startswith("fc_") for each in calls)
        assert len({each["call_id"] for each in calls}) == len(cities)
    assert output("required")[0]["type"] == "function_call"
    reasoning, message = output("reasoning")
    assert reasoning["type"] == "reasoning"
    assert (reasoning["summary"], reasoning["content"][0]["type"]) == ([], "reasoning_text")
    assert message["content"][0]["text"] == "42"
    assert json.loads(output("schema")[0]["content"][0]["text"])["answer"] in range(10)


def test_events_of_each_kind_of_item_come_in_order(answers: dict[str, list[Json]]) -> None:
    begin, end = ["created", "in_progress"], ["completed"]
    thinks = [*begin, *THINK_ORDER, *TEXT_ORDER, *CALL_ORDER, *CALL_ORDER, *end]
    assert order(streamed({"input": "x"}, THINKS)) == thinks
    assert order(streamed(ASKED["text"], answers["text"])) == [*begin, *TEXT_ORDER, *end]
    reasoning = order(streamed(ASKED["reasoning"], answers["reasoning"]))
    assert reasoning == [*begin, *THINK_ORDER, *TEXT_ORDER, *end]
    calls = streamed(ASKED["calls"], answers["calls"])
    assert order(calls) == [*begin, *CALL_ORDER, *CALL_ORDER, *end]


def test_the_first_events_come_before_the_first_chunk() -> None:
    async def run() -> list[str]:
        never: Any = as_stream([], AssertionError("asked for a chunk"))
        stream = events(chat_request({"input": "x"}), never)
        return [str((await anext(stream))["type"]) for _ in range(2)]

    assert asyncio.run(run()) == ["response.created", "response.in_progress"]


def test_leaving_the_events_ends_the_generation() -> None:
    ended = []

    async def chunks() -> AsyncIterator[Any]:
        try:
            for each in THINKS:
                yield each
        finally:
            ended.append(True)

    async def run() -> None:
        running = chunks()  # kept: nothing else ends it
        stream = events(chat_request({"input": "x"}), running)
        for _ in range(5):
            await anext(stream)
        assert not ended
        await stream.aclose()
        assert ended

    asyncio.run(run())


def test_a_cut_response_is_incomplete(answers: dict[str, list[Json]]) -> None:
    found = streamed(ASKED["cut"], answers["cut"])
    response = found[-1]["response"]
    assert found[-1]["type"] == "response.incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert response["usage"]["output_tokens"] == 1
    # Inside a call, too; calls before it are complete.
    cut = [*THINKS[:-3], chunk(call(1, "get_weather", '{"ci')), chunk({}, "length")]
    output = streamed({"input": "x"}, cut)[-1]["response"]["output"]
    assert [item["status"] for item in output] == ["completed"] * 3 + ["incomplete"]
    assert output[-1]["arguments"] == '{"ci'


@pytest.mark.parametrize("n", range(len(THINKS)))
def test_an_error_anywhere_is_the_last_event(n: int) -> None:
    found = streamed({"input": "x"}, THINKS[:n], error=CancelledError("the engine was closed"))
    last = strictly(ResponseFailedEvent, found[-1]).response
    assert last.error is not None
    assert (last.status, last.error.message) == ("failed", "the engine was closed")
    before = streamed({"input": "x"}, THINKS[:n])
    done = [event["item"] for event in before if event["type"].endswith("item.done")]
    assert len(last.output) == len(done)
    for item in last.output:
        assert item.status in ("completed", "incomplete")  # type: ignore[union-attr]


def test_an_unexpected_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    found = streamed({"input": "x"}, THINKS[:4], error=KeyError("secret"))
    assert found[-1]["response"]["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(found)
    assert "secret" in caplog.text
    request = chat_request({"input": "x"})
    with pytest.raises(CancelledError):
        asyncio.run(response_object(request, as_stream(THINKS[:4], CancelledError("x"))))


def test_usage_has_the_details(answers: dict[str, list[Json]]) -> None:
    assert whole({"input": "x"}, THINKS)["usage"] == {
        "input_tokens": 30,
        "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 0},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 50,
    }
    usage = whole(ASKED["text"], answers["text"])["usage"]
    assert (usage["output_tokens"], usage["output_tokens_details"]["reasoning_tokens"]) == (2, 0)
    assert usage["total_tokens"] == usage["input_tokens"] + 2
    usage = whole(ASKED["reasoning"], answers["reasoning"])["usage"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"] - 2


def test_logprobs_are_those_of_the_text(answers: dict[str, list[Json]]) -> None:
    found = streamed(ASKED["logprobs"], answers["logprobs"])
    part = found[-1]["response"]["output"][0]["content"][0]
    assert "".join(each["token"] for each in part["logprobs"]) == part["text"] == "42"
    assert all(each["logprob"] <= 0 for each in part["logprobs"])
    assert [len(each["top_logprobs"]) for each in part["logprobs"]] == [2, 2]
    deltas = [e for e in found if e["type"] == "response.output_text.delta"]
    (done,) = [e["logprobs"] for e in found if e["type"] == "response.output_text.done"]
    assert [each for delta in deltas for each in delta["logprobs"]] == done != []
    assert found[-1]["response"]["top_logprobs"] == 2
    assert whole(ASKED["text"], answers["text"])["output"][0]["content"][0]["logprobs"] == []


TEXTS = st.text(st.sampled_from('ab {}"\n\u00e9\U0001f600'), min_size=1, max_size=12)


def cuts(draw: st.DrawFn, text: str) -> list[str]:
    """Cut a text anywhere; some pieces are empty."""
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@st.composite
def answer_parts(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Return an answer: reasoning, text and calls in turn."""
    kinds = draw(st.lists(st.sampled_from(("reasoning_content", "content", "call")), max_size=6))
    texts = [(kind, draw(TEXTS)) for kind in kinds]
    same = [i for i, (k, _) in enumerate(texts) if i and k == texts[i - 1][0] != "call"]
    return [part for i, part in enumerate(texts) if i not in same]


@st.composite
def two_cuts(draw: st.DrawFn) -> tuple[list[Json], list[Json], list[tuple[str, str]]]:
    """Return the chunks of one answer, cut in two ways."""
    parts = draw(answer_parts())
    reason = draw(st.sampled_from(("stop", "length", "tool_calls")))
    is_joined = draw(st.booleans())

    def chunks() -> list[Json]:
        found, n_calls = [chunk({"role": "assistant", "content": ""})], 0
        for kind, text in parts:
            if kind == "call":
                first, *rest = cuts(draw, text)
                found.append(chunk(call(n_calls, "f", first)))
                found += [chunk(call(n_calls, arguments=piece)) for piece in rest]
                n_calls += 1
            else:
                found += [chunk({kind: piece}, logprobs=None) for piece in cuts(draw, text)]
        if is_joined:  # as other servers end
            found[-1]["choices"][0]["finish_reason"] = reason
            return [*found, usage_chunk()]
        return [*found, chunk({}, reason), usage_chunk()]

    return chunks(), chunks(), parts


@given(two_cuts())
def test_how_the_chunks_cut_an_answer_is_irrelevant(
    given_: tuple[list[Json], list[Json], list[tuple[str, str]]],
) -> None:
    one, other, parts = given_
    first = streamed({"input": "x"}, one)[-1]["response"]
    assert comparable(first) == comparable(whole({"input": "x"}, other))
    read = [
        ("call", item["arguments"])
        if item["type"] == "function_call"
        else ("reasoning_content" if item["type"] == "reasoning" else "content",
              item["content"][0]["text"])
        for item in first["output"]
    ]  # fmt: skip
    assert read == parts


@given(two_cuts())
def test_every_prefix_of_a_stream_is_in_order(
    given_: tuple[list[Json], list[Json], list[tuple[str, str]]],
) -> None:
    """Each delta lies between the events that open and close its item, one item at a time."""
    opened: list[str] = []
    closed: list[str] = []
    for event in streamed({"input": "x"}, given_[0]):
        kind = event["type"]
        if kind == "response.output_item.added":
            assert opened == closed
            opened.append(event["item"]["id"])
        elif kind == "response.output_item.done":
            closed.append(event["item"]["id"])
        elif "item_id" in event:
            assert len(opened) == len(closed) + 1
            assert event["item_id"] == opened[-1]
    assert opened == closed


def test_a_request_like_codex_becomes_a_conversation() -> None:
    request = chat_request(CODEX)
    system, user, assistant, result, last = request.messages
    text = [{"type": "text", "text": "<permissions>read-only</permissions>"}]
    assert system == {
        "role": "system",
        "content": [{"type": "text", "text": "You are a coding agent."}, *text],
    }
    assert [part["text"] for part in user["content"]] == [  # type: ignore[attr-defined]
        "<environment>bash</environment>", "List the files.",
    ]  # fmt: skip
    assert assistant == {
        "role": "assistant",
        "reasoning_content": "I should look.",
        "content": [{"type": "text", "text": "I look."}],
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "shell", "arguments": '{"command": ["ls"]}'},
            }
        ],
    }
    assert result == {"role": "tool", "content": "a.py\nb.py", "tool_call_id": "call_1"}
    assert last["role"] == "user"
    function = {"name": "shell", "parameters": {"type": "object"}}
    assert request.options == {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning_effort": "medium",
        "stream_options": {"include_usage": True},
    }
    assert (request.stream, request.store, request.encrypts_reasoning) == (True, False, True)
    response = whole(CODEX, THINKS)
    assert [tool["name"] for tool in response["tools"]] == ["shell"]
    assert response["text"] == {"format": {"type": "text"}, "verbosity": "low"}


@pytest.mark.behaviour("robustness: requests like those of Codex CLI and Claude Code are answered")
def test_the_demo_model_answers_a_request_like_codex(ask: Ask) -> None:
    body = {**CODEX, "reasoning": None, "max_output_tokens": 3}
    assert order(streamed(body, ask(body)))[-1] in ("completed", "incomplete")


@pytest.mark.parametrize("given_", ["", []])
@pytest.mark.parametrize("instructions", [None, "You are a coding agent."])
def test_an_empty_input_with_one_token_is_answered(
    ask: Ask, given_: Any, instructions: str | None
) -> None:
    body = {"input": given_, "max_output_tokens": 1, "instructions": instructions}
    messages = chat_request(body).messages
    assert messages[-1] == {"role": "user", "content": ""}
    assert len(messages) == 1 + (instructions is not None)
    assert streamed(body, ask(body))[-1]["type"] == "response.incomplete"


def test_input_is_read_in_every_form() -> None:
    def messages(*items: Any) -> Any:
        return chat_request({"input": [*items]}).messages

    hi = [{"role": "user", "content": "Hi"}]
    assert messages("Hi") == chat_request({"input": "Hi"}).messages == hi
    assert messages({"role": "user", "content": "Hi"}) == hi
    parts = [{"type": "text", "text": "Hi"}]
    for kind in ("input_text", "output_text", "text"):
        part = {"type": kind, "text": "Hi", "annotations": []}
        assert messages({"role": "user", "content": [part]}) == [{"role": "user", "content": parts}]
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert messages("Hi", refusal)[1]["content"] == [{"type": "text", "text": "No."}]
    # A system message in the middle stays where it is; those at the beginning become one.
    talk = messages(
        {"role": "system", "content": "A"}, {"role": "developer", "content": "B"}, "Hi",
        {"role": "developer", "content": "C"}, "Ho",
    )  # fmt: skip
    assert [each["role"] for each in talk] == ["system", "user", "system", "user"]
    assert [each["text"] for each in talk[0]["content"]] == ["A", "B"]
    custom = {"type": "custom_tool_call", "name": "patch", "input": "+a", "call_id": "c"}
    output = {"type": "custom_tool_call_output", "call_id": "c", "output": "done"}
    made, done = messages("Hi", custom, output)[1:]
    assert json.loads(made["tool_calls"][0]["function"]["arguments"]) == {"input": "+a"}
    assert done == {"role": "tool", "content": "done", "tool_call_id": "c"}


def test_reasoning_comes_back_by_content_encoded_or_as_a_summary() -> None:
    body = {"input": "x", "include": ["reasoning.encrypted_content"], "store": False}
    item = whole(body, THINKS)["output"][0]
    assert item["id"].startswith("rs_")
    assert item["content"] == [{"type": "reasoning_text", "text": "Two cities."}]
    forms = (
        item,
        {**item, "content": None},  # as Codex CLI sends it
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Two cities."}]},
    )
    for form in forms:
        message = chat_request({"input": ["x", form, {"role": "assistant", "content": "y"}]})
        assert message.messages[1] == {
            "role": "assistant", "reasoning_content": "Two cities.", "content": "y",
        }  # fmt: skip
    assert "encrypted_content" not in whole({"input": "x"}, THINKS)["output"][0]
    for foreign in ("gAAAA", "llama-cffi:%%%", "llama-cffi:/w=="):
        sealed = {"type": "reasoning", "summary": [], "encrypted_content": foreign}
        assert chat_request({"input": [sealed]}).messages[0]["reasoning_content"] == ""


def test_options_are_those_of_a_chat_completion() -> None:
    request = chat_request(
        {
            "input": "x", "instructions": "", "temperature": 0, "top_p": 0.5, "top_logprobs": 3,
            "max_output_tokens": 7, "parallel_tool_calls": True, "reasoning": {"effort": "max"},
            "text": {"format": SUM_FORMAT}, "truncation": "auto", "metadata": {"a": "b"},
            "user": "u", "seed": 5, "top_k": 3, "stop": ["x"], "min_p": None, "unknown": 1,
        }
    )  # fmt: skip
    assert request.options == {
        "temperature": 0, "top_p": 0.5, "top_logprobs": 3, "logprobs": True, "max_tokens": 7,
        "parallel_tool_calls": True, "reasoning_effort": "high", "tools": [], "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"schema": SUM_FORMAT["schema"]}},
        "context_policy": "drop_oldest_turns", "stream_options": {"include_usage": True},
        "seed": 5, "top_k": 3, "stop": ["x"],
    }  # fmt: skip
    assert request.settings["metadata"] == {"a": "b"}
    assert request.settings["reasoning"] == {"effort": "max", "summary": None}
    json_object = chat_request({"input": "x", "text": {"format": {"type": "json_object"}}})
    assert json_object.options["response_format"] == {"type": "json_object"}


def test_allowed_tools_are_the_only_ones_offered() -> None:
    tools = [WEATHER, {"type": "function", "name": "now"}]
    allowed = [{"type": "function", "name": "now"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": allowed}
    body = {"input": "x", "tools": tools, "tool_choice": choice}
    request = chat_request(body)
    assert request.options["tools"] == [{"type": "function", "function": {"name": "now"}}]
    assert request.options["tool_choice"] == "required"
    response = whole(body, THINKS)
    assert response["tool_choice"] == choice
    assert [tool["name"] for tool in response["tools"]] == ["get_weather", "now"]


WRONG: list[tuple[Json, str]] = [
    ({}, "input is missing"),
    ({"input": 5}, "input must be a string or a list, got 5"),
    ({"input": [5]}, r"input\[0\] must be an object"),
    ({"input": [{"role": "user"}]}, r"input\[0\].content is missing"),
    ({"input": [{"role": "usr", "content": "x"}]}, r"input\[0\].role='usr' .* did you mean 'user'"),
    ({"input": [{"role": "user", "content": 1}]}, r"input\[0\].content must be a string or a list"),
    ({"input": [{"role": "user", "content": [1]}]}, r"input\[0\].content\[0\] must be an object"),
    ({"input": [{"type": "mesage", "content": "x"}]}, r"input\[0\].type='mesage' is unknown"),
    ({"input": [{"type": 1}]}, r"input\[0\].type must be a string"),
    ({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "name is missing"),
    ({"input": [{"type": "function_call_output", "output": {}}]}, "output must be a string or a"),
    ({"input": [{"type": "reasoning", "content": "x"}]}, r"input\[0\].content must be a list"),
    ({"tools": {}}, "tools must be a list"),
    ({"tools": ["x"]}, r"tools\[0\] must be an object"),
    ({"tools": [{"name": "x"}]}, r"tools\[0\].type is missing"),
    ({"tools": [{"type": "function", "name": 1}]}, r"tools\[0\].name must be a string"),
    ({"tools": [{"type": "function", "name": "f", "parameters": []}]}, "parameters must be an obj"),
    ({"tool_choice": "any"}, "tool_choice='any' is not one of auto, none, required"),
    ({"tool_choice": {"type": "web_search"}}, "only functions can be called"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.name is missing"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type='xml' is not one of"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema is missing"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity='loud' is not one of"),
    ({"reasoning": {"effort": 3}}, "reasoning.effort must be a string"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort='huge' is not one of"),
    ({"max_output_tokens": 0}, "max_output_tokens=0 is outside"),
    ({"max_output_tokens": True}, "max_output_tokens must be an integer, got True"),
    ({"max_output_tokens": 1.5}, "max_output_tokens must be an integer"),
    ({"temperature": "0.5"}, "temperature must be a number, got '0.5'"),
    ({"top_p": True}, "top_p must be a number"),
    ({"top_logprobs": 21}, "top_logprobs=21 is outside 0..20"),
    ({"include": ["x", 1]}, r"include\[1\] must be a string"),
    ({"metadata": {"a": 1}}, "metadata.a must be a string"),
    ({"store": "no"}, "store must be true or false"),
    ({"truncation": "left"}, "truncation='left' is not one of auto, disabled"),
    ({"background": True}, "background is not supported"),
    ({"conversation": "conv_1"}, "give previous_response_id"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt is not supported"),
    ({"previous_response_id": "resp_1"}, "previous_response_id='resp_1' is not stored"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "'msg_1' is not an item of a stored"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), WRONG)
def test_a_wrong_field_is_named(body: Json, message: str) -> None:
    full = body if not body or "input" in body else {"input": "x", **body}
    with pytest.raises(ValidationError, match=message):
        chat_request(full, ResponseStore())


def test_items_are_counted_from_the_input() -> None:
    store = ResponseStore()
    first = whole({"input": ["a", "b"]}, THINKS, store)
    wrong = {"input": ["c", {"role": "user"}], "previous_response_id": first["id"]}
    with pytest.raises(ValidationError, match=r"^input\[1\].content is missing"):
        chat_request(wrong, store)


ITEMS: dict[str, dict[str, Any]] = {
    "content": {"role": "user"},
    "output": {"type": "function_call_output", "call_id": "c"},
}


@pytest.mark.parametrize("kind", ["input_file", "input_video"])
@pytest.mark.parametrize("name", ["content", "output"])
def test_files_are_refused_with_a_sentence(kind: str, name: str) -> None:
    item = {**ITEMS[name], name: [{"type": kind, "file_url": "data:,"}]}
    message = rf"input\[1\].{name}\[0\] is .*{kind}.*leave it out, or give its text"
    with pytest.raises(ValidationError, match=message):
        chat_request({"input": ["x", item]})


@pytest.mark.parametrize("name", ["content", "output"])
def test_pictures_and_sounds_stay_parts_of_messages(name: str) -> None:
    parts: list[dict[str, Any]] = [
        {"type": "input_image", "image_url": "data:,"},
        {"type": "input_audio", "input_audio": {"data": ""}},
    ]
    item = {**ITEMS[name], name: [*parts, {"type": "input_text", "text": "a"}]}
    message = chat_request({"input": ["x", item]}).messages[-1]
    assert message["content"] == [*parts, {"type": "text", "text": "a"}]
    with pytest.raises(ValidationError, match=rf"input\[0\].{name}\[0\].file_id: there are no"):
        chat_request({"input": [{**item, name: [{"type": "input_image", "file_id": "f"}]}]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.floats() | st.text(max_size=3)
    | st.sampled_from(["function", "message", "reasoning", "auto", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["type", "role", "content", "text", "name", "id", "format", "schema", "call_id",
             "output", "arguments", "tools", "mode", "effort", "summary", "parameters"]
        ),
        inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(ResponseCreateParamsBase.__annotations__)), JSON))
def test_any_json_in_any_field_is_converted_or_refused(body: Json) -> None:
    error, request = "", None
    try:
        request = chat_request({"input": "x", **body}, ResponseStore())
    except ValidationError as refusal:
        error = str(refusal)
    if request is None:
        assert error.startswith(tuple(ResponseCreateParamsBase.__annotations__))
    else:
        assert not [*problems(Response, ResponseFold(request).response)]


def test_a_conversation_continues_from_the_stored_response(ask: Ask) -> None:
    store = ResponseStore()
    body = {**ASKED["call"], "instructions": "Be brief."}
    first = streamed(body, ask(body), store)[-1]["response"]
    (made,) = first["output"]
    result = {
        "type": "function_call_output",
        "call_id": made["call_id"],
        "output": '{"sky": "clear"}',
    }
    body = {"input": [result], "tools": [WEATHER], "previous_response_id": first["id"]}
    request = chat_request(body, store)
    assert [each["role"] for each in request.messages] == ["user", "assistant", "tool"]
    assert request.messages[1]["tool_calls"][0]["id"] == made["call_id"]  # type: ignore[index]
    second = whole(body, ask(body, store), store)
    assert second["previous_response_id"] == first["id"]
    assert (second["instructions"], second["output"][0]["type"]) == (None, "message")
    third = chat_request({"input": "Hm?", "previous_response_id": second["id"]}, store)
    assert [each["role"] for each in third.messages] == [
        "user", "assistant", "tool", "assistant", "user",
    ]  # fmt: skip
    # The whole conversation as input is the same prompt.
    asked = [{"type": "input_text", "text": ASKED["call"]["input"]}]
    items = [{"role": "user", "content": asked}, *first["output"], result, *second["output"], "Hm?"]
    assert chat_request({"input": items}).messages == third.messages
    # An earlier response can be continued in another way.
    other = chat_request({"input": "Rome?", "previous_response_id": first["id"]}, store)
    assert [each["role"] for each in other.messages] == ["user", "assistant", "user"]


def test_an_item_reference_is_the_item_itself() -> None:
    store = ResponseStore()
    output = whole({"input": "x"}, THINKS, store)["output"]
    forms: list[Json] = [{}, {"type": "item_reference"}]
    for form in forms:
        references = [{**form, "id": item["id"]} for item in output]
        referred = chat_request({"input": ["x", *references]}, store)
        assert referred.messages == chat_request({"input": ["x", *output]}).messages
        assert referred.conversation[1:] == output


def test_nothing_is_stored_that_should_not_be() -> None:
    store = ResponseStore()
    streamed({"input": "x", "store": False}, THINKS, store)
    whole({"input": "x", "store": False}, THINKS, store)
    streamed({"input": "x"}, THINKS[:3], store, CancelledError("x"))
    assert (len(store), store.n_bytes) == (0, 0)
    cut = whole({"input": "x"}, [chunk({"content": "a"}, "length")], store)
    response, (given, *output) = store.get(cut["id"])
    assert (response, output) == (cut, cut["output"])
    assert given["content"] == [{"type": "input_text", "text": "x"}]


def test_a_response_is_stored_before_its_last_event() -> None:
    store = ResponseStore()

    async def run() -> None:
        async for event in events(chat_request({"input": "x"}), as_stream(THINKS), store):
            if event["type"] == "response.completed":
                assert len(store) == 1

    asyncio.run(run())
    assert len(store) == 1


def test_the_store_keeps_what_was_used_last() -> None:
    store = ResponseStore(max_responses=3)
    a, b, c = (whole({"input": "x"}, THINKS, store) for _ in range(3))
    assert store.get(a["id"]) is not None
    assert store.item(b["output"][0]["id"]) == b["output"][0]
    d = whole({"input": "x"}, THINKS, store)
    assert [store.get(each["id"]) is None for each in (a, b, c, d)] == [False, False, True, False]
    assert store.item(c["output"][0]["id"]) is None
    assert store.remove(a["id"])
    assert not store.remove(a["id"])
    assert store.item(a["output"][0]["id"]) is None
    assert len(store) == 2
    for each in (b, d):
        store.remove(each["id"])
    assert store.n_bytes == 0
    assert not store._homes


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400)), max_size=30))
def test_the_store_never_exceeds_its_bytes(puts: list[tuple[int, int]]) -> None:
    store = ResponseStore(max_responses=5, max_bytes=1000)
    for key, n in puts:
        response = {"id": f"resp_{key}", "output": [{"id": f"msg_{key}", "text": "x" * n}]}
        store.put(response, [{"text": "y" * n}])
        assert len(store) <= 5
        assert store.n_bytes <= 1000
        kept = store.get(f"resp_{key}")
        assert (kept is not None) == (len(json.dumps([response, [{"text": "y" * n}]])) <= 1000)
        assert store.item(f"msg_{key}") == (response["output"][0] if kept else None)


def test_a_stored_response_is_a_copy() -> None:
    store = ResponseStore()
    response = whole({"input": "x"}, THINKS, store)
    stored = store.get(response["id"])
    assert stored is not None
    stored.response["output"].clear()
    stored.conversation.clear()
    again = store.get(response["id"])
    assert again is not None
    assert again.response == response
    assert len(again.conversation) == 1 + len(response["output"])


@pytest.mark.parametrize("limits", [{"max_responses": -1}, {"max_bytes": -1}])
def test_limits_of_the_store_are_checked(limits: Mapping[str, int]) -> None:
    with pytest.raises(ValidationError, match="is outside"):
        ResponseStore(**limits)


@pytest.fixture
def client(ask: Ask) -> Iterator[OpenAI]:
    """The official client, whose requests are answered by the conversion."""
    store = ResponseStore()

    def handle(sent: httpx2.Request) -> httpx2.Response:
        body = json.loads(sent.content)
        if not body.get("stream"):
            return httpx2.Response(200, json=whole(body, ask(body, store), store))
        lines = [
            f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
            for event in streamed(body, ask(body, store), store)
        ]
        headers = {"Content-Type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, content="".join(lines).encode())

    transport = httpx2.Client(transport=httpx2.MockTransport(handle))
    with OpenAI(api_key="x", base_url="http://test", http_client=transport) as client:
        yield client


class Sum(pydantic.BaseModel):
    answer: int


def test_the_official_client_reads_responses(client: OpenAI) -> None:
    options: Any = {"model": "demo", "temperature": 0}
    response = client.responses.create(input="What is 17 + 25?", **options)
    assert response.output_text == "42"
    with client.responses.stream(input="What is 17 + 25?", **options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "42"
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    tools: Any = [WEATHER]
    with client.responses.stream(
        input="What is the weather in Paris?", tools=tools, **options
    ) as s:
        (made,) = s.get_final_response().output
    assert made.type == "function_call"
    assert json.loads(made.arguments) == {"city": "Paris"}
    parsed = client.responses.parse(input="What is 17 + 25?", text_format=Sum, **options)
    if parsed.status == "completed":
        assert isinstance(parsed.output_parsed, Sum)
    # A next turn.
    output: Any = {"type": "function_call_output", "call_id": made.call_id, "output": "{}"}
    second = client.responses.create(input=["x", made.to_dict(), output], **options)  # type: ignore[list-item]
    third = client.responses.create(input="y", previous_response_id=second.id, **options)
    assert third.previous_response_id == second.id


def test_the_official_client_is_told_of_a_failure() -> None:
    found = streamed({"input": "x"}, THINKS[:3], error=CancelledError("the engine was closed"))
    lines = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in found)

    def handle(_: httpx2.Request) -> httpx2.Response:
        headers = {"Content-Type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, content=lines.encode())

    transport = httpx2.Client(transport=httpx2.MockTransport(handle))
    with OpenAI(api_key="x", base_url="http://test", http_client=transport) as client:
        *_, last = client.responses.create(model="demo", input="x", stream=True)
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.message == "the engine was closed"


def test_the_strict_reader_refuses_what_the_sdk_lets_pass() -> None:
    response = whole({"input": "x"}, THINKS)
    for wrong, message in (
        ({**response, "extra": 1}, "Response has no field 'extra'"),
        ({k: v for k, v in response.items() if k != "tools"}, "needs the field 'tools'"),
        ({**response, "parallel_tool_calls": 1}, "is not bool"),
        ({**response, "status": "done"}, "is none of"),
        ({**response, "output": [{**response["output"][1], "x": 1}]}, "has no field 'x'"),
        ({**response, "output": [{**response["output"][1], "content": None}]}, "is not a list"),
    ):
        Response.construct(**wrong)
        with pytest.raises(AssertionError, match=message):
            strictly(Response, wrong)
