"""`Llama.parse`: values of Python types, checked by pydantic; `nox -s structured` does more."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pydantic
import pytest
from support.python_types import TYPES
from support.rounding import ever_shorter
from support.schemas import REFUSED

from llama_cffi import GrammarError, Llama, ValidationError
from llama_cffi.demo import model_path
from llama_cffi.schema import json_schema, parse_json

HOT: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "min_p": 0.0, "frequency_penalty": 1.0}


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(model_path(), n_ctx=512, n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def with_tools() -> Iterator[Llama]:
    with Llama(model_path(), n_ctx=1024, n_threads=1) as llm:  # tool definitions are long
        yield llm


@pytest.mark.parametrize("name", TYPES)
def test_values_equal_those_of_pydantic(llm: Llama, name: str) -> None:
    adapter = pydantic.TypeAdapter(TYPES[name])
    for seed, bias in enumerate(ever_shorter(llm.model.vocab)):
        try:
            value = llm.parse("Answer", TYPES[name], seed=seed, logit_bias=bias, **HOT)
        except ValidationError:
            assert llm.engine.stats.finish_reason == "context"  # for example an endless list
            continue
        adapter.validate_python(value, strict=True)
        return
    pytest.fail("no answer came to an end")


@pytest.mark.parametrize("name", TYPES)
def test_tool_arguments_have_the_type(with_tools: Llama, name: str) -> None:
    def tool(x):  # type: ignore[no-untyped-def]
        """Answer."""

    tool.__annotations__["x"] = TYPES[name]
    arguments = dataclasses.make_dataclass("arguments", [("x", TYPES[name])])
    for seed, bias in enumerate(ever_shorter(with_tools.model.vocab)):
        choice = with_tools.create_chat_completion(
            [{"role": "user", "content": "Answer"}],
            tools=[tool],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=400,
            seed=seed,
            logit_bias=bias,
            **HOT,
        )["choices"][0]
        if choice["finish_reason"] == "length":
            continue
        (call,) = choice["message"]["tool_calls"]
        value: Any = parse_json(arguments, call["function"]["arguments"]).x
        pydantic.TypeAdapter(TYPES[name]).validate_python(value, strict=True)
        return
    pytest.fail("no answer came to an end")


def test_answers_are_parsed_like_pydantic(llm: Llama, monkeypatch: Any) -> None:
    documents: list[str] = []
    create = llm.create_chat_completion

    def recorded(*args: Any, **options: Any) -> Any:
        answer = create(*args, **options)
        documents.append(answer["choices"][0]["message"]["content"])
        return answer

    monkeypatch.setattr(llm, "create_chat_completion", recorded)
    *_, bias = ever_shorter(llm.model.vocab)
    for name in ("pydantic, nested", "tuple", "dataclass", "constrained fields", "datetime"):
        value = llm.parse("Answer", TYPES[name], seed=1, logit_bias=bias, **HOT)
        assert value == pydantic.TypeAdapter(TYPES[name]).validate_json(documents.pop())


@dataclass
class Command:
    action: str
    device: str
    room: str
    done: bool


def test_parse_returns_the_right_answer(llm: Llama) -> None:
    value = llm.parse("Turn on the lamp in the kitchen.", Command, temperature=0)
    assert value == Command("turn_on", "lamp", "kitchen", True)
    assert llm.parse("What is 17 + 25?", int, temperature=0) == 42
    conversation = [{"role": "user", "content": "What is 17 + 25?"}]
    assert llm.parse(conversation, float, temperature=0) == 42.0


def test_truncated_answer(llm: Llama) -> None:
    with pytest.raises(ValidationError, match=r"truncated .*max_tokens"):
        llm.parse("Turn on the lamp in the kitchen.", Command, max_tokens=3)


def test_types_without_json_are_refused_before_generation(llm: Llama) -> None:
    before = llm.engine.stats
    with pytest.raises(ValidationError, match="complex"):
        llm.parse("Answer", complex)
    assert llm.engine.stats is before


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("schema", "says"), REFUSED, ids=str)
def test_unenforceable_schemas_are_refused_before_generation(
    llm: Llama, schema: Any, says: str, stream: bool
) -> None:
    before = llm.engine.stats
    with pytest.raises(GrammarError):
        llm.create_chat_completion(
            [{"role": "user", "content": "Answer"}],
            response_format={"type": "json_schema", "json_schema": {"schema": schema}},
            stream=stream,
        )
    assert llm.engine.stats is before


@pytest.mark.parametrize(
    "response_format",
    ["json", {"type": "json"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": 5}],
    ids=str,
)
def test_invalid_response_formats(llm: Llama, response_format: Any) -> None:
    with pytest.raises(ValidationError, match="response_format"):
        llm.create_chat_completion(
            [{"role": "user", "content": "Answer"}], response_format=response_format
        )


def test_parse_does_not_stream(llm: Llama) -> None:
    with pytest.raises(ValidationError, match="does not support stream"):
        llm.parse("Answer", int, stream=True)


def test_json_object_response_format(llm: Llama) -> None:
    messages = [{"role": "user", "content": "Turn on the lamp in the kitchen."}]
    answer = llm.create_chat_completion(
        messages, response_format={"type": "json_object"}, temperature=0
    )
    assert json.loads(answer["choices"][0]["message"]["content"])["device"] == "lamp"


@pytest.mark.parametrize("within", ["json_object", "json_schema"])
def test_a_response_has_no_names_that_the_schema_lacks(llm: Llama, within: str) -> None:
    n = {"type": "object", "properties": {"n": {"enum": [41, 42]}}, "required": ["n"]}
    schema = {"type": "object", "properties": {"in": n}, "required": ["in"]}
    form: dict[str, Any] = {"type": within}
    form |= {"schema": schema} if within == "json_object" else {"json_schema": {"schema": schema}}
    for seed in range(3):
        answer = llm.create_chat_completion(
            [{"role": "user", "content": "Answer"}], response_format=form, seed=seed, **HOT
        )["choices"][0]
        assert json.loads(answer["message"]["content"])["in"] in ({"n": 41}, {"n": 42})


def test_sets_are_enforced_where_items_can_be_listed(llm: Llama) -> None:
    for type_ in (set[Literal["a", "b", 3]], frozenset[bool]):
        value: Any = llm.parse("Answer", type_, seed=1, **HOT)
        pydantic.TypeAdapter(type_).validate_python(value, strict=True)
        choice = llm.create_chat_completion(
            [{"role": "user", "content": "Answer"}],
            response_format={"type": "json_object", "schema": json_schema(type_)},
            seed=2,
            **HOT,
        )["choices"][0]
        items = json.loads(choice["message"]["content"])
        assert len(items) == len({repr(item) for item in items})
