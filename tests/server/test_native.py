"""POST /completion, /completions, /embedding and /embeddings, llama-server's own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from support.http_requests import get, post
from support.server_state import n_requests, wait_for

from llama_cffi import LlamaPool
from llama_cffi.demo import model_path
from llama_cffi.server.http_server import HttpServer

ASK: dict[str, Any] = {"prompt": "1 + 1 =", "n_predict": 8, "temperature": 0}
LONG = " that is long enough to be worth keeping" * 5
FINAL = {
    "index", "content", "tokens", "stop", "model", "tokens_predicted", "tokens_evaluated",
    "tokens_cached", "generation_settings", "prompt", "has_new_line", "truncated", "stop_type",
    "stopping_word", "timings",
}  # fmt: skip


@pytest.fixture(scope="module")
def one() -> Iterator[HttpServer]:
    """A server whose engine answers one request at a time."""
    with (
        LlamaPool(model_path(), n_parallel=1, n_ctx=128, n_threads=1) as pool,
        pool.serve() as server,
    ):
        yield server


@pytest.fixture(params=["scheduler", "one at a time"])
def any_server(request: pytest.FixtureRequest, server: HttpServer, one: HttpServer) -> HttpServer:
    """Each kind of engine."""
    return server if request.param == "scheduler" else one


def complete(server: HttpServer, **fields: Any) -> Any:
    reply = post(f"{server.url}/completion", {**ASK, **fields})
    assert reply.status == 200, reply.body
    return reply.json


def events_of(server: HttpServer, **fields: Any) -> list[Any]:
    reply = post(f"{server.url}/completions", {**ASK, "stream": True, **fields})
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert b"[DONE]" not in reply.body
    events: list[Any] = reply.events
    return events


def test_the_answer_is_that_of_the_python_api(server: HttpServer, pool: LlamaPool) -> None:
    whole = complete(server)
    alone: Any = pool.llm.create_completion(ASK["prompt"], max_tokens=8, temperature=0)
    assert whole["content"] == alone["choices"][0]["text"]
    assert whole["tokens_evaluated"] == alone["usage"]["prompt_tokens"]
    assert whole["tokens_predicted"] == alone["usage"]["completion_tokens"]


@pytest.mark.behaviour("completion: the joined text of a stream is that of the whole answer")
@pytest.mark.behaviour("completion: the last event of a stream has the settings and the stop_type")
def test_a_stream_joins_to_the_whole(any_server: HttpServer) -> None:
    whole = complete(any_server, return_tokens=True)
    *parts, last = events_of(any_server, return_tokens=True)
    assert whole.keys() == last.keys() == FINAL
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert [t for part in parts for t in part["tokens"]] == whole["tokens"]
    assert [part["stop"] for part in parts] == [False] * len(parts)
    assert (last["stop"], last["content"]) == (True, "")
    same = FINAL - {"content", "tokens", "timings", "generation_settings"}
    assert {name: last[name] for name in same} == {name: whole[name] for name in same}
    assert parts[-1]["tokens_predicted"] == last["tokens_predicted"]
    assert last["generation_settings"] == {**whole["generation_settings"], "stream": True}


@pytest.mark.behaviour("completion: counts, stop flags, truncated and has_new_line are right")
@pytest.mark.behaviour("completion: tokens are there with return_tokens only")
def test_counts_agree(any_server: HttpServer, pool: LlamaPool) -> None:
    whole = complete(any_server, return_tokens=True, ignore_eos=True)
    assert whole["tokens_predicted"] == len(whole["tokens"]) == 8
    assert whole["tokens_evaluated"] == len(pool.llm.tokenize(ASK["prompt"], True, True))
    assert whole["tokens_cached"] == whole["tokens_evaluated"] + 7  # not the last one
    assert (whole["stop_type"], whole["truncated"]) == ("limit", False)
    assert whole["has_new_line"] is ("\n" in whole["content"])
    assert complete(any_server)["tokens"] == []


def test_an_answer_that_the_model_ends_is_eos(any_server: HttpServer) -> None:
    eos = get(f"{any_server.url}/props").json["eos_token"]
    (token,) = post(f"{any_server.url}/tokenize", {"content": eos}).json["tokens"]
    whole = complete(any_server, n_predict=2, logit_bias=[[token, 100]], cache_prompt=False)
    assert (whole["stop_type"], whole["content"], whole["tokens_predicted"]) == ("eos", "", 0)
    assert whole["tokens_cached"] == whole["tokens_evaluated"] == whole["timings"]["prompt_n"]
    assert whole["timings"]["prompt_ms"] > 0


@pytest.mark.behaviour(
    "completion: a stop word is cut off, also when tokens split it, also in streams"
)
def test_a_stop_word_is_cut_and_named(any_server: HttpServer) -> None:
    text = complete(any_server, n_predict=16, ignore_eos=True)["content"]
    word = text[5:8]
    asked: Any = {"n_predict": 16, "ignore_eos": True, "stop": [word], "n_probs": 1}
    whole = complete(any_server, **asked)
    assert whole["content"] == text[: text.index(word)]
    assert (whole["stop_type"], whole["stopping_word"]) == ("word", word)
    *parts, last = events_of(any_server, **asked)
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert last["stopping_word"] == word
    streamed = [s for part in parts for s in part.get("completion_probabilities", [])]
    assert streamed == whole["completion_probabilities"]
    assert len(streamed) <= whole["tokens_predicted"]


def test_n_predict_0_only_evaluates(any_server: HttpServer) -> None:
    prompt = "an unusual prompt" + LONG
    whole = complete(any_server, prompt=prompt, n_predict=0, return_tokens=True)
    assert (whole["content"], whole["tokens"], whole["tokens_predicted"]) == ("", [], 0)
    assert (whole["stop_type"], whole["timings"]["predicted_n"]) == ("limit", 0)
    assert whole["tokens_cached"] == whole["tokens_evaluated"]
    assert complete(any_server, prompt=prompt)["timings"]["cache_n"] > 0
    (event,) = events_of(any_server, prompt=prompt, n_predict=0)
    assert event["stop"]


@pytest.mark.behaviour("context shift: off: n_predict -1 fills the context")
def test_without_a_limit_the_answer_fills_the_context(one: HttpServer) -> None:
    whole = complete(one, n_predict=-1, ignore_eos=True)
    assert whole["tokens_evaluated"] + whole["tokens_predicted"] >= 128
    assert (whole["stop_type"], whole["truncated"]) == ("limit", True)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_n_predict_has_aliases(server: HttpServer, name: str) -> None:
    fields = {"prompt": "once", "ignore_eos": True, "temperature": 0, name: 3}
    assert post(f"{server.url}/completion", fields).json["tokens_predicted"] == 3


@pytest.mark.behaviour("completion: a prompt can be an object with prompt_string")
@pytest.mark.behaviour("completion: a prompt is a text, ids, a list, or a mixed list")
def test_all_forms_of_a_prompt_mean_the_same(any_server: HttpServer, pool: LlamaPool) -> None:
    ids = pool.llm.tokenize(ASK["prompt"], True, True)
    rest = pool.llm.detokenize(ids[2:])
    assert pool.llm.tokenize(rest, False) == ids[2:]
    text = complete(any_server)
    forms: list[Any] = [ids, [*ids[:2], rest], {"prompt_string": ASK["prompt"]}, [ids]]
    for form in forms:
        answer = complete(any_server, prompt=form)
        assert answer["content"] == text["content"]
        assert answer["tokens_evaluated"] == len(ids)
        assert answer["prompt"] == text["prompt"]
    assert ASK["prompt"] in text["prompt"]


@pytest.mark.behaviour("completion: the answers to a list keep its order")
def test_a_list_of_prompts_gives_a_list_in_order(any_server: HttpServer, pool: LlamaPool) -> None:
    ids = pool.llm.tokenize("the weather", True, True)
    prompts: list[Any] = ["once upon", ids, {"prompt_string": "a cat"}, [*ids, " is"]]
    alone = [complete(any_server, prompt=prompt)["content"] for prompt in prompts]
    together = complete(any_server, prompt=prompts)
    assert [answer["content"] for answer in together] == alone
    assert [answer["index"] for answer in together] == [0, 1, 2, 3]
    texts = dict.fromkeys(range(4), "")
    for event in events_of(any_server, prompt=prompts):
        texts[event["index"]] += event["content"]
    assert [*texts.values()] == alone


@pytest.mark.behaviour("completion: prompt_n and cache_n sum to the prompt")
def test_timings_are_consistent_over_a_repeated_prompt(any_server: HttpServer) -> None:
    prompt = "a prompt that is asked three times" + LONG
    answers = [complete(any_server, prompt=prompt, ignore_eos=True) for _ in range(3)]
    for answer in answers:
        found = answer["timings"]
        assert all(isinstance(v, (int, float)) and math.isfinite(v) for v in found.values())
        assert found["cache_n"] + found["prompt_n"] == answer["tokens_evaluated"]
        assert found["predicted_n"] == answer["tokens_predicted"] == 8
        per_token = found["prompt_ms"] / found["prompt_n"]
        assert found["prompt_per_token_ms"] == pytest.approx(per_token)
        assert found["prompt_per_second"] == pytest.approx(1e3 / per_token)
        assert found["predicted_per_token_ms"] == pytest.approx(found["predicted_ms"] / 7)
        assert found["predicted_per_second"] == pytest.approx(7e3 / found["predicted_ms"])
    assert answers[0]["timings"]["cache_n"] < answers[1]["timings"]["cache_n"]
    assert answers[1]["timings"]["prompt_n"] == answers[2]["timings"]["prompt_n"]
    again = complete(any_server, prompt=prompt, cache_prompt=False)["timings"]
    assert again["cache_n"] == 0
    single = complete(any_server, n_predict=1, ignore_eos=True)["timings"]
    assert (single["predicted_n"], single["predicted_per_second"]) == (1, 0)


@pytest.mark.behaviour(
    "completion: the same seed gives the same text with one slot and with several"
)
def test_a_seed_repeats_the_answer_and_is_told(any_server: HttpServer) -> None:
    first = complete(any_server, temperature=1.5, seed=7)
    assert first["generation_settings"]["seed"] == 7
    assert complete(any_server, temperature=1.5, seed=7)["content"] == first["content"]
    drawn = complete(any_server, temperature=1.5)
    seed = drawn["generation_settings"]["seed"]
    assert complete(any_server, temperature=1.5, seed=seed)["content"] == drawn["content"]


def test_the_settings_are_those_that_were_used(server: HttpServer) -> None:
    given: dict[str, Any] = {
        "temperature": 0.5, "top_k": 7, "top_p": 0.5, "min_p": 0.25, "typical_p": 0.75,
        "repeat_last_n": 3, "repeat_penalty": 1.5, "mirostat": 0, "seed": 3, "n_predict": 4,
        "stop": ["zzz"], "samplers": ["top_k", "temperature"], "ignore_eos": True, "n_probs": 1,
    }  # fmt: skip
    settings = complete(server, **given)["generation_settings"]
    assert {name: settings[name] for name in given} == given


@pytest.mark.behaviour("completion: logit_bias as pairs, object, false and text")
def test_logit_bias_has_three_forms(server: HttpServer) -> None:
    first = complete(server, return_tokens=True)["tokens"][0]
    forms: list[Any] = [[[first, False]], {str(first): False}, [[first, -100]]]
    answers = [complete(server, logit_bias=form, return_tokens=True) for form in forms]
    assert all(answer["tokens"][0] != first for answer in answers)
    assert len({answer["content"] for answer in answers}) == 1
    bias = answers[0]["generation_settings"]["logit_bias"]
    assert bias == [{"token": first, "bias": None}]


def test_a_grammar_and_a_schema_are_kept(any_server: HttpServer) -> None:
    grammar = 'root ::= "yes" | "no"'
    answer = complete(any_server, grammar=grammar)
    assert answer["content"] in ("yes", "no")
    assert answer["stop_type"] == "eos"
    assert answer["generation_settings"]["grammar"] == grammar
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    answer = complete(any_server, json_schema=schema, n_predict=32)
    assert json.loads(answer["content"])["a"] in (1, 2)
    assert answer["generation_settings"]["json_schema"] == schema


@pytest.mark.behaviour("completion: n_probs gives probabilities, whole and streamed")
def test_n_probs_are_those_of_the_model(any_server: HttpServer, pool: LlamaPool) -> None:
    whole = complete(any_server, n_probs=3, return_tokens=True, ignore_eos=True)
    scores = whole["completion_probabilities"]
    assert [score["id"] for score in scores] == whole["tokens"]
    alone: Any = pool.llm.create_completion(
        ASK["prompt"], max_tokens=8, temperature=0, logprobs=3, ignore_eos=True
    )
    expected = alone["choices"][0]["logprobs"]["token_logprobs"]
    assert [score["logprob"] for score in scores] == pytest.approx(expected, abs=1e-3)
    for score in scores:
        top = score["top_logprobs"]
        assert len(top) == 3
        assert [t["logprob"] for t in top] == sorted((t["logprob"] for t in top), reverse=True)
        for token in (score, *top):
            assert bytes(token["bytes"]).decode("utf-8", "replace") == token["token"]
    parts = events_of(any_server, n_probs=3, ignore_eos=True)[:-1]
    streamed = [s for part in parts for s in part.get("completion_probabilities", [])]
    assert [score["id"] for score in streamed] == whole["tokens"]
    assert "completion_probabilities" not in complete(any_server)


@pytest.mark.behaviour("completion: response_fields picks and lifts nested fields")
def test_response_fields_pick_and_lift(server: HttpServer) -> None:
    paths = ["content", "generation_settings/n_predict", "timings/cache_n", "none", "content/none"]
    found = complete(server, response_fields=paths)
    assert [*found] == paths[:3]
    assert found["generation_settings/n_predict"] == 8
    assert [*events_of(server, response_fields=paths)[-1]] == paths[:3]
    assert complete(server, response_fields=[]).keys() == FINAL


@pytest.mark.behaviour("chat: a bad grammar is 400, and the server lives")
@pytest.mark.behaviour("completion: media for a text model are refused with a clear error")
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("prompt", None, "prompt is missing"),
        ("prompt", 3, "prompt must be"),
        ("prompt", [], "must not be empty"),
        ("prompt", [[]], "is empty"),
        ("prompt", [10**9], "does not exist"),
        ("prompt", [-1], "does not exist"),
        ("prompt", [1, None], "must be text or a token id"),
        ("prompt", [[True]], "must be text or a token id"),
        ("prompt", ["a", 3.5], "must be text, token ids"),
        ("prompt", {}, "prompt_string must be a string"),
        ("prompt", {"prompt_string": "a", "multimodal_data": ["x"]}, "no pictures and audio"),
        ("n_predict", -2, "n_predict must be at least 0"),
        ("n_predict", "3", "n_predict must be an integer"),
        ("n_probs", -1, "n_probs must be at least 0"),
        ("n", 2, "repeat the prompt in a list"),
        ("post_sampling_probs", True, "not supported"),
        ("stop", 3, "stop must be"),
        ("temperature", "hot", "temperature must be a number"),
        ("temperature", -1, "temperature"),
        ("logit_bias", [[10**9, 1]], "not a token id"),
        ("grammar", 'root ::= ("a"', "not closed"),
        ("json_schema", [1], "json_schema must be an object"),
        ("response_fields", "content", "response_fields must be a list"),
        ("return_tokens", 1, "return_tokens must be true or false"),
    ],
)
def test_what_is_wrong_is_400_before_the_headers(
    any_server: HttpServer, field: str, value: Any, words: str
) -> None:
    for stream in (False, True):
        reply = post(f"{any_server.url}/completion", {**ASK, "stream": stream, field: value})
        assert reply.status == 400, reply.body
        assert words in reply.error["message"]


@pytest.mark.behaviour("context shift: off: the message about a long prompt names the context size")
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit_is_400(any_server: HttpServer, stream: bool) -> None:
    prompts = ["short", "word " * 600]
    reply = post(f"{any_server.url}/completion", {**ASK, "prompt": prompts, "stream": stream})
    assert reply.status == 400
    assert reply.error["type"] == "exceed_context_size_error"
    assert reply.error["n_prompt_tokens"] > reply.error["n_ctx"]


def test_nothing_is_left_running_after_an_error(server: HttpServer, pool: LlamaPool) -> None:
    post(f"{server.url}/completion", {"prompt": ["short", "word " * 600], "n_predict": -1})
    wait_for(lambda: n_requests(pool) == 0)


@pytest.mark.parametrize("path", ["/embedding", "/embeddings"])
@pytest.mark.parametrize("field", ["input", "content"])
def test_embeddings_are_a_list(server: HttpServer, pool: LlamaPool, path: str, field: str) -> None:
    ids = pool.llm.tokenize("a dog", True)
    answer = post(server.url + path, {field: ["a cat", "the weather"]}).json
    assert [item["index"] for item in answer] == [0, 1]
    for item, text in zip(answer, ["a cat", "the weather"], strict=True):
        assert item.keys() == {"index", "embedding"}
        (vector,) = item["embedding"]
        assert vector == pytest.approx(pool.llm.embed(text), abs=1e-6)
    (item,) = post(server.url + path, {field: ids}).json
    assert item["embedding"][0] == pytest.approx(pool.llm.embed("a dog"), abs=1e-6)


def test_embeddings_can_keep_their_length(server: HttpServer) -> None:
    (raw,) = post(f"{server.url}/embedding", {"input": "a cat", "embd_normalize": -1}).json
    (unit,) = post(f"{server.url}/embedding", {"input": "a cat"}).json
    length = math.hypot(*raw["embedding"][0])
    assert length != pytest.approx(1, rel=1e-3)
    scaled = [x / length for x in raw["embedding"][0]]
    assert scaled == pytest.approx(unit["embedding"][0], abs=1e-5)


@pytest.mark.parametrize(
    "body",
    [{}, {"input": []}, {"input": 3}, {"content": [10**9]}, {"input": "a", "embd_normalize": 1}],
)
def test_wrong_inputs_of_embeddings_are_400(server: HttpServer, body: Any) -> None:
    reply = post(f"{server.url}/embedding", body)
    assert reply.status == 400
    assert reply.error["message"]


@pytest.mark.behaviour(
    "embeddings: without pooling each token has a raw vector, and OpenAI's route is 400"
)
def test_every_token_has_a_vector_without_pooling() -> None:
    with (
        LlamaPool(
            model_path(), n_parallel=1, n_ctx=64, n_threads=1, embeddings=True, pooling="none"
        ) as pool,
        pool.serve() as server,
    ):
        (item,) = post(f"{server.url}/embedding", {"input": "a small cat"}).json
        assert len(item["embedding"]) == len(pool.llm.tokenize("a small cat", True)) > 1
        assert {len(row) for row in item["embedding"]} == {pool.llm.model.n_embd_out}
