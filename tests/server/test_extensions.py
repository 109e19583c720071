"""llama-server's extensions: timings, timings_per_token, return_progress, verbose."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from support.http_requests import post
from support.strict_sdk import EXTENSIONS, assert_strict, problems

from llama_cffi import Llama, LlamaPool
from llama_cffi.demo import model_path
from llama_cffi.server.http_server import HttpServer

ASK: list[Any] = [{"role": "user", "content": "What is 12 + 30?"}]
LONG: list[Any] = [{"role": "user", "content": "This is a test. " * 12}]
GREEDY: dict[str, Any] = {
    "model": "demo", "messages": ASK, "temperature": 0, "max_tokens": 6, "ignore_eos": True,
}  # fmt: skip
# The model goes on counting.
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}!{% endfor %} 1, 2, 3,"


@pytest.fixture(scope="module")
def single() -> Iterator[HttpServer]:
    """A server that answers one request at a time, with small batches and a template of its own."""
    with (
        Llama(model_path(), n_ctx=512, n_batch=32, n_threads=1, chat_format=TEMPLATE) as llm,
        llm.serve() as server,
    ):
        yield server


@pytest.fixture(params=["shared", "single"])
def base(request: pytest.FixtureRequest, server: HttpServer, single: HttpServer) -> str:
    return (server if request.param == "shared" else single).url


def check_timings(found: Any) -> None:
    assert {"cache_n", "prompt_n", "prompt_ms", "predicted_n", "predicted_ms"} <= found.keys()
    assert all(value >= 0 for value in found.values())


def check_progress(found: list[Any]) -> None:
    first, last = found[0], found[-1]
    assert first["processed"] == first["cache"]
    assert last["processed"] == last["total"] > 0
    for before, after in pairwise(found):
        assert (after["total"], after["cache"]) == (before["total"], before["cache"])
        assert after["processed"] > before["processed"]
        assert after["time_ms"] >= before["time_ms"]


def test_a_chat_answer_has_timings_that_add_up(base: str) -> None:
    reply = post(f"{base}/v1/chat/completions", GREEDY).json
    found, usage = reply["timings"], reply["usage"]
    check_timings(found)
    assert found["cache_n"] + found["prompt_n"] == usage["prompt_tokens"]
    assert found["predicted_n"] == usage["completion_tokens"]
    assert found["cache_n"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert not [*problems(ChatCompletion, reply, extensions=EXTENSIONS)]


@pytest.mark.parametrize("with_usage", [False, True])
def test_the_last_chunk_of_a_chat_has_timings(base: str, with_usage: bool) -> None:
    options = {"stream": True, "stream_options": {"include_usage": with_usage}}
    *chunks, end = post(f"{base}/v1/chat/completions", {**GREEDY, **options}).events
    assert end == "[DONE]"
    check_timings(chunks[-1]["timings"])
    assert not any("timings" in chunk for chunk in chunks if not _ends(chunk))
    for chunk in chunks:
        assert not [*problems(ChatCompletionChunk, chunk, extensions=EXTENSIONS)]


def _ends(chunk: Any) -> bool:
    return not chunk["choices"] or bool(chunk["choices"][0]["finish_reason"])


@pytest.mark.behaviour(
    "chat: timings_per_token: not in the first event, then growing",
)
def test_timings_per_token_are_absent_in_the_first_event_then_grow(base: str) -> None:
    body = {**GREEDY, "stream": True, "timings_per_token": True}
    first, *chunks = post(f"{base}/v1/chat/completions", body).events[:-1]
    assert "timings" not in first
    counts = [chunk["timings"]["predicted_n"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    for chunk in chunks:
        check_timings(chunk["timings"])
        assert chunk["timings"]["prompt_n"] > 0
    plain = post(f"{base}/v1/chat/completions", {**GREEDY, "timings_per_token": True}).json
    check_timings(plain["timings"])


@pytest.mark.behaviour(
    "chat: return_progress counts from the cached tokens to all of the prompt",
)
def test_the_progress_of_a_chat_prompt_is_told_per_batch(base: str) -> None:
    body = {**GREEDY, "messages": LONG, "stream": True, "return_progress": True}
    for _ in range(2):  # the second time from the cache
        events = post(f"{base}/v1/chat/completions", body).events[:-1]
        assert events[0]["choices"][0]["delta"]["role"] == "assistant"
        check_progress([e["prompt_progress"] for e in events if "prompt_progress" in e])
        extensions = EXTENSIONS | {"prompt_progress"}
        for event in events:
            assert not [*problems(ChatCompletionChunk, event, extensions=extensions)]
    last = [e["prompt_progress"] for e in events if "prompt_progress" in e]
    assert last[0]["cache"] > 0


def test_small_batches_are_all_reported(single: HttpServer) -> None:
    long = [{"role": "user", "content": "Another long text for the batches. " * 12}]
    body = {**GREEDY, "messages": long, "stream": True, "return_progress": True}
    events = post(f"{single.url}/v1/chat/completions", body).events[:-1]
    found = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert len(found) == 1 + -(-(found[0]["total"] - found[0]["cache"]) // 32) > 2


@pytest.mark.behaviour(
    "responses: progress and timings come on request only",
)
def test_responses_have_extensions_only_on_request(base: str) -> None:
    body = {"model": "demo", "input": LONG[0]["content"], "max_output_tokens": 4, "stream": True}
    for event in post(f"{base}/v1/responses", body).events:
        assert not {"timings", "prompt_progress"} & event.keys()
    asked = {**body, "timings_per_token": True, "return_progress": True}
    events = post(f"{base}/v1/responses", asked).events
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    reports = [event for event in events if "prompt_progress" in event]
    assert {event["type"] for event in reports} == {"response.in_progress"}
    check_progress([event["prompt_progress"] for event in reports])
    timed = [event for event in events if "timings" in event]
    assert "response.output_text.delta" in {event["type"] for event in timed}
    assert timed[-1] is events[-1]
    assert "timings" not in events[-1]["response"]
    whole = post(f"{base}/v1/responses", {**asked, "stream": False}).json
    check_timings(whole["timings"])
    assert "timings" not in post(f"{base}/v1/responses", {**body, "stream": False}).json


def test_messages_have_extensions_only_on_request(base: str) -> None:
    body = {"model": "demo", "max_tokens": 4, "messages": LONG, "stream": True}
    for event in post(f"{base}/v1/messages", body).events:
        assert not {"timings", "prompt_progress"} & event.keys()
    asked = {**body, "timings_per_token": True, "return_progress": True}
    events = post(f"{base}/v1/messages", asked).events
    assert events[0]["type"] == "message_start"
    reports = [event for event in events if "prompt_progress" in event]
    assert {event["type"] for event in reports} == {"ping"}
    check_progress([event["prompt_progress"] for event in reports])
    timed = [event["type"] for event in events if "timings" in event]
    assert "content_block_delta" in timed
    assert timed[-1] == "message_delta"
    check_timings(post(f"{base}/v1/messages", {**asked, "stream": False}).json["timings"])


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
@pytest.mark.parametrize("field", ["timings_per_token", "return_progress"])
def test_a_switch_of_the_wrong_type_is_400(url: str, path: str, field: str) -> None:
    body = {"model": "demo", "messages": ASK, "input": "x", field: "yes"}
    reply = post(f"{url}/{path}", body)
    assert reply.status == 400
    assert field in reply.json["error"]["message"]


@pytest.mark.behaviour(
    "chat: __verbose has the prompt that was used, on request only",
)
@pytest.mark.parametrize("stream", [False, True])
def test_verbose_shows_the_prompt_used_and_its_absence_hides_it(
    single: HttpServer, stream: bool
) -> None:
    url = f"{single.url}/v1/chat/completions"
    reply = post(url, {**GREEDY, "verbose": True, "stream": stream})
    shown = reply.events[0] if stream else reply.json
    # The template is that of the constructor, as --chat-template gives it.
    assert shown["__verbose"] == {"prompt": "<|im_start|>What is 12 + 30?! 1, 2, 3,"}
    assert b"__verbose" not in post(url, {**GREEDY, "stream": stream}).body
    assert post(url, {**GREEDY, "verbose": "yes"}).error["param"] == "verbose"


def test_the_client_reads_answers_with_all_extensions(client: openai.OpenAI) -> None:
    more = {"verbose": True, "timings_per_token": True, "return_progress": True}
    asked = {**GREEDY}
    more["ignore_eos"] = asked.pop("ignore_eos")
    answer = client.chat.completions.create(**asked, extra_body=more)
    assert_strict(answer, EXTENSIONS | {"__verbose"})
    chunks = [*client.chat.completions.create(**asked, stream=True, extra_body=more)]
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert text == answer.choices[0].message.content


def test_several_answers_in_a_stream_are_those_of_the_whole(base: str) -> None:
    story = [{"role": "user", "content": "Tell me a story."}]
    body = {**GREEDY, "messages": story, "n": 2, "seed": 3, "temperature": 1.2, "max_tokens": 8}
    whole = post(f"{base}/v1/chat/completions", body).json
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = post(f"{base}/v1/chat/completions", {**body, **options}).events[:-1]
    texts, roles, reasons = ["", ""], [0, 0], ["", ""]
    for choice in (c for event in events for c in event["choices"]):
        i, delta = choice["index"], choice["delta"]
        roles[i] += "role" in delta
        texts[i] += delta.get("content") or ""
        reasons[i] += choice["finish_reason"] or ""
    assert roles == [1, 1]
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    assert events[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_a_prompt_is_rendered_once(url: str, pool: LlamaPool, monkeypatch: Any) -> None:
    calls: list[Any] = []
    renderer = pool.llm.renderer
    render = renderer.render
    monkeypatch.setattr(renderer, "render", lambda *a, **k: calls.append(a) or render(*a, **k))
    for path in ("chat/completions", "messages", "responses"):
        for stream in (False, True):
            calls.clear()
            body = {"messages": ASK, "input": "x", "max_tokens": 1, "stream": stream}
            assert post(f"{url}/{path}", body).status == 200
            assert len(calls) == 1, (path, stream)
