"""Whatever shape a conversation comes in, a template gets its plain form, or there is an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support.chat_templates import NAMES, fetch_templates
from support.message_shapes import (
    AGAIN,
    ANSWER,
    CALLED,
    MEDIA,
    SHAPES,
    SYSTEM,
    TALK,
    THOUGHT,
    TOOLS,
    USER,
    Shape,
    call,
    renamed,
    text,
)

from llama_cffi.chat import template_env
from llama_cffi.chat.messages import plain_messages
from llama_cffi.chat.template import ChatTemplate
from llama_cffi.errors import TemplateError, ValidationError

# Words of the shapes; a rendering that shows more of them is the better one.
WORDS = (
    "Systemtext.", "Question?", "Another?", "Answertext.", "get_it", "Argvalue", "Othervalue",
    "Resultvalue", "Thoughttext.",
)  # fmt: skip
# Firefunction's template reads this variable instead of `tools`.
VARIABLES = {"functions": json.dumps(TOOLS), "datetime": "2026-07-04"}


@pytest.fixture(scope="module")
def sources(shared_cache: Path) -> dict[str, str]:
    return fetch_templates(shared_cache)


def forms(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the forms in which templates show calls and reasoning; the usual one first."""
    for none in (False, True):
        for is_json in (False, True):
            yield [_formed(message, none, is_json) for message in messages]
    if any("thinking" in message for message in messages):
        yield [
            {**m, "content": [{"type": "thinking", "thinking": m["thinking"]}, *text(m["content"])]}
            if "thinking" in m
            else m
            for m in messages
        ]


def _formed(message: dict[str, Any], none: bool, is_json: bool) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    dumped = [
        call(json.dumps(c["function"]["arguments"]), c["function"]["name"], id=c["id"])
        for c in message["tool_calls"]
    ]
    calls = dumped if is_json else message["tool_calls"]
    return {**message, "content": None if none else "", "tool_calls": calls}


class Reference:
    """What a template itself writes for plain conversations, without this package's help."""

    def __init__(self, source: str) -> None:
        self._compiled = template_env.compile_template(source)
        self._known: dict[str, str | None] = {}

    def render(self, messages: list[dict[str, Any]], tools: object) -> str | None:
        """Return the rendering that shows most; None if the template refuses every form."""
        key = json.dumps([messages, tools])
        if key not in self._known:
            best, words = None, {word for word in WORDS if word in key}
            for form in forms(messages):
                found = self.render_raw(form, tools)
                if best is None or _shown(found) > _shown(best):
                    best = found
                if _shown(found) >= words:
                    break
            self._known[key] = best
        return self._known[key]

    def render_raw(self, messages: list[dict[str, Any]], tools: object) -> str | None:
        values = {"bos_token": "<s>", "eos_token": "</s>", "documents": None, **VARIABLES}
        values |= {"messages": messages, "tools": tools, "add_generation_prompt": True}
        try:
            return template_env.render(self._compiled, values, datetime.now())
        except TemplateError:
            return None


def with_user(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages whose system message is text of the user beside it."""
    found: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "system":
            message = {**message, "role": "user"}
        if found and found[-1]["role"] == message["role"] == "user":
            both = (found[-1]["content"], message["content"])
            message = {**found.pop(), "content": "\n\n".join(both)}
        found.append(message)
    return found


def _shown(rendered: str | None) -> set[str]:
    if rendered is None or re.search("""{'|["']thinking["']""", rendered):
        return set()
    return {word for word in WORDS if word in rendered}


def render(template: ChatTemplate, messages: Any, tools: Any = None) -> str | None:
    try:
        return template.render(messages, tools, **VARIABLES)
    except TemplateError:
        return None


@pytest.mark.network
@pytest.mark.parametrize("name", NAMES)
def test_every_shape_renders_as_its_plain_form(name: str, sources: dict[str, str]) -> None:
    template, reference = ChatTemplate(sources[name], "<s>", "</s>"), Reference(sources[name])
    wrong = {}
    for what, shape in SHAPES.items():
        tools = TOOLS if shape.has_tools else None
        expected = reference.render(shape.plain, tools)
        found, allowed = render(template, shape.given, tools), [expected]
        is_late = any(message["role"] == "system" for message in shape.plain[1:])
        if is_late or (shape.plain[0] == SYSTEM and not template.supports_system):
            # Where the template drops or refuses it, it is text of the user.
            both = (expected, reference.render(with_user(shape.plain), tools))
            shown = [text for text in both if text is not None and "Systemtext." in text]
            allowed = shown or [None]  # it may need tools
        if found not in allowed:
            wrong[what] = allowed, found
    assert not wrong
    assert len(SHAPES) >= 60


@pytest.mark.network
@pytest.mark.parametrize("name", NAMES)
def test_media_are_refused_by_name_in_every_role(name: str, sources: dict[str, str]) -> None:
    template = ChatTemplate(sources[name], "<s>", "</s>")
    for part, kind in MEDIA:
        for i, chat in enumerate(([SYSTEM, USER], [USER], [USER, ANSWER], CALLED)):
            *before, last = chat
            messages = [*before, {**last, "content": [*text("Look:"), part]}]
            at = len(before)
            says = rf"messages\[{at}\]\['content'\]\[1\] is .*'{kind}'.* leave it out"
            with pytest.raises(ValidationError, match=says):
                template.render(messages, TOOLS if i == 3 else None)


@pytest.mark.network
@pytest.mark.parametrize("name", NAMES)
def test_parts_are_joined_by_what_the_template_writes_between_them(
    name: str, sources: dict[str, str]
) -> None:
    template, reference = ChatTemplate(sources[name], "<s>", "</s>"), Reference(sources[name])
    parts = [{"role": "user", "content": text("Ques", "tion?")}]
    own = reference.render_raw(parts, None)
    if own is None or "Ques" not in own or "'type'" in own or '"type"' in own:
        parts = [{"role": "user", "content": "Ques\ntion?"}]  # as llama.cpp and vLLM do
        own = reference.render_raw(parts, None)
    assert render(template, [{"role": "user", "content": text("Ques", "tion?")}]) == own
    # In the other roles alike, where templates do not take parts.
    separator = template.plain_messages([{**USER, "content": text("a", "b")}])[0]["content"][1:-1]
    for role, chat in (("system", [SYSTEM, USER]), ("assistant", TALK), ("tool", CALLED)):
        given = [{**m, "content": text("One", "two")} if m["role"] == role else m for m in chat]
        plain = [{**m, "content": f"One{separator}two"} if m["role"] == role else m for m in chat]
        if role == "system" and not template.supports_system:
            plain = with_user(plain)
        assert render(template, given) == reference.render(plain, None)


@pytest.mark.network
@pytest.mark.parametrize("name", NAMES)
def test_ids_of_every_length_are_taken(name: str, sources: dict[str, str]) -> None:
    template, reference = ChatTemplate(sources[name], "<s>", "</s>"), Reference(sources[name])
    long = "call_8sKxgGoVQ9cPJ1Wh1YmDTrJn"
    expected = reference.render(renamed(long), TOOLS)
    shown = render(template, renamed(long), TOOLS)
    if expected is None and shown is not None:  # Mistral's need nine letters or digits
        short = re.findall(r'(?:id": "|\[CALL_ID\])([a-zA-Z0-9]{9})\b', shown)
        assert len(set(short)) == 1
        expected = reference.render(renamed(short[0]), TOOLS)
    assert shown == expected
    if reference.render(CALLED, TOOLS) is not None:
        assert shown is not None


@pytest.mark.parametrize("what", SHAPES)
def test_the_plain_form(what: str) -> None:
    shape = SHAPES[what]
    before = repr(shape.given)
    found = plain_messages(shape.given)
    for message in found:
        message.pop("annotations", None)  # no template reads it
        message.pop("parsed", None)
    assert found == shape.plain
    assert plain_messages(found) == found
    assert repr(shape.given) == before


@pytest.mark.parametrize("role", ["wizard", "User", "SYSTEM", "human", "ai", "model", " user"])
def test_unknown_roles_are_refused_with_the_known_ones(role: str) -> None:
    with pytest.raises(ValidationError, match=r"messages\[1\] has the role .*") as e:
        plain_messages([USER, {"role": role, "content": "Hi"}])
    for known in ("system", "developer", "user", "assistant", "tool", "function"):
        assert f"'{known}'" in str(e.value)


def test_a_role_that_the_template_compares_with_is_kept() -> None:
    source = (
        "{% for m in messages %}{% if m['role'] in ['tool', 'ipython'] or 'critic' == m.role %}"
        "<{{ m.role }}>{% endif %}{{ m.content }}{% if m.kind == 'wizard' %}!{% endif %}"
        "{% endfor %}"
    )
    template = ChatTemplate(source)
    for role in ("ipython", "critic"):
        assert template.render([{"role": role, "content": [*text("Hi")]}]) == f"<{role}>Hi"
    with pytest.raises(ValidationError, match=r"has the role 'wizard'; .*, 'critic', 'ipython'$"):
        template.render([{"role": "wizard", "content": "Hi"}])
    # OpenAI's names are not the template's to keep.
    handles = ChatTemplate("{% if messages[0].role == 'developer' %}x{% endif %}ok")
    assert handles.render([{"role": "developer", "content": "Hi"}]) == "ok"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": None}, "has no content"),
        ({"role": "developer"}, "has no content"),
        ({"role": "tool", "content": {"a": 1}}, "write it as JSON, with json.dumps"),
        ({"role": "user", "content": [{"type": "tool_result"}]}, "a message of the role 'tool'"),
        ({"role": "assistant", "content": [{"type": "tool_use"}]}, "'tool_calls'"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "has the type 'hologram'"),
        ({"role": "user", "content": [{}]}, "has the type None"),
        ({"role": "user", "content": [{"type": 5}]}, "has the type 5"),
        ({"role": "user", "content": [None]}, "must be a str or a dict, got NoneType"),
        ({"role": "user", "content": text(None)}, "'text' must be a str, got NoneType"),  # type: ignore[arg-type]
        ({"role": "user", "content": "a", "images": ["AAAA"]}, r"\['images'\] is a picture"),
        ({"role": "assistant", "audio": {"id": "audio_1"}}, r"\['audio'\] is sound"),
        ({"role": "user", "content": "a", "tool_calls": [call({})]}, "calls, but the role 'user'"),
        ({"role": "assistant", "tool_calls": [call(5)]}, "neither a dict nor a str, but 5"),
        ({"role": "assistant", "tool_calls": [call([])]}, "neither a dict nor a str"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "args": {"a": 1}}]},
            "has 'args', but no 'arguments'; rename it",
        ),
        ({"role": "assistant", "function_call": {"arguments": ""}}, "does not name a function"),
        ({"role": "assistant", "content": "a", "thinking": 5}, "the reasoning must be a str"),
    ],
)
def test_what_has_no_plain_form_is_refused(message: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        plain_messages([message])


def test_arguments_that_are_no_json_object_stay_as_the_model_wrote_them() -> None:
    for arguments in ('{"a": ', "[1]", "5", "Paris", '"x"'):
        (message,) = plain_messages([{"role": "assistant", "tool_calls": [call(arguments)]}])
        assert message["tool_calls"][0]["function"]["arguments"] == arguments


def test_ids_that_are_given_are_kept_and_new_ones_are_others() -> None:
    calls = [call({}, id="call00001"), call({}), call({}, id="x")]
    results = [{"role": "tool", "content": c} for c in "abc"]
    message, *found = plain_messages([{"role": "assistant", "tool_calls": calls}, *results])
    assert [c["id"] for c in message["tool_calls"]] == ["call00001", "call00002", "x"]
    assert [m["tool_call_id"] for m in found] == ["call00001", "call00002", "x"]
    (message, odd) = plain_messages(
        [
            {"role": "assistant", "tool_calls": [call({})]},
            {"role": "tool", "tool_call_id": "unheard", "content": "a"},
        ]
    )
    assert odd["tool_call_id"] == "unheard"


def test_the_reasoning_of_an_answer_is_in_every_name() -> None:
    for name in THOUGHT:
        shape = Shape([{**ANSWER, name: "Thoughttext."}, AGAIN], [{**ANSWER, **THOUGHT}, AGAIN])
        assert plain_messages(shape.given) == shape.plain
