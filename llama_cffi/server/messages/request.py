"""Requests of the Messages API as arguments of a chat completion."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ValidationError
from ...validation import shown
from ..media import PlacedPart
from .fields import Fields, typed

if TYPE_CHECKING:
    from ...api.chat_completions import ChatCompletionOptions
    from ...chat.families import Family

__all__ = ["ChatRequest", "chat_request"]

_MAX_TOKENS = 4096  # llama-server's default; Anthropic requires the field
# Claude Code begins its system prompt with this line. Two of its values change with each request,
# and would make every prompt a new one from its first tokens on.
_BILLING = re.compile(r"\A\s*x-anthropic-billing-header:[^\n]*\n?")
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_REFUSED = {
    "image": "is a picture, which only messages may have; describe it in text",
    "document": "is a document, which is not read here; send its text as a text block",
}
_SOURCES = {"base64": "data", "url": "url"}
# What Anthropic's own models and tools wrote earlier in a conversation; nothing else reads it.
_FOREIGN = re.compile(r"redacted_thinking|server_tool_use|\w+_tool_result|container_upload")


class ChatRequest(NamedTuple):
    """The arguments of a chat completion, which is to be streamed.

    Attributes:
        messages: In OpenAI's format.
        options: The options; `stream` is not one of them.
    """

    messages: list[Mapping[str, object]]
    options: ChatCompletionOptions


def chat_request(body: object, family: Family) -> ChatRequest:
    """Convert the body of `POST /v1/messages`, or of `/v1/messages/count_tokens`.

    Unknown fields are ignored, and so are tools that Anthropic runs, `cache_control` and
    `metadata`. Reasoning that the model cannot switch on or off stays as it is.

    Args:
        body: The JSON.
        family: The model's family, which says whether its reasoning can be switched.

    Raises:
        ValidationError: A known field has a wrong type or value, or a block is neither text, nor a
            picture, nor reasoning, nor a tool call, nor its result; the error begins with its path.
    """
    root = Fields(body, "")
    root.get("stream", bool)
    root.get("metadata", dict)
    messages: list[Mapping[str, object]] = []
    if (system := root.get("system", (str, list))) is not None:
        messages += _system(system, "system")
    for i, message in enumerate(root.need("messages", list)):
        messages += _messages(Fields(message, f"messages.{i}"))
    if all(message["role"] == "system" for message in messages):
        messages.append({"role": "user", "content": ""})  # templates need a turn
    options: dict[str, Any] = {
        "model": root.get("model", str),
        "max_tokens": root.integer("max_tokens", 1) or _MAX_TOKENS,
        "temperature": root.get("temperature", (int, float)),
        "top_p": root.get("top_p", (int, float)),
        "top_k": root.integer("top_k", -1),
        "stop": _stop_sequences(root),
        **_tools(root),
        **_reasoning(root, family),
        "stream_options": {"include_usage": True, "include_stop_reason": True},
    }
    found: Any = {name: value for name, value in options.items() if value is not None}
    return ChatRequest(messages, found)


def _system(content: str | list[Any], path: str) -> list[Mapping[str, object]]:
    """Return the system message, if it has any text."""
    texts = [*filter(None, (_BILLING.sub("", text) for text in _texts(content, path)))]
    return [{"role": "system", "content": _content(texts)}] if texts else []


def _messages(fields: Fields) -> list[Mapping[str, object]]:
    """Return what one message becomes: results of tools are messages of their own."""
    role = fields.choice("role", ("user", "assistant", "system"))
    content = fields.need("content", (str, list))
    path = fields.path("content")
    if role == "system":
        return _system(content, path)
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    parts: list[str | PlacedPart] = []
    reasoning: list[str] = []
    calls: list[object] = []
    results: list[Mapping[str, object]] = []
    for i, item in enumerate(content):
        block = Fields(item, f"{path}.{i}")
        kind = block.need("type", str)
        if kind == "tool_result" and role == "user":
            results.append(_result(block))
        elif kind == "tool_use" and role == "assistant":
            calls.append(_call(block))
        elif kind == "thinking" and role == "assistant":
            reasoning.append(block.need("thinking", str))
        elif not (_FOREIGN.fullmatch(kind) and role == "assistant"):
            parts.append(_part(block))
    if role == "user":
        # Results follow the calls that they answer, whatever was written before them.
        if parts or not results:
            results.append({"role": role, "content": _content(parts)})
        return results
    message: dict[str, object] = {"role": role, "content": _content(parts)}
    if reasoning:
        message["reasoning_content"] = "\n".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    return [message]


def _call(block: Fields) -> dict[str, object]:
    function = {"name": block.need("name", str), "arguments": block.need("input", dict)}
    return {"id": block.need("id", str), "type": "function", "function": function}


def _result(block: Fields) -> Mapping[str, object]:
    content = block.get("content", (str, list))
    path = block.path("content")
    parts: list[str | PlacedPart] = [content] if isinstance(content, str) else []
    if isinstance(content, list):
        parts = [_part(Fields(inner, f"{path}.{i}")) for i, inner in enumerate(content)]
    if block.get("is_error", bool):
        parts = ["Error:", *parts]  # templates have no other place for it
    return {
        "role": "tool",
        "tool_call_id": block.need("tool_use_id", str),
        "content": _content(parts),
    }


def _texts(content: str | list[Any], path: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [_text(Fields(block, f"{path}.{i}")) for i, block in enumerate(content)]


def _part(block: Fields) -> str | PlacedPart:
    """Return the text of a block, or its picture."""
    if block.get("type", str) != "image":
        return _text(block)
    source = block.inner("source") or Fields(None, block.path("source"))  # which is missing
    name = _SOURCES[source.choice("type", [*_SOURCES])]
    part = {"type": "image", "source": {name: source.need(name, str)}}
    return PlacedPart(part, block.path("source"))


def _text(block: Fields) -> str:
    kind = block.need("type", str)
    if kind == "text":
        text: str = block.need("text", str)
        return text
    if kind == "tool_reference":  # the result of a search for tools
        name: str = block.need("tool_name", str)
        return name
    reason = _REFUSED.get(kind, "cannot be used here; send text")
    raise ValidationError(f"{block.path('type')}: a block of the type {shown(kind)} {reason}")


def _content(parts: Sequence[str | PlacedPart]) -> object:
    """Return parts as a message has them; the chat template says what stands between two texts."""
    if not parts:
        return ""
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]


def _stop_sequences(root: Fields) -> list[str] | None:
    stops: list[str] | None = root.get("stop_sequences", list)
    for i, stop in enumerate(stops or ()):
        if not typed(stop, str, f"stop_sequences.{i}"):
            raise ValidationError(f"stop_sequences.{i} must not be empty")
    return stops or None


def _tools(root: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {}
    tools = []
    for i, value in enumerate(root.get("tools", list) or ()):
        tool = Fields(value, f"tools.{i}")
        if tool.get("type", str) in (None, "custom"):  # the others are run, or known, by Anthropic
            function = {
                "name": tool.need("name", str),
                "description": tool.get("description", str) or "",
                "parameters": tool.need("input_schema", dict),
            }
            tools.append({"type": "function", "function": function})
    if tools:
        found["tools"] = tools
    choice = root.inner("tool_choice")
    if choice is not None:
        kind = choice.choice("type", ("auto", "any", "tool", "none"))
        if choice.get("disable_parallel_tool_use", bool):
            found["parallel_tool_calls"] = False
        if kind == "tool":
            function = {"name": choice.need("name", str)}
            found["tool_choice"] = {"type": "function", "function": function}
        else:
            found["tool_choice"] = "required" if kind == "any" else kind
    return found


def _reasoning(root: Fields, family: Family) -> dict[str, Any]:
    """Return the options of `thinking` and `output_config`."""
    found: dict[str, Any] = {}
    if (config := root.inner("output_config")) is not None:
        if config.get("effort", str) is not None:
            effort = _EFFORTS[config.choice("effort", [*_EFFORTS])]
            # For the templates that read it. `reasoning_effort` would also turn reasoning on.
            found["chat_template_kwargs"] = {"reasoning_effort": effort}
        if (form := config.inner("format")) is not None:
            form.choice("type", ("json_schema",))
            schema = {"schema": form.need("schema", dict)}
            found["response_format"] = {"type": "json_schema", "json_schema": schema}
    if (config := root.inner("thinking")) is not None:
        kind = config.choice("type", ("enabled", "disabled", "adaptive", "between_tools"))
        budget = config.integer("budget_tokens", 1)
        if kind == "disabled":
            # A model that always reasons ends it at once.
            always = family.thinking == "always"
            found |= {"thinking_budget": 0} if always else {"thinking": False}
        elif family.thinking != "never":
            found |= {"thinking": True, "thinking_budget": budget if kind == "enabled" else None}
    return found
