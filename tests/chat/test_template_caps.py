"""What templates take: system messages anywhere, and tools without descriptions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.chat_templates import NAMES, fetch_templates

from llama_cffi.chat.template import ChatTemplate
from llama_cffi.errors import TemplateError

USER, ANSWER, OTHER = (
    {"role": role, "content": text}
    for role, text in (("user", "Question?"), ("assistant", "Reply."), ("user", "Another?"))
)
FIRST, LATER = ({"role": "system", "content": text} for text in ("Firstrule.", "Laterrule."))
PARAMETERS = {"type": "object", "properties": {"zone": {"type": "string"}}}
BARE: Any = {"type": "function", "function": {"name": "now", "parameters": PARAMETERS}}
# Firefunction's template reads these variables instead of `tools`.
VARIABLES = {"functions": json.dumps([BARE]), "datetime": "2026-07-04"}
CALL = {
    "role": "assistant", "content": "",
    "tool_calls": [{"id": "call00001", "type": "function",
                    "function": {"name": "now", "arguments": {"zone": "Argvalue"}}}],
}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "now", "content": "Resultvalue"}
# Each in its turn; the template refuses two users, or two assistants, in a row.
ALTERNATING = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('late') }}{% endif %}"
    "{% if not loop.first and m.role == messages[loop.index0 - 1].role %}"
    "{{ raise_exception('twice') }}{% endif %}{{ '[' + m.role + ':' + m.content + ']' }}"
    "{% endfor %}"
)
WITHOUT_SYSTEM = ALTERNATING.replace(" and not loop.first %}", " %}", 1)


@pytest.fixture(scope="module")
def templates(shared_cache: Any) -> dict[str, ChatTemplate]:
    sources = fetch_templates(shared_cache)
    return {name: ChatTemplate(source, "<s>", "</s>") for name, source in sources.items()}


def tools_of(name: str) -> list[Any] | None:
    """The tools without which a template fails."""
    return [BARE] if "c4ai-command-r-plus" in name or "Hermes" in name else None


@pytest.mark.network
@pytest.mark.parametrize("name", NAMES)
def test_no_system_message_is_lost_wherever_it_stands(
    name: str, templates: dict[str, ChatTemplate]
) -> None:
    for messages in (
        [FIRST, USER],
        [USER, ANSWER, LATER, OTHER],
        [FIRST, USER, ANSWER, LATER, OTHER],
        [FIRST, LATER, USER],
        [FIRST, USER, LATER],
    ):
        text = templates[name].render(messages, tools_of(name), **VARIABLES)
        places = [text.find(str(message["content"])) for message in messages]
        assert -1 not in places, messages


@pytest.mark.network
@pytest.mark.parametrize(
    "name", [name for name in NAMES if name != "llama-cpp-deepseek-r1"]
)  # which writes a generator as JSON, and so fails for every tool
def test_tools_need_no_descriptions(name: str, templates: dict[str, ChatTemplate]) -> None:
    assert "Question?" in templates[name].render([USER], [BARE], **VARIABLES)


@pytest.mark.network
@pytest.mark.parametrize("name", ["Kimi-K2-Instruct", "Kimi-K2-Thinking"])
def test_a_template_may_append_to_its_own_list(
    name: str, templates: dict[str, ChatTemplate]
) -> None:
    text = templates[name].render([USER, CALL, RESULT], [BARE])
    assert "functions.now:0" in text
    assert "Argvalue" in text
    assert "Resultvalue" in text


def test_later_system_messages_become_text_of_the_user_in_their_place() -> None:
    template = ChatTemplate(ALTERNATING)
    chat = [FIRST, LATER, USER, ANSWER, LATER, OTHER]
    assert template.render(chat) == (
        "[system:Firstrule.\n\nLaterrule.][user:Question?][assistant:Reply.]"
        "[user:Laterrule.\n\nAnother?]"
    )
    assert template.render([USER, LATER]) == "[user:Question?\n\nLaterrule.]"
    assert template.render([USER, ANSWER, LATER]).endswith("[assistant:Reply.][user:Laterrule.]")


def test_a_template_without_system_messages_gets_them_with_the_users() -> None:
    template = ChatTemplate(WITHOUT_SYSTEM)
    assert template.render([FIRST, USER]) == "[user:Firstrule.\n\nQuestion?]"
    assert template.render([FIRST]) == "[user:Firstrule.]"


def test_a_template_that_shows_all_gets_them_as_they_are() -> None:
    source = "{% for m in messages %}{{ '[' + m.role + m.content + ']' }}{% endfor %}"
    text = ChatTemplate(source).render([FIRST, LATER, USER, LATER])
    assert text == "[systemFirstrule.][systemLaterrule.][userQuestion?][systemLaterrule.]"


def test_a_template_that_needs_tools_keeps_its_system_message() -> None:
    shown = "{% for m in messages %}{{ '[' + m.role + m.content + ']' }}{% endfor %}"
    source = shown + "{{ tools[0]['function']['name'] + '' }}"
    text = ChatTemplate(source).render([FIRST, USER], [BARE])
    assert text == "[systemFirstrule.][userQuestion?]now"


def test_two_messages_of_the_caller_are_not_joined() -> None:
    with pytest.raises(TemplateError, match="twice"):
        ChatTemplate(ALTERNATING).render([USER, OTHER, ANSWER, LATER])


def test_descriptions_are_added_only_where_they_are_needed() -> None:
    source = "{{ messages[0].content }}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    assert '"description"' not in ChatTemplate(source).render([USER], [BARE])
    needing = source.replace("{{ t |", "{{ '' + t.function.description }}{{ t |")
    assert '"description": ""' in ChatTemplate(needing).render([USER], [BARE])
    assert "description" not in BARE["function"]


@pytest.mark.parametrize(
    "source",
    [
        "{% set _ = messages.append(1) %}",
        "{% set _ = messages[0].tool_calls.append(1) %}",
        "{% set _ = x.y.append(1) %}",
        "{% set l = [] %}{% set _ = l.extend([1]) %}",
        "{% set _ = messages.pop() %}",
    ],
)
def test_no_template_changes_what_it_was_given(source: str) -> None:
    with pytest.raises(TemplateError, match=r"append|extend|pop|undefined"):
        ChatTemplate(source).render([CALL], x={"y": []})


def test_a_list_cannot_be_made_to_contain_itself() -> None:
    with pytest.raises(TemplateError, match="text or a number"):
        ChatTemplate("{% set l = [] %}{% set _ = l.append(l) %}{{ l }}").render([USER])
