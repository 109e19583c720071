"""Requests of the Responses API as messages and options of a chat completion."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from ...errors import ValidationError
from ...generation.context_policy import DROP_TURNS
from ...generation.sampling_params import SamplingOptions
from ...validation import check_choice, check_int, shown
from ..media import PlacedPart
from .objects import read_encrypted

if TYPE_CHECKING:
    from ...api.chat_completions import ChatCompletionOptions
    from ..response_store import Item, ResponseStore, StoredResponse

__all__ = ["ResponseRequest", "chat_request"]

_JSON_NAMES = {str: "a string", dict: "an object", list: "a list", bool: "true or false"}
_NUMBER = (int, float)
# The types of the fields; null means not given.
_FIELDS: Mapping[str, tuple[type, ...]] = {
    "background": (bool,),
    "include": (list,),
    "input": (str, list),
    "instructions": (str,),
    "max_output_tokens": (int,),
    "max_tool_calls": (int,),
    "metadata": (dict,),
    "model": (str,),
    "parallel_tool_calls": (bool,),
    "previous_response_id": (str,),
    "prompt_cache_key": (str,),
    "reasoning": (dict,),
    "safety_identifier": (str,),
    "service_tier": (str,),
    "store": (bool,),
    "stream": (bool,),
    "stream_options": (dict,),
    "temperature": _NUMBER,
    "text": (dict,),
    "tool_choice": (str, dict),
    "tools": (list,),
    "top_logprobs": (int,),
    "top_p": _NUMBER,
    "truncation": (str,),
    "user": (str,),
}
_REFUSED = {
    "background": "a response ends with its request; leave it out, and stream a long response",
    "conversation": "conversations are not kept; give previous_response_id, or the whole "
    "conversation as input",
    "prompt": "there are no stored prompts; give instructions and input",
}
# Options of a chat completion that the API does not have: as in llama-server, they have an effect.
_PASSED = (SamplingOptions.__annotations__.keys() - {"logits_processor", "structured"}) | {
    "chat_template_kwargs", "stop", "thinking", "thinking_budget",
}  # fmt: skip
_REPEATED = (
    "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt_cache_key",
    "safety_identifier", "temperature", "top_p", "user",
)  # fmt: skip
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_FORMATS = ("text", "json_object", "json_schema")
_MOST_TOP_LOGPROBS = 20
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_MEDIA_PARTS = ("input_image", "input_audio")
_REFUSED_PARTS = {"input_file": "a file", "input_video": "a video"}


@dataclass(frozen=True)
class ResponseRequest:
    """A checked request.

    Attributes:
        messages: The conversation, for `LlamaPool.create_chat_completion`.
        options: Its options, for `stream=True`.
        settings: The fields of the response object that repeat the request.
        conversation: The items of earlier turns and of the input.
        stream: Whether the client wants events.
        store: Whether the response is to be stored.
        encrypts_reasoning: Whether reasoning is given as `encrypted_content`, too.
    """

    messages: Sequence[Mapping[str, object]]
    options: ChatCompletionOptions
    settings: Mapping[str, object] = field(default_factory=dict)
    conversation: Sequence[Mapping[str, object]] = ()
    stream: bool = False
    store: bool = False
    encrypts_reasoning: bool = False


def chat_request(
    body: Mapping[str, object], store: ResponseStore | None = None, model: str = ""
) -> ResponseRequest:
    """Convert the body of a request; unknown fields, and tools of unknown types, are ignored.

    The model is not asked: whether it supports the messages, tools and sampling is found out when
    the chat completion is prepared.

    Args:
        body: The JSON object.
        store: Earlier responses, for `previous_response_id` and item references.
        model: The model's name, where the body has none.

    Raises:
        ValidationError: A field has the wrong type or value, or asks for something that does not
            exist here; the message begins with the field's name.
    """
    found = _checked(body)
    if "input" not in found:
        raise ValidationError("input is missing; give a string, or a list of items")
    before = _previous(found, store)
    items = _resolved(found["input"], store)
    messages = _messages([*before, *items], len(before), found.get("instructions"))
    tools, tool_choice = _tools(found)
    include = found.get("include", [])
    _check_strings("include", include)
    top_logprobs = check_int("top_logprobs", found.get("top_logprobs", 0), 0, _MOST_TOP_LOGPROBS)
    text, response_format = _text(found.get("text", {}))
    reasoning, effort = _reasoning(found.get("reasoning", {}))
    truncation = check_choice(
        "truncation", found.get("truncation", "disabled"), ("auto", "disabled")
    )
    limit = found.get("max_output_tokens")
    options = {
        **{name: value for name, value in body.items() if name in _PASSED},
        "max_tokens": None if limit is None else check_int("max_output_tokens", limit, 1),
        "tools": [_chat_tool(tool) for tool in _offered(tools, tool_choice)],
        "tool_choice": _chat_tool_choice(tool_choice),
        "parallel_tool_calls": found.get("parallel_tool_calls"),
        "response_format": response_format,
        "reasoning_effort": effort,
        "top_logprobs": top_logprobs or None,
        "logprobs": bool(top_logprobs) or "message.output_text.logprobs" in include or None,
        "context_policy": DROP_TURNS if truncation == "auto" else None,
        "stream_options": {"include_usage": True},
    }
    settings = {
        **{name: found.get(name) for name in _REPEATED},
        "instructions": found.get("instructions"),
        "metadata": _metadata(found.get("metadata", {})),
        "model": found.get("model") or model,
        "parallel_tool_calls": found.get("parallel_tool_calls", True),
        "reasoning": reasoning,
        "text": text,
        "tool_choice": tool_choice,
        "tools": tools,
        "top_logprobs": top_logprobs,
        "truncation": truncation,
    }
    return ResponseRequest(
        messages,
        cast("ChatCompletionOptions", {k: v for k, v in options.items() if v is not None}),
        settings,
        [*before, *items],
        stream=found.get("stream", False),
        store=found.get("store", True),
        encrypts_reasoning="reasoning.encrypted_content" in include,
    )


def _typed(where: str, value: object, *kinds: type) -> Any:
    """Return *value*, which must be of one of these types of JSON."""
    is_bool = isinstance(value, bool)  # an int for Python, but not in JSON
    if isinstance(value, kinds) and (not is_bool or bool in kinds):
        return value
    number = "a number" if float in kinds else "an integer"
    names = dict.fromkeys(_JSON_NAMES.get(kind, number) for kind in kinds)
    raise ValidationError(f"{where} must be {' or '.join(names)}, got {shown(value)}")


def _member(owner: Mapping[str, Any], where: str, name: str, *kinds: type) -> Any:
    """Return a field of a nested object, or None if it is not given."""
    value = owner.get(name)
    return None if value is None else _typed(f"{where}.{name}", value, *kinds)


def _required(owner: Mapping[str, Any], where: str, name: str, *kinds: type) -> Any:
    if owner.get(name) is None:
        raise ValidationError(f"{where}.{name} is missing")
    return _member(owner, where, name, *kinds)


def _checked(body: Mapping[str, object]) -> dict[str, Any]:
    """Return the known fields that are given, of the right types."""
    for name, reason in _REFUSED.items():
        if body.get(name):
            raise ValidationError(f"{name} is not supported: {reason}")
    return {
        name: _typed(name, body[name], *kinds)
        for name, kinds in _FIELDS.items()
        if body.get(name) is not None
    }


def _check_strings(where: str, values: Iterable[object]) -> None:
    for i, value in enumerate(values):
        _typed(f"{where}[{i}]", value, str)


def _metadata(metadata: dict[str, Any]) -> dict[str, str]:
    return {name: _typed(f"metadata.{name}", value, str) for name, value in metadata.items()}


def _text(text: Item) -> tuple[Item, Item | None]:
    """Return `text` of the response, and the chat completion's `response_format`."""
    form: Item = _member(text, "text", "format", dict) or {"type": "text"}
    where = "text.format"
    kind = check_choice(f"{where}.type", form.get("type", ""), _FORMATS)
    found: Item = {"format": {"type": kind}}
    if verbosity := _member(text, "text", "verbosity", str):
        found["verbosity"] = check_choice("text.verbosity", verbosity, ("low", "medium", "high"))
    if kind == "text":
        return found, None
    if kind == "json_object":
        return found, {"type": kind}
    schema = _required(form, where, "schema", dict)
    found["format"].update(
        name=_member(form, where, "name", str) or "schema",
        schema=schema,
        description=_member(form, where, "description", str),
        strict=_member(form, where, "strict", bool),
    )
    return found, {"type": kind, "json_schema": {"schema": schema}}


def _reasoning(reasoning: Item) -> tuple[Item, str | None]:
    """Return `reasoning` of the response, and the chat completion's `reasoning_effort`."""
    effort = _member(reasoning, "reasoning", "effort", str)
    summary = _member(reasoning, "reasoning", "summary", str)
    if summary is not None:
        check_choice("reasoning.summary", summary, ("auto", "concise", "detailed"))
    if effort is not None:
        check_choice("reasoning.effort", effort, _EFFORTS)
    # Models have no more than three efforts.
    chat_effort = "high" if effort in ("xhigh", "max") else effort
    return {"effort": effort, "summary": summary}, chat_effort


def _tools(found: Mapping[str, Any]) -> tuple[list[Item], str | Item]:
    """Return the function tools, and `tool_choice`, as the response repeats them."""
    tools = []
    for i, tool in enumerate(found.get("tools", ())):
        where = f"tools[{i}]"
        if _required(_typed(where, tool, dict), where, "type", str) == "function":
            kept: Item = {"type": "function", "name": _required(tool, where, "name", str)}
            kept["description"] = _member(tool, where, "description", str)
            kept["parameters"] = _member(tool, where, "parameters", dict)
            kept["strict"] = _member(tool, where, "strict", bool)
            tools.append(kept)
    choice = found.get("tool_choice", "auto")
    if isinstance(choice, str):
        return tools, check_choice("tool_choice", choice, ("auto", "none", "required"))
    kind = choice.get("type")
    if kind == "function":
        name = _required(choice, "tool_choice", "name", str)
        return tools, {"type": kind, "name": name}
    if kind == "allowed_tools":
        mode = _required(choice, "tool_choice", "mode", str)
        allowed = _required(choice, "tool_choice", "tools", list)
        for i, tool in enumerate(allowed):
            _typed(f"tool_choice.tools[{i}]", tool, dict)
        check_choice("tool_choice.mode", mode, ("auto", "required"))
        return tools, {"type": kind, "mode": mode, "tools": allowed}
    raise ValidationError(
        f"tool_choice.type={shown(kind)} is not supported: only functions can be called; give "
        '"auto", "none", "required" or {"type": "function", "name": ...}'
    )


def _offered(tools: Sequence[Item], choice: str | Item) -> list[Item]:
    """Return the tools that the model may call."""
    if isinstance(choice, str) or choice["type"] != "allowed_tools":
        return [*tools]
    names = [tool.get("name") for tool in choice["tools"]]
    return [tool for tool in tools if tool["name"] in names]


def _chat_tool(tool: Item) -> Item:
    names = ("name", "description", "parameters")
    function = {name: tool[name] for name in names if tool[name] is not None}
    return {"type": "function", "function": function}


def _chat_tool_choice(choice: str | Item) -> str | Item:
    if isinstance(choice, str):
        return choice
    if choice["type"] == "allowed_tools":
        return str(choice["mode"])
    return {"type": "function", "function": {"name": choice["name"]}}


def _previous(found: Mapping[str, Any], store: ResponseStore | None) -> list[Item]:
    """Return the items of earlier turns."""
    response_id = found.get("previous_response_id")
    if response_id is None:
        return []
    stored: StoredResponse | None = store.get(response_id) if store is not None else None
    if stored is None:
        raise ValidationError(
            f"previous_response_id={shown(response_id)} is not stored: it was created with "
            "store=false or by another server, or newer responses have displaced it; give the "
            "whole conversation as input"
        )
    return stored.conversation


def _resolved(given: str | list[Any], store: ResponseStore | None) -> list[Item]:
    """Return the items of the input, with those that it refers to."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    items = []
    for i, item in enumerate(given):
        where = f"input[{i}]"
        if isinstance(item, str):
            item = {"type": "message", "role": "user", "content": item}
        kind = _member(_typed(where, item, dict), where, "type", str)
        if kind == "item_reference" or (kind is None and item.keys() == {"id"}):
            item_id = _required(item, where, "id", str)
            item = store.item(item_id) if store is not None else None
            if item is None:
                raise ValidationError(
                    f"{where}.id={shown(item_id)} is not an item of a stored response; give the "
                    "item itself"
                )
        items.append(item)
    return items


def _messages(items: Sequence[Item], n_before: int, instructions: str | None) -> list[Item]:
    """Return the conversation as chat messages.

    Adjacent items of the assistant become one message, and so do system messages at the beginning:
    many templates refuse or drop a second one.

    Args:
        items: Those of earlier turns, and the input.
        n_before: Number of items of earlier turns.
        instructions: The first system message.
    """
    found: list[Item] = []
    if instructions:
        found.append({"role": "system", "content": instructions})
    for i, item in enumerate(items):
        message = _message(item, f"input[{i - n_before}]")
        if message is None:
            continue
        role = message["role"]
        is_same = bool(found) and role == found[-1]["role"]
        if is_same and (role == "assistant" or (role == "system" and len(found) == 1)):
            found[-1] = _joined(found[-1], message)
        else:
            found.append(message)
    if all(message["role"] == "system" for message in found):
        found.append({"role": "user", "content": ""})  # templates need one
    return found


def _message(item: Item, where: str) -> Item | None:
    """Return an item as a message; None for one that a model without hosted tools cannot read."""
    kind = item.get("type") or "message"
    if kind == "message":
        roles = ("user", "assistant", "system", "developer")
        role = check_choice(f"{where}.role", _required(item, where, "role", str), roles)
        content = _content(_required(item, where, "content", str, list), f"{where}.content")
        return {"role": "system" if role == "developer" else role, "content": content}
    if kind == "reasoning":
        return {"role": "assistant", "reasoning_content": _reasoning_text(item, where)}
    if kind in ("function_call", "custom_tool_call"):
        if kind == "function_call":
            arguments = _required(item, where, "arguments", str)
        else:
            arguments = json.dumps({"input": _required(item, where, "input", str)})
        function = {"name": _required(item, where, "name", str), "arguments": arguments}
        call = {"id": _required(item, where, "call_id", str), "type": "function"}
        return {"role": "assistant", "tool_calls": [{**call, "function": function}]}
    if kind in ("function_call_output", "custom_tool_call_output"):
        output = _content(_required(item, where, "output", str, list), f"{where}.output")
        call_id = _member(item, where, "call_id", str)
        return {"role": "tool", "content": output, "tool_call_id": call_id}
    if "content" in item:
        raise ValidationError(
            f"{where}.type={shown(kind)} is unknown; give a message as "
            '{"type": "message", "role": "user", "content": "..."}'
        )
    return None


def _content(content: str | list[Any], where: str) -> str | list[Item]:
    """Return a content for a chat message; the template says how its parts are joined."""
    if isinstance(content, str):
        return content
    return [_part(part, f"{where}[{i}]") for i, part in enumerate(content)]


def _part(given: object, where: str) -> Item:
    if isinstance(given, str):
        return {"type": "text", "text": given}
    part = cast("Item", _typed(where, given, dict))
    kind = _required(part, where, "type", str)
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": _required(part, where, _TEXT_PARTS[kind], str)}
    if kind in _MEDIA_PARTS:
        if part.get("file_id"):
            raise ValidationError(f"{where}.file_id: there are no stored files; send base64")
        return PlacedPart(part, where)
    if kind in _REFUSED_PARTS:
        raise ValidationError(
            f"{where} is {_REFUSED_PARTS[kind]} ({kind}), which is not read here; leave it out, or "
            "give its text"
        )
    raise ValidationError(
        f"{where}.type={shown(kind)} is unknown; a part of text is "
        '{"type": "input_text", "text": "..."}'
    )


def _reasoning_text(item: Item, where: str) -> str:
    """Return the reasoning; the summary where there is nothing else."""
    texts = [
        [
            str(_required(_typed(f"{where}.{name}[{i}]", part, dict), where, "text", str))
            for i, part in enumerate(_member(item, where, name, list) or ())
        ]
        for name in ("content", "summary")
    ]
    encrypted = _member(item, where, "encrypted_content", str) or ""
    return "\n".join(texts[0]) or read_encrypted(encrypted) or "\n".join(texts[1])


def _joined(message: Item, more: Item) -> Item:
    """Return two adjacent messages of one role as one."""
    found = {**message, **more}
    for name in message.keys() & more.keys() - {"role"}:
        both = message[name], more[name]
        found[name] = "\n".join(both) if name == "reasoning_content" else _lists(*both)
    return found


def _lists(*values: str | list[Item]) -> list[Item]:
    """Return lists in one; a text is a part of text."""
    return [
        each
        for value in values
        for each in ([{"type": "text", "text": value}] if isinstance(value, str) else value)
    ]
