"""Typed decisions: OpenAI's POST /v1/decisions and System One's POST /v1/systemone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute

from ..api.aio import whole_async
from ..decisions import (
    Answer,
    ChoiceAnswer,
    ChoiceQuestion,
    Decided,
    DecisionInput,
    DecisionOptions,
    Option,
    PredicateAnswer,
    PredicateQuestion,
    Question,
    ScoreAnswer,
    ScoreQuestion,
    prepare,
    run,
    run_async,
)
from ..decisions.inputs import is_conversation
from ..errors import ValidationError
from ..validation import check_choice
from .body import BOOL, take
from .call import Answer as Response
from .call import Call, Endpoint, Json
from .errors import ApiError
from .lora import use_adapters
from .media import PlacedPart, load_messages
from .paths import post

__all__ = [
    "openai_request",
    "openai_response",
    "routes",
    "systemone_request",
    "systemone_response",
]

Object = Mapping[str, Any]

_MAX_QUESTIONS = 400
_MAX_SYSTEMONE_QUESTIONS = 4096
_MAX_SYSTEMONE_LEVELS = 10
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_TEXTS = ("input_text", "text", "output_text", "refusal", "input_json")
_MEDIA = ("input_image", "input_audio")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [*post("/decisions", Endpoint(_openai)), *post("/systemone", Endpoint(_systemone))]


async def _openai(call: Call) -> Response:
    input, questions = openai_request(call.body)
    return Json(openai_response(await _decided(call, input, questions), call.model.name))


async def _systemone(call: Call) -> Response:
    questions_given = call.body.get("questions")
    n = len(questions_given) if isinstance(questions_given, (dict, list)) else 0
    if n > _MAX_SYSTEMONE_QUESTIONS:
        message = f"questions has {n} items; at most {_MAX_SYSTEMONE_QUESTIONS} are allowed"
        raise ApiError(413, message, "request_too_large_error", param="questions")
    try:
        state, questions = systemone_request(call.body)
    except ValidationError as error:
        raise ApiError(422, str(error), "unprocessable_entity_error") from None
    return Json(systemone_response(await _decided(call, state, questions), call.model.name))


async def _decided(call: Call, input: DecisionInput, questions: list[Question[Answer]]) -> Decided:
    """Answer the questions; `average_orders` is an extension of both APIs."""
    given = take(call.body, {"average_orders": BOOL})
    options: DecisionOptions = {"average_orders": given.get("average_orders", False)}
    model = call.model
    engine: Any = model.llm.engine
    use_adapters(call)
    if is_conversation(input):
        input = await load_messages(call, input)
    prepared = await asyncio.to_thread(prepare, engine, [input], questions, options)
    call.admit(model)
    if hasattr(engine, "submit"):
        return (await run_async(engine, prepared))[0]
    return (await whole_async(lambda: run(engine, prepared)))[0]


def openai_request(body: Object) -> tuple[DecisionInput, list[Question[Answer]]]:
    """Return the input and the questions of a request to /v1/decisions.

    Raises:
        ValidationError: A field has the wrong type or value; the message begins with its path.
    """
    given = _field(body, "input", "", (str, list))
    questions = _field(body, "questions", "", list)
    if not 1 <= len(questions) <= _MAX_QUESTIONS:
        raise ValidationError(
            f"questions must be 1 to {_MAX_QUESTIONS} questions, got {len(questions)}"
        )
    input = given if isinstance(given, str) else _messages(given)
    return input, [_openai_question(q, f"questions[{i}]") for i, q in enumerate(questions)]


def openai_response(decided: Decided, model: str) -> dict[str, object]:
    """Return the response of /v1/decisions.

    Args:
        decided: The answers.
        model: The name of the model.
    """
    return {
        "answers": [_openai_answer(answer) for answer in decided.answers],
        "model": model,
        "usage": {
            "input_tokens": decided.n_prompt,
            "input_tokens_details": {
                "cached_tokens": decided.n_reused,
                "cache_write_tokens": decided.n_prompt - decided.n_reused,
            },
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": decided.n_prompt,
        },
    }


def systemone_request(body: Object) -> tuple[DecisionInput, list[Question[Answer]]]:
    """Return the state and the questions of a request to /v1/systemone.

    Raises:
        ValidationError: See `openai_request`.
    """
    state = _field(body, "state", "", (str, dict, list))
    questions = _field(body, "questions", "", dict)
    if not questions:
        raise ValidationError("questions must have at least one question")
    return state, [_systemone_question(name, q) for name, q in questions.items()]


def systemone_response(decided: Decided, model: str) -> dict[str, object]:
    """Return the response of /v1/systemone, with the answers in the order of the questions.

    Args:
        decided: The answers.
        model: The name of the model.
    """
    return {
        "model": model,
        "answers": {answer.name: _systemone_answer(answer) for answer in decided.answers},
        "usage": {"input_tokens": decided.n_prompt, "output_tokens": 0},
    }


# OpenAI


def _openai_question(given: object, where: str) -> Question[Answer]:
    question = _object(given, where)
    kind = _kind(question, where, ("predicate", "choice", "score"))
    about = _text(_field(question, "instructions", where, (str, list)), f"{where}.instructions")
    name = _field(question, "name", where, str, "")
    if kind == "predicate":
        return PredicateQuestion(about, name=name)
    field, value = ("choices", "value") if kind == "choice" else ("levels", "label")
    kinds = (str, bool) if kind == "choice" else str
    options = []
    for i, item in enumerate(_field(question, field, where, list)):
        place = f"{where}.{field}[{i}]"
        option = _object(item, place)
        about_option = _field(option, "description", place, str, "")
        options.append(Option(_field(option, value, place, kinds), about_option))
    try:
        if kind == "choice":
            return ChoiceQuestion(about, options, name=name)
        return ScoreQuestion(about, options, name=name)
    except ValidationError as error:
        raise ValidationError(f"{where}.{field}: {error}") from None


def _openai_answer(answer: Answer) -> dict[str, object]:
    name = answer.name or None
    if isinstance(answer, PredicateAnswer):
        return {"type": "predicate", "name": name, "probability": answer.probability}
    if isinstance(answer, ChoiceAnswer):
        return {
            "type": "choice",
            "name": name,
            "choice": answer.choice,
            "confidence": answer.confidence,
            "probabilities": [
                {"value": value, "probability": p} for value, p in answer.probabilities.items()
            ],
        }
    assert isinstance(answer, ScoreAnswer)
    return {
        "type": "score",
        "name": name,
        "score": answer.score,
        "confidence": answer.confidence,
        "probabilities": [
            {"label": label, "value": i, "probability": p}
            for i, (label, p) in enumerate(answer.probabilities.items())
        ],
    }


def _messages(items: Sequence[object]) -> list[Object]:
    """Return messages and tool calls as a conversation."""
    if not items:
        raise ValidationError("input must not be empty")
    messages: list[Object] = []
    called: set[str] = set()
    for i, given in enumerate(items):
        where = f"input[{i}]"
        item = _object(given, where)
        kind = _kind(item, where, ("message", *_CALLS, *_OUTPUTS), "message")
        if kind == "message":
            content = _field(item, "content", where, (str, list))
            role = _field(item, "role", where, str)
            messages.append({"role": role, "content": _parts(content, f"{where}.content")})
            continue
        call_id = _field(item, "call_id", where, str)
        if kind in _CALLS:
            called.add(call_id)
            arguments = _field(item, _CALLS[kind], where, str)
            if kind == "custom_tool_call":
                arguments = json.dumps({"input": arguments}, ensure_ascii=False)
            function = {"name": _field(item, "name", where, str), "arguments": arguments}
            call = {"id": call_id, "type": "function", "function": function}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            continue
        if call_id not in called:
            raise ValidationError(f"{where}.call_id: no call before it has the id {call_id!r:.60}")
        output = _parts(_field(item, "output", where, (str, list)), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": call_id, "content": output})
    return messages


def _parts(content: str | Sequence[object], where: str) -> str | list[Object]:
    """Return parts of text and JSON as one text; a list of parts if there are others."""
    if isinstance(content, str):
        return content
    parts: list[Object] = []
    for i, given in enumerate(content):
        place = f"{where}[{i}]"
        part = _object(given, place)
        kind = _kind(part, place, (*_TEXTS, *_MEDIA))
        if kind in _MEDIA:
            parts.append(PlacedPart(part, place))
            continue
        if kind == "input_json":
            text = _as_json(_field(part, "data", place, (dict, list)))
        else:
            text = _field(part, "refusal" if kind == "refusal" else "text", place, str)
        if parts and "text" in parts[-1]:
            text = f"{parts.pop()['text']}\n{text}"
        parts.append({"type": "text", "text": text})
    is_text = len(parts) < 2 and not any(isinstance(part, PlacedPart) for part in parts)
    return "".join(str(part["text"]) for part in parts) if is_text else parts


def _text(content: str | Sequence[object], where: str) -> str:
    found = _parts(content, where)
    if not isinstance(found, str):
        raise ValidationError(f"{where} must be text, without pictures and sounds")
    return found


# System One


def _systemone_question(name: str, given: object) -> Question[Answer]:
    where = f"questions.{name}"
    question = _object(given, where)
    kind = _kind(question, where, ("noul", "choice", "score"))
    about = _content(question.get("instructions"))
    criteria: Any = {}
    if kind != "noul" or question.get("criteria") is not None:
        criteria = _field(question, "criteria", where, list if kind == "score" else dict)
    try:
        if kind == "noul":
            for key in criteria:
                check_choice(f"{where}.criteria", key, ("true", "false"))
            described = {key: _content(value) for key, value in criteria.items()}
            return PredicateQuestion(about, name=name, **described)
        if kind == "choice":
            options = {key: _content(value) for key, value in criteria.items()}
            return ChoiceQuestion(about, options, name=name)
        if len(criteria) > _MAX_SYSTEMONE_LEVELS:
            raise ValidationError(f"at most {_MAX_SYSTEMONE_LEVELS} levels, got {len(criteria)}")
        return ScoreQuestion(about, [_content(level) for level in criteria], name=name)
    except ValidationError as error:
        raise ValidationError(f"{where}.criteria: {error}") from None


def _systemone_answer(answer: Answer) -> dict[str, object]:
    if isinstance(answer, PredicateAnswer):
        return {"type": "noul", "noul": answer.probability}
    if isinstance(answer, ChoiceAnswer):
        return {
            "type": "choice",
            "choice": answer.choice,
            "confidence": answer.confidence,
            "probabilities": dict(answer.probabilities),
        }
    assert isinstance(answer, ScoreAnswer)
    return {
        "type": "score",
        "score": answer.score,
        "legend": {str(i): label for i, label in enumerate(answer.probabilities)},
        "confidence": answer.confidence,
        "probabilities": {str(i): p for i, p in enumerate(answer.probabilities.values())},
    }


def _content(value: object) -> str:
    """Return System One's content, which is text or any other JSON value, as text."""
    return value if isinstance(value, str) else "" if value is None else _as_json(value)


# Fields

_REQUIRED: Any = object()
_NAMES = {str: "a string", bool: "true or false", list: "a list", dict: "an object"}


def _field(
    given: Object, name: str, where: str, kinds: type | tuple[type, ...], default: Any = _REQUIRED
) -> Any:
    """Return a field of one of several types; null counts as missing."""
    value = given.get(name)
    path = f"{where}.{name}" if where else name
    if value is None:
        if default is _REQUIRED:
            raise ValidationError(f"{path} is missing")
        return default
    if not isinstance(value, kinds):
        names = [_NAMES[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
        raise ValidationError(f"{path} must be {' or '.join(names)}, got {value!r:.60}")
    return value


def _object(given: object, where: str) -> Object:
    if not isinstance(given, Mapping):
        raise ValidationError(f"{where} must be an object, got {given!r:.60}")
    return given


def _kind(given: Object, where: str, kinds: Sequence[str], default: Any = _REQUIRED) -> str:
    kind = _field(given, "type", where, str, default)
    return check_choice(f"{where}.type", kind, kinds)


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
