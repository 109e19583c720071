"""What a chat template supports and needs, found by rendering probes.

llama.cpp finds its templates' `caps` in the same way. A template cannot say what it takes, but what
it writes shows it: a probe that is missing was dropped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

from .messages import REASONING, Message

__all__ = ["CallForm", "TemplateCaps"]

_PROBE, _RESULT_PROBE = "llama_cffi_probe", "llama_cffi_result"
_PROBES = re.compile(f"{_PROBE}|{_RESULT_PROBE}")
_USER: Message = {"role": "user", "content": "?"}
_ANSWER: Message = {"role": "assistant", "content": "?"}
_RESULT: Message = {"role": "tool", "tool_call_id": "call00001", "name": "f", "content": "?"}
_SHORT_ID = re.compile("[A-Za-z0-9]{9}")


class CallForm(NamedTuple):
    """The form in which a template shows a message's tool calls.

    Attributes:
        is_json: Whether arguments are JSON in a str; otherwise they are a dict.
        content: The content of a message that has only calls: "" or None.
        is_shown: False if the template shows calls in no form.
    """

    is_json: bool
    content: str | None
    is_shown: bool = True


class TemplateCaps:
    """The capabilities of one template, each found when first asked for.

    Args:
        render: Renders messages and tools; returns "" if the template refuses them.
    """

    def __init__(self, render: Callable[[list[Message], list[Message] | None], str]) -> None:
        self._render = render

    @cached_property
    def supports_system(self) -> bool:
        """Whether the template shows system messages."""
        return _PROBE in self._try([{"role": "system", "content": _PROBE}, _USER])

    @cached_property
    def takes_late_system(self) -> bool:
        """Whether the template shows a system message that is not the first message."""
        late: Message = {"role": "system", "content": _PROBE}
        chats = [_USER, _ANSWER, late, _USER], [_USER, late]
        return all(_PROBE in self._try(chat) for chat in chats)

    @cached_property
    def takes_several_systems(self) -> bool:
        """Whether the template shows all of several system messages, wherever they stand."""
        first: Message = {"role": "system", "content": _PROBE}
        other: Message = {"role": "system", "content": _RESULT_PROBE}
        chats = [first, other, _USER], [first, _USER, _ANSWER, other, _USER], [first, _USER, other]
        both = {_PROBE, _RESULT_PROBE}
        return all(both <= {*_PROBES.findall(self._try(chat))} for chat in chats)

    @cached_property
    def supports_tools(self) -> bool:
        """Whether the template shows tool definitions."""
        return _PROBE in self._render([_USER], [_tool(_PROBE)])

    @cached_property
    def needs_descriptions(self) -> bool:
        """Whether the template fails if a tool, or one of its parameters, has no description."""
        parameters = {"type": "object", "properties": {"x": {"type": "string"}}}
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        return not self._render([_USER], [tool]) and bool(self._render([_USER], [_described(tool)]))

    @cached_property
    def separator(self) -> str:
        """What the template writes between two parts of text.

        A line break, as in llama.cpp and vLLM, if the template takes no parts or decorates them.
        """
        parts = [{"type": "text", "text": _PROBE}] * 2
        text = self._try([{"role": "user", "content": parts}])
        match = re.search(rf"{_PROBE}(\s*){_PROBE}", text)
        return "\n" if match is None else match[1]

    @cached_property
    def needs_parts(self) -> bool:
        """Whether the template shows content only as a list of parts."""
        if _PROBE in self._try([{**_USER, "content": _PROBE}]):
            return False
        parts = [{"type": "text", "text": _PROBE}]
        return _PROBE in self._try([{**_USER, "content": parts}])

    @cached_property
    def call_form(self) -> CallForm:
        """The form in which the template shows tool calls."""
        for content in ("", None):
            for is_json in (False, True):
                form = CallForm(is_json, content)
                if self._shows_call(form):
                    return form
        return CallForm(False, "", False)

    @cached_property
    def drops_calls(self) -> bool:
        """Whether the template renders messages with tool calls, but not the calls."""
        if self.call_form.is_shown:
            return False
        return any(self._try(_call(CallForm(False, c), "call00001")) for c in ("", None))

    @cached_property
    def shows_results(self) -> bool:
        """Whether the template shows messages of the role `tool`, or fails without any, too."""
        result = {**_RESULT, "content": _RESULT_PROBE}
        answer: list[Message] = [_USER, {"role": "assistant", "content": "?"}]
        for before in (_call(self.call_form, "call00001"), answer):
            if _RESULT_PROBE in self._try([*before, result]):
                return True
        return not self._try(answer)

    @cached_property
    def takes_any_id(self) -> bool:
        """Whether tool calls may have ids of any length; Mistral's have nine characters."""
        first, second = (
            _call(self.call_form, call_id) for call_id in ("call_" + _PROBE, "call00001")
        )
        return bool(self._try(first)) or not self._try(second)

    @cached_property
    def needs_reasoning_parts(self) -> bool:
        """Whether the template shows reasoning only as a part of the content."""
        answer: Message = {"role": "assistant", "content": "?"}
        named = {**answer, **dict.fromkeys(REASONING, _PROBE)}
        if _PROBE in self._try([_USER, named]):
            return False
        in_parts = _with_reasoning_part({**answer, "reasoning_content": _PROBE})
        text = self._try([_USER, in_parts])
        return _PROBE in text and not re.search("""["']thinking["']""", text)

    def fit(self, messages: list[Message]) -> list[Message]:
        """Return messages in the plain form as this template takes them.

        Args:
            messages: From `plain_messages`; they are not changed.
        """
        fitted: list[Message] = []
        for message in self._fit_system(messages):
            if message.get("tool_calls"):
                fitted += self._fit_calls(message)
            elif "tool_call_id" in message and not self.takes_any_id:
                fitted.append({**message, "tool_call_id": _short_id(message["tool_call_id"])})
            else:
                fitted.append(message)
        if any(map(_has_reasoning, fitted)) and self.needs_reasoning_parts:
            fitted = [_with_reasoning_part(m) if _has_reasoning(m) else m for m in fitted]
        if self.needs_parts:
            fitted = [_in_parts(message) for message in fitted]
        return fitted

    def fit_tools(self, tools: list[Message] | None) -> list[Message] | None:
        """Return tool definitions as this template takes them; the given ones are not changed."""
        return [*map(_described, tools)] if tools and self.needs_descriptions else tools

    def _fit_system(self, messages: list[Message]) -> list[Message]:
        """Return messages whose system messages are all shown.

        Where the template drops or refuses some, those at the beginning become one, and later ones
        become text of the user, in their place.
        """
        roles = [message["role"] for message in messages]
        if (n := roles.count("system")) == 0:
            return messages
        if n > 1:
            shows_all = self.takes_several_systems
        else:
            shows_all = self.supports_system if roles[0] == "system" else self.takes_late_system
        if shows_all:
            return messages
        n_first = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
        if not self.supports_system:
            n_first = 0
        fitted = [_joined(messages[:n_first])] if n_first else []
        was_system = False  # whether the last message has text of the system
        for message in messages[n_first:]:
            is_system = message["role"] == "system"
            if is_system:
                message = {"role": "user", "content": message["content"]}
            is_joined = message["role"] == "user" and bool(fitted) and fitted[-1]["role"] == "user"
            if is_joined and (is_system or was_system):  # many templates refuse two in a row
                fitted[-1] = _joined([fitted[-1], message])
            else:
                fitted.append(message)
            was_system = is_system or (is_joined and was_system)
        return fitted

    def _fit_calls(self, message: Message) -> list[Message]:
        form, content = self.call_form, message["content"]
        calls = [self._fit_call(call) for call in message["tool_calls"]]
        if content and form.content is None:  # the template shows either text or calls
            text = {key: value for key, value in message.items() if key != "tool_calls"}
            return [text, {"role": message["role"], "content": None, "tool_calls": calls}]
        return [{**message, "content": content or form.content, "tool_calls": calls}]

    def _fit_call(self, call: Message) -> Message:
        function, call_id = call["function"], call["id"]
        if self.call_form.is_json and not isinstance(function["arguments"], str):
            arguments = json.dumps(function["arguments"], ensure_ascii=False)
            function = {**function, "arguments": arguments}
        if not self.takes_any_id:
            call_id = _short_id(call_id)
        return {**call, "id": call_id, "function": function}

    def _try(self, messages: list[Message]) -> str:
        """Render messages without tools, or with one if the template needs some."""
        return self._render(messages, None) or self._render(messages, [_tool("f")])

    def _shows_call(self, form: CallForm) -> bool:
        """Whether name and arguments of a call appear, and not as Python or as JSON in JSON."""
        call = _call(form, "call00001")
        # Some fail only if a result follows, others if none does.
        text = self._try([*call, _RESULT]) or self._try(call)
        return _PROBE in text and "{'" not in text and rf"\"{_PROBE}" not in text


def _tool(name: str) -> Message:
    parameters = {"type": "object", "properties": {}}
    function = {"name": name, "description": "?", "parameters": parameters}
    return {"type": "function", "function": function}


def _call(form: CallForm, call_id: str) -> list[Message]:
    arguments: object = {_PROBE: "?"}
    if form.is_json:
        arguments = json.dumps(arguments)
    function = {"name": "f", "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return [_USER, {"role": "assistant", "content": form.content, "tool_calls": [call]}]


def _described(schema: Message) -> Message:
    """Return a tool, a function or a schema with descriptions, of its properties, too."""
    found = dict(schema)
    if isinstance(function := found.get("function"), dict):
        return {**found, "function": _described(function)}
    if found.get("description") is None:
        found["description"] = ""
    if isinstance(parameters := found.get("parameters"), dict):
        found["parameters"] = _with_described_properties(parameters)
    return _with_described_properties(found)


def _with_described_properties(schema: Message) -> Message:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return schema
    described = {
        name: _described(inner) if isinstance(inner, dict) else inner
        for name, inner in properties.items()
    }
    return {**schema, "properties": described}


def _joined(messages: Sequence[Message]) -> Message:
    content = "\n\n".join(message["content"] for message in messages if message["content"])
    return {**messages[0], "content": content}


def _short_id(call_id: object) -> object:
    """Return an id of nine characters, the same for the same id."""
    if not isinstance(call_id, str) or _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _has_reasoning(message: Message) -> bool:
    return message["role"] == "assistant" and bool(message.get("reasoning_content"))


def _with_reasoning_part(message: Message) -> Message:
    parts = [{"type": "thinking", "thinking": message["reasoning_content"]}]
    if message["content"]:
        parts.append({"type": "text", "text": message["content"]})
    return {**message, "content": parts}


def _in_parts(message: Message) -> Message:
    content = message["content"]
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}
