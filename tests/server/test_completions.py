"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion
from support.http_requests import post
from support.server_state import n_requests, wait_for
from support.strict_sdk import assert_strict

from llama_cffi import Llama, LlamaPool, Scorer
from llama_cffi.demo import model_path
from llama_cffi.generation.prompt import tokenize_prompt
from llama_cffi.server.http_server import HttpServer

ASK: dict[str, Any] = {"model": "demo", "prompt": "1 + 1 =", "max_tokens": 6, "temperature": 0}
TWO: list[Any] = ["once upon", "the weather"]


def chunks_of(client: openai.OpenAI, **request: Any) -> list[Completion]:
    chunks = [*client.completions.create(stream=True, **request)]
    for chunk in chunks:
        data = chunk.model_dump(exclude_unset=True)
        for choice in data["choices"]:  # the type is that of whole answers, which have a reason
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        assert_strict(Completion.model_construct(**data))
    return chunks


@pytest.mark.behaviour("completion: OpenAI's client works, streaming and not")
def test_the_answer_is_that_of_the_python_api(client: openai.OpenAI, pool: LlamaPool) -> None:
    answer = client.completions.create(**ASK)
    assert_strict(answer)
    alone = pool.llm.create_completion("1 + 1 =", max_tokens=6, temperature=0)
    assert answer.choices[0].text == alone["choices"][0]["text"]
    assert answer.choices[0].finish_reason == alone["choices"][0]["finish_reason"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == alone["usage"]["total_tokens"]


@pytest.mark.behaviour("completion: OpenAI's client works, streaming and not")
def test_a_stream_joins_to_the_whole(client: openai.OpenAI) -> None:
    chunks = chunks_of(client, **ASK)
    whole = client.completions.create(**ASK).choices[0]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_several_prompts_keep_their_order(client: openai.OpenAI) -> None:
    request = {**ASK, "prompt": TWO, "n": 2}
    answer = client.completions.create(**request)
    assert_strict(answer)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = [client.completions.create(**{**ASK, "prompt": p}).choices[0].text for p in TWO]
    assert [choice.text for choice in answer.choices] == [alone[0]] * 2 + [alone[1]] * 2
    texts = dict.fromkeys(range(4), "")
    usage = None
    chunks = chunks_of(client, **request, stream_options={"include_usage": True})
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert [*texts.values()] == [choice.text for choice in answer.choices]
    assert answer.usage is not None
    assert usage is not None
    assert usage.total_tokens == answer.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_token_ids_are_a_prompt(client: openai.OpenAI, pool: LlamaPool) -> None:
    ids = pool.llm.tokenize("1 + 1 =", True, True)
    by_ids = client.completions.create(**{**ASK, "prompt": ids})
    several = client.completions.create(**{**ASK, "prompt": [ids, ids]})
    text = client.completions.create(**ASK).choices[0].text
    assert [c.text for c in [*by_ids.choices, *several.choices]] == [text] * 3


def test_echo_begins_with_the_prompt(client: openai.OpenAI) -> None:
    plain, echoed = (client.completions.create(**ASK, echo=echo) for echo in (False, True))
    assert echoed.choices[0].text == "1 + 1 =" + plain.choices[0].text


def test_logprobs_have_one_entry_per_token(client: openai.OpenAI) -> None:
    answer = client.completions.create(**ASK, logprobs=2)
    assert_strict(answer)
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens
    assert choice.logprobs.token_logprobs
    assert choice.logprobs.top_logprobs
    assert choice.logprobs.text_offset
    assert "".join(choice.logprobs.tokens).removesuffix("<|im_end|>") == choice.text
    assert all(value <= 0 for value in choice.logprobs.token_logprobs)
    assert all(2 <= len(top) <= 3 for top in choice.logprobs.top_logprobs)


@pytest.mark.parametrize("max_tokens", [0, 1, 6])
def test_echo_with_logprobs_scores_the_prompt_as_harnesses_ask(
    client: openai.OpenAI, pool: LlamaPool, max_tokens: int
) -> None:
    asked: Any = {**ASK, "max_tokens": max_tokens}
    answer = client.completions.create(**asked, echo=True, logprobs=1)
    data = answer.model_dump(exclude_unset=True)
    scores = data["choices"][0]["logprobs"]
    assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
    for name in ("token_logprobs", "top_logprobs"):  # OpenAI's, too, is null for the first token
        scores[name] = scores[name][1:]
    assert_strict(Completion.model_construct(**data))
    assert scores["text_offset"][0] == 0
    tokens = pool.llm.tokenize("1 + 1 =", True, True)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokens)
    assert answer.usage.completion_tokens <= max_tokens
    assert len(scores["tokens"]) >= len(tokens)
    with Scorer(pool.llm.model, n_threads=1) as scorer:
        expected = scorer.logprobs(tokens)
    assert scores["token_logprobs"][: len(tokens) - 1] == pytest.approx(expected, abs=0.05)
    if max_tokens == 0:
        assert answer.choices[0].text == "1 + 1 ="
        assert answer.choices[0].finish_reason == "length"
    else:
        plain = client.completions.create(**asked).choices[0].text
        assert answer.choices[0].text == "1 + 1 =" + plain


def test_a_stop_string_is_cut_off(client: openai.OpenAI) -> None:
    whole = client.completions.create(**{**ASK, "max_tokens": 12}).choices[0].text
    stop = whole[2:4]
    cut = client.completions.create(**{**ASK, "max_tokens": 12}, stop=stop).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


@pytest.mark.behaviour("robustness: token ids outside the vocabulary are 400")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", []), ("prompt", [[]]), ("prompt", [1.5]), ("prompt", [None]),
        ("prompt", ["x", 5]), ("prompt", [[1, "x"]]), ("prompt", [1, 10**9]), ("prompt", [-1]),
        ("prompt", [[2**70]]), ("prompt", [True]), ("prompt", {"a": 1}), ("prompt", None),
        ("prompt", ["x"] * 3000), ("logprobs", 100), ("logprobs", -1), ("best_of", 0),
        ("n", -1), ("n", 129), ("suffix", "x"), ("max_tokens", 0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_400_with_their_name(url: str, field: str, value: Any) -> None:
    reply = post(f"{url}/completions", {**ASK, field: value})
    assert reply.status == 400, reply.body
    assert reply.error["type"] == "invalid_request_error"
    if field != "suffix":
        assert reply.error["param"] == field, reply.error["message"]


@pytest.mark.behaviour("completion: a prompt over the context is refused, also without the cache")
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_is_400_with_both_numbers(url: str, stream: bool) -> None:
    reply = post(f"{url}/completions", {"prompt": [5] * 600, "stream": stream})
    assert reply.status == 400
    assert (reply.error["n_prompt_tokens"], reply.error["n_ctx"]) == (600, 512)


def test_one_bad_prompt_of_several_leaves_no_request(url: str, pool: LlamaPool) -> None:
    reply = post(f"{url}/completions", {**ASK, "prompt": ["a", "b", "word " * 900]})
    assert reply.status == 400
    wait_for(lambda: n_requests(pool) == 0)


@pytest.fixture(scope="module")
def single() -> Iterator[HttpServer]:
    """A server that answers one request at a time."""
    with Llama(model_path(), n_ctx=128, n_threads=1) as llm, llm.serve() as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
def test_a_malformed_grammar_is_400_before_the_headers(
    url: str, single: HttpServer, stream: bool
) -> None:
    for base in (url, f"{single.url}/v1"):
        reply = post(f"{base}/completions", {**ASK, "grammar": "root ::= (", "stream": stream})
        assert reply.status == 400
        assert reply.error["param"] == "grammar"
        assert post(f"{base}/completions", {**ASK, "grammar": 'root ::= "7"'}).status == 200


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_echo_with_logprobs_streams_what_the_whole_has(
    url: str, single: HttpServer, max_tokens: int
) -> None:
    body = {**ASK, "prompt": TWO, "max_tokens": max_tokens, "echo": True, "logprobs": 1}
    for base in (url, f"{single.url}/v1"):
        whole = post(f"{base}/completions", body).json["choices"]
        *events, end = post(f"{base}/completions", {**body, "stream": True}).events
        assert end == "[DONE]"
        for i, choice in enumerate(whole):
            parts = [c for event in events for c in event["choices"] if c["index"] == i]
            assert "".join(part["text"] for part in parts) == choice["text"]
            assert parts[-1]["finish_reason"] == choice["finish_reason"]
            scored = [part["logprobs"] for part in parts if part["logprobs"]]
            for name, values in choice["logprobs"].items():
                found = [value for part in scored for value in part[name]]
                if name in ("tokens", "text_offset"):
                    assert found == values
                assert len(found) == len(values)


@pytest.mark.parametrize("stream", [False, True])
def test_one_slot_refuses_a_long_text_and_tokenizes_it_once(
    single: HttpServer, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def counted(vocab: Any, text: str) -> list[int]:
        seen.append(text)
        return tokenize_prompt(vocab, text)

    monkeypatch.setattr("llama_cffi.api.completions.tokenize_prompt", counted)
    for prompt, status in (("a b c", 200), ("word " * 300, 400)):
        seen.clear()
        body = {"prompt": prompt, "stream": stream, "max_tokens": 1}
        reply = post(f"{single.url}/v1/completions", body)
        assert (reply.status, seen) == (status, [prompt])
    assert reply.error["type"] == "exceed_context_size_error"
    assert reply.error["n_prompt_tokens"] >= reply.error["n_ctx"] >= 128
