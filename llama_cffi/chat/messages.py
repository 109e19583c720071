"""What callers give a chat template, rebuilt from plain JSON types.

Templates are foreign code: they get no object of the caller's, only copies made of dict, list,
str, int, float, bool and None.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from ..errors import ValidationError
from .tools import function_schema

__all__ = ["Message", "parse_arguments", "plain", "plain_messages", "plain_tools"]

Message = dict[str, Any]

_REASONING = ("reasoning_content", "thinking", "reasoning")
_MAX_DEPTH = 100


def plain(value: object, where: str, depth: int = 0) -> Any:
    """Rebuild *value* from plain JSON types.

    Mappings, lists, tuples, dataclasses and pydantic models become dicts and lists.

    Args:
        value: What the caller gave.
        where: How messages name its place.
        depth: How deep it lies; from 100 on it is refused, a cycle too.

    Raises:
        ValidationError: Something that JSON has no word for, or text that UTF-8 cannot hold.
    """
    if depth > _MAX_DEPTH:
        raise ValidationError(f"{where} is nested deeper than {_MAX_DEPTH}, or contains itself")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(str.__str__(value), where)
    # Subclasses (enums, numpy's float64) may have methods that the sandbox does not know.
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif callable(dump := getattr(value, "model_dump", None)):
        # What an OpenAI client answers has a field for everything that could have been said.
        value = dump(exclude_none=True)
    if isinstance(value, Mapping):
        return {
            _key(key, where): plain(item, f"{where}[{key!r}]", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ValidationError(
        f"{where} is of type {type(value).__name__}; a template gets only dict, list, str, int, "
        "float, bool and None"
    )


def plain_messages(messages: object) -> list[Message]:
    """Return a copy of *messages* in plain types, its shape checked.

    Reasoning is given to templates under the names that they read, `reasoning_content` and
    `thinking`, under whichever of these or `reasoning` the caller wrote it.

    Args:
        messages: OpenAI's shape: a role; content that is text, None or a list of parts;
            tool_calls with a function each.

    Raises:
        ValidationError: No messages, or one has another shape; the text names which.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValidationError(
            f"messages are a list of dicts, not {type(messages).__name__}; "
            'write [{"role": "user", "content": "..."}]'
        )
    if not messages:
        raise ValidationError("messages are empty; a template needs at least one message")
    return [_message(plain(m, f"messages[{i}]"), f"messages[{i}]") for i, m in enumerate(messages)]


def plain_tools(
    tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None,
) -> list[dict[str, Any]] | None:
    """Return *tools* as plain dicts; functions become definitions.

    Raises:
        ValidationError: One is neither, or a function that cannot be described.
    """
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise ValidationError(f"tools are a list of dicts or functions, not {type(tools).__name__}")
    done = []
    for i, tool in enumerate(tools):
        definition = plain(
            function_schema(tool) if callable(tool) and not hasattr(tool, "model_dump") else tool,
            f"tools[{i}]",
        )
        if not isinstance(definition, dict):
            raise ValidationError(
                f"tools[{i}] is of type {type(tool).__name__}; a tool is a dict or a function"
            )
        done.append(definition)
    return done


def parse_arguments(messages: list[Message]) -> list[Message]:
    """Return copies in which tool calls have their arguments as dicts, not as JSON in a string.

    What is no JSON object stays the string that it is: a model wrote it.
    """
    return [
        {**m, "tool_calls": [_parsed(call) for call in m["tool_calls"]]}
        if m.get("tool_calls")
        else m
        for m in messages
    ]


def _text(text: str, where: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise ValidationError(
                f"{where} holds half a surrogate pair at {e.start}, which UTF-8 cannot hold; "
                'mend the text, e.g. text.encode("utf-16", "surrogatepass").decode("utf-16")'
            ) from None
    return text


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise ValidationError(f"{where} has the key {key!r}; keys are text, as in JSON")
    return _text(str.__str__(key), f"a key of {where}")


def _message(message: object, where: str) -> Message:
    if not isinstance(message, dict):
        raise ValidationError(f"{where} is {type(message).__name__}; a message is a dict")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ValidationError(
            f'{where} has the role {role!r}; write "system", "user", "assistant" or "tool"'
        )
    content = message.get("content")
    if content is None and role in ("user", "system", "developer"):
        raise ValidationError(f"{where} has no content; a message of the role {role!r} needs one")
    if not isinstance(content, (str, list, dict, type(None))):
        raise ValidationError(
            f"{where}['content'] is {type(content).__name__}; write text, None or a list of parts"
        )
    for i, part in enumerate(content if isinstance(content, list) else ()):
        _check_part(part, f"{where}['content'][{i}]")
    _check_calls(message.get("tool_calls"), f"{where}['tool_calls']")
    said = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    if said is not None:
        message = {"thinking": said, **message, "reasoning_content": said}
    return message


def _check_part(part: object, where: str) -> None:
    if isinstance(part, str):
        return
    if not isinstance(part, dict):
        raise ValidationError(f"{where} is {type(part).__name__}; a part of a content is a dict")
    if part.get("type") == "text" and not isinstance(part.get("text"), str):
        raise ValidationError(f"{where} is of type text but has no 'text' that is text")


def _check_calls(calls: object, where: str) -> None:
    if calls is None:
        return
    if not isinstance(calls, list):
        raise ValidationError(f"{where} is {type(calls).__name__}; write a list of calls")
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValidationError(
                f"{where}[{i}] names no function; write "
                '{"type": "function", "function": {"name": "...", "arguments": {...}}}'
            )


def _parsed(call: Message) -> Message:
    if "function" in call:
        return {**call, "function": _parsed(call["function"])}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments or "{}")
        value = plain(value, "arguments") if isinstance(value, dict) else arguments
    except (ValueError, RecursionError):
        value = arguments
    return {**call, "arguments": value}
