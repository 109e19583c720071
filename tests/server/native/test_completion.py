"""POST /completion and /completions, llama-server's own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.http_requests import get, post
from support.rounding import EXACT
from support.server_state import n_requests, wait_for
from support.split_gguf import write_split

from llama_cffi import LlamaPool
from llama_cffi.server.http_server import HttpServer

ASK: dict[str, Any] = {"prompt": "1 + 1 =", "n_predict": 8, "temperature": 0}
LONG = " that is long enough to be worth keeping" * 5
FINAL = {
    "index", "content", "tokens", "id_slot", "stop", "model", "tokens_predicted",
    "tokens_evaluated", "tokens_cached", "generation_settings", "prompt", "has_new_line",
    "truncated", "stop_type", "stopping_word", "timings",
}  # fmt: skip


@pytest.fixture(scope="module")
def one(demo_f32: Path) -> Iterator[HttpServer]:
    """A server whose engine answers one request at a time."""
    with (
        LlamaPool(demo_f32, n_parallel=1, n_ctx=128, n_threads=1, **EXACT) as pool,
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
    same = FINAL - {"content", "tokens", "timings", "generation_settings", "id_slot"}
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


@pytest.mark.behaviour("completion: other seeds give other texts")
def test_other_seeds_give_other_texts(any_server: HttpServer) -> None:
    texts = {complete(any_server, temperature=1.5, seed=seed)["content"] for seed in range(4)}
    assert len(texts) > 1


@pytest.mark.behaviour("completion: a cached prompt gives the text of a fresh one")
def test_a_cached_prompt_gives_the_text_of_a_fresh_one(any_server: HttpServer) -> None:
    asked: Any = {"prompt": "a prompt that is cached" + LONG, "ignore_eos": True}
    fresh, cached = complete(any_server, **asked), complete(any_server, **asked)
    assert cached["timings"]["cache_n"] > fresh["timings"]["cache_n"]
    again = complete(any_server, cache_prompt=False, **asked)
    assert again["timings"]["cache_n"] == 0
    assert fresh["content"] == cached["content"] == again["content"]


@pytest.mark.behaviour("completion: the batch size does not change a greedy text")
def test_the_batch_size_does_not_change_a_greedy_text(tiny_model: Path) -> None:
    texts = set()
    for n_batch in (16, 32, 64):
        with (
            LlamaPool(tiny_model, 2, n_ctx=128, n_threads=1, n_batch=n_batch, type_k="f32",
                      type_v="f32") as pool,
            pool.serve() as server,
        ):  # fmt: skip
            asked: Any = {"prompt": [5, 6, 7, 8] * 15, "ignore_eos": True}
            texts.add(complete(server, **asked)["content"])
    assert len(texts) == 1


@pytest.mark.behaviour("basics: a GGUF in several files is loaded and answers")
def test_a_gguf_in_several_files_answers(tmp_path: Path, tiny_model: Path) -> None:
    first, *_ = write_split(tmp_path)
    texts = set()
    for path in (first, tiny_model):
        with LlamaPool(path, 1, n_ctx=64, n_threads=1) as pool, pool.serve() as server:
            texts.add(complete(server, prompt=[5, 6, 7], ignore_eos=True)["content"])
    assert len(texts) == 1


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
    answer = complete(any_server, json_schema=schema, n_predict=128)
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


@pytest.mark.behaviour("completion: post_sampling_probs are above 0, and sum to 1 where fewer come")
def test_post_sampling_probs_are_those_of_the_draw(any_server: HttpServer) -> None:
    asked: Any = {"n_probs": 9, "temperature": 1.0, "top_k": 4, "seed": 5, "ignore_eos": True}
    plain = complete(any_server, **asked)
    whole = complete(any_server, post_sampling_probs=True, **asked)
    assert whole["content"] == plain["content"]
    scores = whole["completion_probabilities"]
    assert len(scores) == 8
    for score in scores:
        probs = [t["prob"] for t in score["top_probs"]]
        assert 1 <= len(probs) <= 4
        assert probs == sorted(probs, reverse=True)
        assert sum(probs) == pytest.approx(1, abs=1e-5)  # fewer than n_probs only as these are all
        assert all(0 < p <= 1 for p in [score["prob"], *probs])
        assert score["prob"] == pytest.approx(
            next(t["prob"] for t in score["top_probs"] if t["id"] == score["id"])
        )
    parts = events_of(any_server, post_sampling_probs=True, **asked)[:-1]
    streamed = [s for part in parts for s in part.get("completion_probabilities", [])]
    assert [score["id"] for score in streamed] == [score["id"] for score in scores]
    greedy = complete(any_server, n_probs=3, post_sampling_probs=True, n_predict=1)
    (score,) = greedy["completion_probabilities"]
    assert (score["prob"], [t["prob"] for t in score["top_probs"]]) == (1.0, [1.0])


def test_n_answers_share_a_prompt_and_differ_by_seed(any_server: HttpServer) -> None:
    asked: Any = {"temperature": 1.5, "seed": 3, "ignore_eos": True}
    answers = complete(any_server, n_cmpl=3, **asked)
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    assert [answer["generation_settings"]["seed"] for answer in answers] == [3, 4, 5]
    alone = [complete(any_server, **{**asked, "seed": 3 + i})["content"] for i in range(3)]
    assert [answer["content"] for answer in answers] == alone
    both = complete(any_server, prompt=["once", "the sun"], n=2, **asked)
    assert [answer["index"] for answer in both] == [0, 1, 2, 3]
    assert "once" in both[1]["prompt"]
    assert "sun" in both[2]["prompt"]


def test_answers_of_one_stream_come_as_they_are_generated(server: HttpServer) -> None:
    asked: Any = {"n_predict": 64, "ignore_eos": True}
    events = events_of(server, prompt=["once upon", "the weather"], n=2, **asked)
    order = [event["index"] for event in events]
    assert sorted({*order}) == [0, 1, 2, 3]
    first_end = next(i for i, event in enumerate(events) if event["stop"])
    assert {*order[:first_end]} == {0, 1, 2, 3}
    texts = dict.fromkeys(range(4), "")
    for event in events:
        texts[event["index"]] += event["content"]
    assert texts[0] == texts[1] == complete(server, prompt="once upon", **asked)["content"]


@pytest.mark.behaviour(
    "chat: return_progress counts from the cached tokens to all of the prompt",
)
@pytest.mark.behaviour("metrics: prompt progress starts at time 0 and never goes back")
def test_return_progress_tells_each_batch_of_the_prompt(any_server: HttpServer) -> None:
    prompt = "a prompt whose progress is told" + LONG
    for i in range(2):
        events = events_of(any_server, prompt=prompt, return_progress=True)
        told = [event["prompt_progress"] for event in events if "prompt_progress" in event]
        assert events[len(told) - 1].keys() >= {"prompt_progress"}  # before all tokens
        assert [*told[0]] == ["total", "cache", "processed", "time_ms"]
        assert told[0]["processed"] == told[0]["cache"]
        assert told[-1]["processed"] == told[-1]["total"] == events[-1]["tokens_evaluated"]
        assert {(p["total"], p["cache"]) for p in told} == {(told[0]["total"], told[0]["cache"])}
        times = [p["time_ms"] for p in told]
        assert times == sorted(times)
        assert times[0] >= 0
        assert bool(told[0]["cache"]) is bool(i)
        assert events[-1]["timings"]["cache_n"] == told[0]["cache"]
    plain = events_of(any_server, prompt=prompt)
    assert not any("prompt_progress" in event for event in plain)


def test_timings_per_token_grow(any_server: HttpServer) -> None:
    *parts, last = events_of(any_server, timings_per_token=True, ignore_eos=True)
    found = [part["timings"] for part in parts]
    assert [t["predicted_n"] for t in found] == [*range(1, 9)]
    assert len({t["prompt_n"] + t["cache_n"] for t in [*found, last["timings"]]}) == 1
    spent = [t["predicted_ms"] for t in found]
    assert spent == sorted(spent)
    assert all(t["prompt_ms"] > 0 for t in found)
    assert not any("timings" in part for part in events_of(any_server)[:-1])


def test_t_max_predict_ms_ends_an_answer_that_has_a_line(any_server: HttpServer) -> None:
    grammar = 'root ::= "ab\\ncd" [a-z]{200}'
    asked: Any = {"grammar": grammar, "n_predict": 60, "n_probs": 1, "t_max_predict_ms": 1}
    whole = complete(any_server, **asked)
    assert whole["has_new_line"]
    assert (whole["stop_type"], whole["truncated"]) == ("limit", False)
    assert whole["tokens_predicted"] < 60
    assert whole["timings"]["predicted_n"] == whole["tokens_predicted"]
    endless: Any = {**asked, "n_predict": 20, "grammar": "root ::= [a-z]{200}"}
    assert complete(any_server, **endless)["tokens_predicted"] == 20  # no line


@pytest.mark.behaviour("ignore_eos: on: the settings list every end token as forbidden")
@pytest.mark.behaviour("ignore_eos: off: the list is empty")
def test_ignore_eos_lists_every_end_token_with_minus_infinity(
    any_server: HttpServer, pool: LlamaPool
) -> None:
    bias = complete(any_server, ignore_eos=True)["generation_settings"]["logit_bias"]
    ends = pool.llm.model.vocab.eog_tokens
    assert bias == [{"token": token, "bias": None} for token in ends]
    assert ends
    assert complete(any_server)["generation_settings"]["logit_bias"] == []


def test_samplers_have_names_and_letters(server: HttpServer) -> None:
    forms: list[Any] = ["kpt", ["top_k", "top_p", "temperature"], "top_k;top_p;temperature"]
    for form in forms:
        settings = complete(server, samplers=form)["generation_settings"]
        assert settings["samplers"] == ["top_k", "top_p", "temperature"]


@pytest.mark.behaviour("completion: logit_bias as pairs, object, false and text")
def test_logit_bias_may_name_text(server: HttpServer, pool: LlamaPool) -> None:
    tokens = pool.llm.tokenize("yes", False)
    forms: list[Any] = [{"yes": False}, [["yes", False]]]
    for form in forms:
        bias = complete(server, logit_bias=form)["generation_settings"]["logit_bias"]
        assert bias == [{"token": token, "bias": None} for token in dict.fromkeys(tokens)]


def test_id_slot_is_a_hint_and_told(any_server: HttpServer) -> None:
    whole = complete(any_server, id_slot=0)
    assert 0 <= whole["id_slot"] < 4
    *parts, last = events_of(any_server, id_slot=1)
    assert {part["id_slot"] for part in parts} == {last["id_slot"]}


@pytest.mark.behaviour(
    "completion: more requests than slots all finish, and no more run than there are slots"
)
def test_more_prompts_than_slots_all_finish(server: HttpServer, pool: LlamaPool) -> None:
    prompts = [f"number {i} is" for i in range(9)]
    answers = complete(server, prompt=prompts, ignore_eos=True)
    assert [answer["tokens_predicted"] for answer in answers] == [8] * 9
    assert {answer["id_slot"] for answer in answers} <= {*range(4)}


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
        ("prompt", {"prompt_string": "a", "multimodal_data": ["x"]}, "0 times <__media__>"),
        ("prompt", {"prompt_string": "<__media__> a"}, "1 times <__media__>"),
        ("prompt", {"prompt_string": "<__media__> a", "multimodal_data": ["x"]}, "text only"),
        ("prompt", {"prompt_string": "a", "multimodal_data": "x"}, "must be a list of base64"),
        ("n_predict", -2, "n_predict must be at least 0"),
        ("n_predict", "3", "n_predict must be an integer"),
        ("n_probs", -1, "n_probs must be at least 0"),
        ("n", 0, "n must be from 1"),
        ("n_cmpl", 129, "n must be from 1"),
        ("post_sampling_probs", 1, "must be true or false"),
        ("return_progress", "yes", "must be true or false"),
        ("timings_per_token", 3, "must be true or false"),
        ("t_max_predict_ms", "1", "must be an integer"),
        ("n_indent", 2, "n_indent is not supported"),
        ("id_slot", "a", "id_slot must be an integer"),
        ("samplers", "kq", "samplers"),
        ("lora", {}, "lora must be a list"),
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
