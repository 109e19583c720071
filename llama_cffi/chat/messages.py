"""The inputs of a chat template: messages in one plain form, tools, all in plain JSON types.

Templates are untrusted code. They never get the caller's objects, only copies made of dict, list,
str, int, float, bool and None.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import count
from typing import Any

from ..errors import ValidationError
from .content import refuse_media, split_content
from .tools import function_schema

__all__ = ["REASONING", "ROLES", "Message", "plain", "plain_messages", "plain_tools"]

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")
_SAME_ROLE = {"developer": "system", "function": "tool"}
_MEDIA = ("audio", "image", "images", "video", "videos", "file", "files")
_MAX_DEPTH = 100
_EXAMPLE = '{"role": "user", "content": "..."}'


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


def plain_messages(
    messages: object, roles: Collection[str] = (), separator: str = "\n"
) -> list[Message]:
    """Return *messages* in the plain form: one form for everything that means the same.

    - The roles are `system`, `user`, `assistant`, `tool`, and those in *roles*. OpenAI's
      `developer` becomes `system`, its deprecated `function` becomes `tool`.
    - Content is a str, "" instead of None. Parts of text are joined; a refusal is text, too.
    - Fields that are None are absent, and so are empty `tool_calls`.
    - A call is `{"id", "type": "function", "function": {"name", "arguments"}}`, where the arguments
      are a dict, or the str that a model wrote if that is not a JSON object. `function_call`
      becomes a call.
    - Calls without an id get one; results without one get that of the call they answer, in order.
    - Reasoning, given as `reasoning_content`, `thinking`, `reasoning` or parts of these types, is
      under all three names, of which templates read different ones.

    The plain form of the plain form is itself.

    Args:
        messages: OpenAI's shape; dicts, dataclasses, or objects of the package `openai`.
        roles: Additional roles, which the chat template handles.
        separator: Written between parts of text; a line break, as in llama.cpp and vLLM, unless
            the template writes something else.

    Raises:
        ValidationError: There are no messages, a role is unknown, a part is not text, or a message
            has the wrong shape; the error names it.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValidationError(
            f"messages must be a list of dicts, got {_kind(messages)}; write [{_EXAMPLE}]"
        )
    if not messages:
        raise ValidationError("messages must not be empty; give at least one message")
    found = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if isinstance(message, (str, tuple)):
            raise ValidationError(f"{where} must be a dict, got {_kind(message)}; write {_EXAMPLE}")
        found.append(_message(plain(message, where), where, roles, separator))
    _pair_calls(found)
    return found


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


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _message(message: object, where: str, roles: Collection[str], separator: str) -> Message:
    if not isinstance(message, dict):
        raise ValidationError(f"{where} must be a dict, got {_kind(message)}; write {_EXAMPLE}")
    found = {key: value for key, value in message.items() if value is not None}
    if "role" not in found:
        raise ValidationError(f"{where} has no role; write {_EXAMPLE}")
    role = found["role"] = _role(found.get("role"), where, roles)
    content = found.get("content")
    if content is None and role in ("user", "system"):
        raise ValidationError(f"{where} has no content; a message with the role {role!r} needs it")
    if refusal := found.pop("refusal", None):
        parts = content if isinstance(content, list) else [content] if content else []
        content = [*parts, {"type": "refusal", "refusal": refusal}]
    found["content"], reasoning = split_content(content, f"{where}['content']", separator)
    for field in _MEDIA:
        if found.get(field):
            refuse_media(field, f"{where}[{field!r}]")
    reasoning = next((found[name] for name in REASONING if found.get(name)), reasoning)
    if not isinstance(reasoning, str):
        raise ValidationError(f"{where}: the reasoning must be a str, got {reasoning!r}")
    for name in REASONING:
        found.pop(name, None)
        if reasoning:
            found[name] = reasoning
    calls = _calls(found.pop("tool_calls", None), f"{where}['tool_calls']")
    if function := found.pop("function_call", None):
        calls = calls or [_call(function, f"{where}['function_call']")]  # often given twice
    if calls:
        if role in ("user", "system", "tool"):
            raise ValidationError(f"{where} has tool calls, but the role {role!r}")
        found["tool_calls"] = calls
    return found


def _role(role: object, where: str, roles: Collection[str]) -> str:
    if isinstance(role, str):
        role = _SAME_ROLE.get(role, role)
        if role in ROLES or role in roles:
            return role
    known = [*ROLES, *_SAME_ROLE, *sorted({*roles} - {*ROLES, *_SAME_ROLE})]
    raise ValidationError(
        f"{where} has the role {role!r}; the roles are {', '.join(map(repr, known))}"
    )


def _calls(calls: object, where: str) -> list[Message]:
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise ValidationError(f"{where} must be a list of calls, got {type(calls).__name__}")
    return [_call(call, f"{where}[{i}]") for i, call in enumerate(calls)]


def _call(call: object, where: str) -> Message:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValidationError(
            f"{where} does not name a function; write "
            '{"type": "function", "function": {"name": "...", "arguments": {...}}}'
        )
    if "arguments" not in function:
        odd = [name for name in ("args", "input", "parameters") if function.get(name)]
        if odd:
            raise ValidationError(f"{where} has {odd[0]!r}, but no 'arguments'; rename it")
    done = {"name": function["name"], "arguments": _arguments(function.get("arguments"), where)}
    found: Message = {"type": "function", "function": done}
    call_id = call.get("id") if isinstance(call, dict) else None
    return found if call_id is None else {"id": str(call_id), **found}


def _arguments(arguments: object, where: str) -> object:
    """Return arguments as a dict; a str that is not a JSON object stays: a model wrote it."""
    if arguments is None:
        return {}
    if isinstance(arguments, dict):
        return arguments
    if not isinstance(arguments, str):
        raise ValidationError(
            f"{where} has arguments that are neither a dict nor a str, but {arguments!r}"
        )
    try:
        value = json.loads(arguments) if arguments.strip() else {}
        return (
            {} if value is None else plain(value, where) if isinstance(value, dict) else arguments
        )
    except (ValueError, RecursionError):
        return arguments


def _pair_calls(messages: list[Message]) -> None:
    """Give ids to calls without one, and to results the id and name of the call they answer."""
    taken = {call["id"] for m in messages for call in m.get("tool_calls", ()) if "id" in call}
    new = (f"call{n:05d}" for n in count(1))  # nine characters, as Mistral's templates need
    pending: list[Message] = []
    for message in messages:
        if calls := message.get("tool_calls"):
            for i, call in enumerate(calls):
                if "id" not in call:
                    calls[i] = {"id": next(n for n in new if n not in taken), **call}
            pending = [*calls]
        elif message["role"] == "tool" and pending:
            call_id, name = message.get("tool_call_id"), message.get("name")
            for call in pending:
                called = call["function"]["name"]
                if call["id"] == call_id if call_id is not None else name in (None, called):
                    message["tool_call_id"] = call["id"]
                    message.setdefault("name", called)
                    pending.remove(call)
                    break
