"""The shapes of decisions: the types of OpenAI's client in strict mode, and System One's."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types import Decision
from pydantic import TypeAdapter
from support.http_requests import post

from llama_cffi import (
    ChoiceQuestion,
    InferenceEngine,
    LlamaPool,
    Option,
    PredicateQuestion,
    ScoreQuestion,
    ValidationError,
    demo,
)
from llama_cffi.decisions import Decided, prepare, run
from llama_cffi.server.decisions import (
    openai_request,
    openai_response,
    systemone_request,
    systemone_response,
)

QUESTIONS = [
    {"type": "predicate", "instructions": "A refund is requested.", "name": "refund"},
    {
        "type": "choice",
        "instructions": [{"type": "input_text", "text": "Which team?"}],
        "choices": [{"value": "billing", "description": "money"}, {"value": True}],
    },
    {
        "type": "score",
        "name": "anger",
        "instructions": "How angry?",
        "levels": [{"label": "calm"}, {"label": "cross", "description": "a bit"}],
    },
]
ASKED = [
    PredicateQuestion("A refund is requested.", name="refund"),
    ChoiceQuestion("Which team?", [Option("billing", "money"), True]),
    ScoreQuestion("How angry?", {"calm": None, "cross": "a bit"}, name="anger"),
]
SYSTEMONE = {
    "refund": {"type": "noul", "instructions": "Is a refund requested?"},
    "late": {"type": "noul", "criteria": {"true": "over a week", "false": None}},
    "team": {
        "type": "choice",
        "instructions": {"ask": "Which team?"},
        "criteria": {"billing": "money", "tech": None},
    },
    "anger": {"type": "score", "instructions": "How angry?", "criteria": ["calm", {"level": 2}]},
}


def decide(request: tuple[Any, Any]) -> Decided:
    with InferenceEngine(demo.model_path(), 2, 512, n_threads=1) as engine:
        input, questions = request
        return run(engine, prepare(engine, [input], questions, {}))[0]


def test_a_request_of_openai_is_read() -> None:
    assert openai_request({"model": "m", "input": "Hi", "questions": QUESTIONS}) == ("Hi", ASKED)


def test_messages_and_tool_calls_become_a_conversation() -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Look:"},
                {"type": "input_json", "data": {"a": ["ä"]}},
            ],
        },
        {"type": "function_call", "call_id": "1", "name": "get", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": "1", "output": "17"},
        {"type": "custom_tool_call", "call_id": "2", "name": "run", "input": "ls"},
        {
            "type": "custom_tool_call_output",
            "call_id": "2",
            "output": [{"type": "input_text", "text": "a.txt"}],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]

    def call(id: str, name: str, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        calls = [{"id": id, "type": "function", "function": function}]
        return {"role": "assistant", "content": None, "tool_calls": calls}

    assert openai_request({"input": items, "questions": QUESTIONS})[0] == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": 'Look:\n{"a": ["ä"]}'},
        call("1", "get", '{"x": 1}'),
        {"role": "tool", "tool_call_id": "1", "content": "17"},
        call("2", "run", '{"input": "ls"}'),
        {"role": "tool", "tool_call_id": "2", "content": "a.txt"},
        {"role": "assistant", "content": "No."},
    ]
    decided = decide(openai_request({"input": items, "questions": QUESTIONS}))
    assert len(decided.answers) == 3


def test_the_response_is_openais_type_with_no_field_more_or_less() -> None:
    decided = decide(openai_request({"input": "Hi", "questions": QUESTIONS}))
    response = openai_response(decided, "the-model")
    parsed = TypeAdapter(Decision).validate_python(response, strict=True)
    assert parsed.model_dump() == response
    assert [answer.type for answer in parsed.answers] == ["predicate", "choice", "score"]
    predicate, choice, score = response["answers"]  # type: ignore[misc]
    assert [a["name"] for a in (predicate, choice, score)] == ["refund", None, "anger"]
    assert [p["value"] for p in choice["probabilities"]] == ["billing", True]
    assert [(p["label"], p["value"]) for p in score["probabilities"]] == [("calm", 0), ("cross", 1)]
    usage: Any = response["usage"]
    assert usage["input_tokens"] == usage["total_tokens"] == decided.n_prompt > 0
    assert usage["output_tokens"] == usage["input_tokens_details"]["cached_tokens"] == 0


def test_system_one_is_read_and_answered_in_the_callers_order() -> None:
    state, questions = systemone_request({"state": {"text": "Hi"}, "questions": SYSTEMONE})
    assert state == {"text": "Hi"}
    assert questions == [
        PredicateQuestion("Is a refund requested?", name="refund"),
        PredicateQuestion("", true="over a week", name="late"),
        ChoiceQuestion('{"ask": "Which team?"}', {"billing": "money", "tech": ""}, name="team"),
        ScoreQuestion("How angry?", ["calm", '{"level": 2}'], name="anger"),
    ]
    decided = decide((state, questions))
    response: Any = systemone_response(decided, "m")
    answers = response["answers"]
    assert [*answers] == ["refund", "late", "team", "anger"]
    assert answers["refund"] == {"type": "noul", "noul": decided.answers[0].probability}  # type: ignore[attr-defined]
    assert [*answers["team"]] == ["type", "choice", "confidence", "probabilities"]
    assert [*answers["team"]["probabilities"]] == ["billing", "tech"]
    assert answers["anger"]["legend"] == {"0": "calm", "1": '{"level": 2}'}
    assert [*answers["anger"]["probabilities"]] == ["0", "1"]
    assert response["usage"] == {"input_tokens": decided.n_prompt, "output_tokens": 0}


def test_a_state_of_messages_is_a_conversation() -> None:
    state = [{"role": "user", "content": "Hi"}]
    assert systemone_request({"state": state, "questions": SYSTEMONE})[0] == state


@pytest.mark.behaviour(
    "decisions: every shape of question is answered, in OpenAI's and System One's form"
)
def test_the_official_client_decides(client: openai.OpenAI, url: str, pool: LlamaPool) -> None:
    created = client.decisions.create(model="demo", input="Hi", questions=QUESTIONS)  # type: ignore[arg-type]
    alone: Any = pool.llm.decide("Hi", ASKED)
    predicate, choice, score = created.answers
    assert predicate.type == "predicate"
    assert choice.type == "choice"
    assert score.type == "score"
    assert predicate.probability == pytest.approx(alone[0].probability, abs=1e-3)
    assert choice.choice == alone[1].choice
    assert score.score == pytest.approx(alone[2].score, abs=1e-3)
    assert created.model == "demo"
    body = post(f"{url}/decisions", {"input": "Hi", "questions": QUESTIONS}).json
    assert Decision.model_validate(body, strict=True).model_dump() == body


@pytest.mark.behaviour(
    "decisions: every shape of question is answered, in OpenAI's and System One's form"
)
def test_system_one_over_http(url: str) -> None:
    reply = post(f"{url}/systemone", {"state": "Hi", "questions": SYSTEMONE})
    assert (reply.status, [*reply.json["answers"]]) == (200, [*SYSTEMONE])
    both = post(f"{url}/systemone", {"state": "Hi", "questions": SYSTEMONE, "average_orders": True})
    assert both.json["usage"]["input_tokens"] > reply.json["usage"]["input_tokens"]


@pytest.mark.behaviour("decisions: 400, 413 and 422 tell what is wrong")
@pytest.mark.parametrize(
    ("path", "body", "status", "type"),
    [
        ("decisions", {"input": "Hi"}, 400, "invalid_request_error"),
        ("decisions", {"input": "Hi", "questions": 5}, 400, "invalid_request_error"),
        ("decisions", {"input": "x " * 600, "questions": QUESTIONS}, 400,
         "exceed_context_size_error"),
        ("decisions", {"input": "Hi", "questions": QUESTIONS, "average_orders": "x"}, 400,
         "invalid_request_error"),
        ("systemone", {"state": "Hi"}, 422, "unprocessable_entity_error"),
        ("systemone", {"state": "Hi", "questions": 5}, 422, "unprocessable_entity_error"),
        ("systemone", {"state": 5, "questions": SYSTEMONE}, 422, "unprocessable_entity_error"),
        ("systemone", {"state": "Hi", "questions": {f"{i}": {} for i in range(4097)}}, 413,
         "request_too_large_error"),
    ],
)  # fmt: skip
def test_a_wrong_request_has_a_status_and_a_message(
    url: str, path: str, body: object, status: int, type: str
) -> None:
    reply = post(f"{url}/{path}", body)
    assert (reply.status, reply.json["error"]["type"]) == (status, type)
    assert reply.json["error"]["message"]


def openai_question(**changes: object) -> dict[str, object]:
    return {"input": "Hi", "questions": [{**QUESTIONS[1], **changes}]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "input is missing"),
        ({"input": 5, "questions": QUESTIONS}, "input must be a string or a list, got 5"),
        ({"input": [], "questions": QUESTIONS}, "input must not be empty"),
        ({"input": ["Hi"], "questions": QUESTIONS}, r"input\[0\] must be an object"),
        ({"input": [{"role": "user"}], "questions": QUESTIONS}, r"input\[0\].content is missing"),
        ({"input": [{"type": "x"}], "questions": QUESTIONS}, r"input\[0\].type='x' is not one of"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": ""}],
          "questions": QUESTIONS}, r"input\[0\].call_id: no call before it has the id '1'"),
        ({"input": [{"role": "user", "content": [{"type": "input_video", "video_url": "x"}]}],
          "questions": QUESTIONS}, r"input\[0\].content\[0\].type='input_video' is not one of"),
        ({"input": "Hi"}, "questions is missing"),
        ({"input": "Hi", "questions": {}}, "questions must be a list"),
        ({"input": "Hi", "questions": []}, "1 to 400 questions, got 0"),
        ({"input": "Hi", "questions": QUESTIONS[:1] * 401}, "1 to 400 questions, got 401"),
        ({"input": "Hi", "questions": ["x"]}, r"questions\[0\] must be an object"),
        (openai_question(type="noul"), r"questions\[0\].type='noul' is not one of predicate"),
        (openai_question(instructions=None), r"questions\[0\].instructions is missing"),
        (openai_question(name=5), r"questions\[0\].name must be a string, got 5"),
        (openai_question(choices=None), r"questions\[0\].choices is missing"),
        (openai_question(choices=[{"value": "a"}]), r"choices: .*2 to 255 of them, got 1"),
        (openai_question(choices=[{"value": 1}]), r"choices\[0\].value must be a string or true"),
        (openai_question(choices=[{}]), r"choices\[0\].value is missing"),
        (openai_question(choices=[{"value": "a"}] * 2), r"'a' is there twice"),
    ],
)  # fmt: skip
def test_a_wrong_request_of_openai_names_the_field(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        openai_request(body)


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "questions must be an object"),
        ({}, "at least one question"),
        ({"q": 5}, "questions.q must be an object"),
        ({"q": {}}, "questions.q.type is missing"),
        ({"q": {"type": "predicate"}}, "questions.q.type='predicate' is not one of noul"),
        ({"q": {"type": "choice"}}, "questions.q.criteria is missing"),
        ({"q": {"type": "choice", "criteria": ["a"]}}, "questions.q.criteria must be an object"),
        ({"q": {"type": "choice", "criteria": {"a": None}}}, "criteria: .*2 to 255 of them, got 1"),
        ({"q": {"type": "score", "criteria": {"a": "b"}}}, "questions.q.criteria must be a list"),
        ({"q": {"type": "score", "criteria": ["x"] * 11}}, "at most 10 levels, got 11"),
        ({"q": {"type": "noul", "criteria": {"maybe": ""}}}, "'maybe' is not one of true, false"),
    ],
)
def test_a_wrong_request_of_system_one_names_the_field(questions: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        systemone_request({"state": "x", "questions": questions})
