"""The inputs of a chat template, copied into plain JSON types.

Templates are untrusted code. They never get the caller's objects, only copies made of dict, list,
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
    """Copy *value* into plain JSON types.

    Mappings, lists, tuples, dataclasses and pydantic models become dicts and lists.

    Args:
        value: The caller's value.
        where: Its name in error messages.
        depth: Its nesting depth; more than 100 is refused, which includes cycles.

    Raises:
        ValidationError: It contains a value that JSON cannot represent, or text that UTF-8 cannot
            encode.
    """
    if depth > _MAX_DEPTH:
        raise ValidationError(
            f"{where} is nested deeper than {_MAX_DEPTH} levels, or contains itself"
        )
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(str.__str__(value), where)
    # Subclasses (enums, numpy.float64) may have methods that the sandbox does not guard.
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif callable(dump := getattr(value, "model_dump", None)):
        # Responses of the OpenAI client have every optional field, most of them None.
        value = dump(exclude_none=True)
    if isinstance(value, Mapping):
        return {
            _key(key, where): plain(item, f"{where}[{key!r}]", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ValidationError(
        f"{where} must be a dict, list, str, int, float, bool or None, got {type(value).__name__}"
    )


def plain_messages(messages: object) -> list[Message]:
    """Return a copy of *messages* in plain types, with their shape checked.

    Reasoning, which callers may give as `reasoning_content`, `thinking` or `reasoning`, is copied
    to the first two names, which templates read.

    Args:
        messages: OpenAI's shape: a role; content that is a str, None or a list of parts;
            tool_calls with a function each.

    Raises:
        ValidationError: There are no messages, or one has the wrong shape; the error names it.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValidationError(
            f"messages must be a list of dicts, got {type(messages).__name__}; "
            'write [{"role": "user", "content": "..."}]'
        )
    if not messages:
        raise ValidationError("messages must not be empty; give at least one message")
    return [_message(plain(m, f"messages[{i}]"), f"messages[{i}]") for i, m in enumerate(messages)]


def plain_tools(
    tools: Sequence[Mapping[str, object] | Callable[..., object]] | None,
) -> list[dict[str, Any]] | None:
    """Return *tools* as plain dicts; functions become definitions.

    Raises:
        ValidationError: A tool is neither a dict nor a function, or the function cannot be
            described.
    """
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise ValidationError(
            f"tools must be a list of dicts or functions, got {type(tools).__name__}"
        )
    done = []
    for i, tool in enumerate(tools):
        definition = plain(
            function_schema(tool) if callable(tool) and not hasattr(tool, "model_dump") else tool,
            f"tools[{i}]",
        )
        if not isinstance(definition, dict):
            raise ValidationError(
                f"tools[{i}] must be a dict or a function, got {type(tool).__name__}"
            )
        done.append(definition)
    return done


def parse_arguments(messages: list[Message]) -> list[Message]:
    """Return copies in which the arguments of tool calls are dicts instead of JSON strings.

    A string that is not a JSON object is kept, because a model may have written it.
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
                f"{where} has an unpaired surrogate at position {e.start}, which UTF-8 cannot "
                'encode; repair it, e.g. text.encode("utf-16", "surrogatepass").decode("utf-16")'
            ) from None
    return text


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise ValidationError(f"{where} has the key {key!r}; keys must be str")
    return _text(str.__str__(key), f"a key of {where}")


def _message(message: object, where: str) -> Message:
    if not isinstance(message, dict):
        raise ValidationError(f"{where} must be a dict, got {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ValidationError(
            f'{where} has the role {role!r}; use "system", "user", "assistant" or "tool"'
        )
    content = message.get("content")
    if content is None and role in ("user", "system", "developer"):
        raise ValidationError(f"{where} has no content; a message with the role {role!r} needs it")
    if not isinstance(content, (str, list, dict, type(None))):
        raise ValidationError(
            f"{where}['content'] must be a str, None or a list of parts, "
            f"got {type(content).__name__}"
        )
    for i, part in enumerate(content if isinstance(content, list) else ()):
        _check_part(part, f"{where}['content'][{i}]")
    _check_calls(message.get("tool_calls"), f"{where}['tool_calls']")
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _check_part(part: object, where: str) -> None:
    if isinstance(part, str):
        return
    if not isinstance(part, dict):
        raise ValidationError(f"{where} must be a dict, got {type(part).__name__}")
    if part.get("type") == "text" and not isinstance(part.get("text"), str):
        raise ValidationError(f"{where} has the type 'text', so its 'text' must be a str")


def _check_calls(calls: object, where: str) -> None:
    if calls is None:
        return
    if not isinstance(calls, list):
        raise ValidationError(f"{where} must be a list of calls, got {type(calls).__name__}")
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValidationError(
                f"{where}[{i}] does not name a function; write "
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
