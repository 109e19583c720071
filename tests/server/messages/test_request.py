"""Requests of the Messages API become chats."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.anthropic_requests import BILLING, CLAUDE_CODE, HELLO, SUM, WEATHER
from support.tiny_gguf import write_tiny

from llama_cffi import Llama, ValidationError
from llama_cffi.chat.families import Family
from llama_cffi.demo import model_path
from llama_cffi.server.messages import chat_request


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(model_path(), n_ctx=1024, n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def family(llm: Llama) -> Family:
    return llm.chat.family


def messages_of(family: Family, *messages: Any, **fields: Any) -> list[Any]:
    return [*chat_request({"messages": [*messages], **fields}, family).messages]


def options_of(family: Family, **fields: Any) -> Any:
    return chat_request({**HELLO, **fields}, family).options


def test_a_request_of_claude_code_becomes_a_chat(llm: Llama, family: Family) -> None:
    messages, options = chat_request(CLAUDE_CODE, family)
    system, user, assistant, first, second, go_on, note, question = messages
    assert system["content"] == [
        {"type": "text", "text": "You are a command-line tool."},
        {"type": "text", "text": "\nUse the tools."},
    ]
    assert [m["role"] for m in messages] == [
        "system", "user", "assistant", "tool", "tool", "user", "system", "user",
    ]  # fmt: skip
    assert isinstance(user["content"], list)
    assert assistant == {
        "role": "assistant",
        "content": "I read it.",
        "reasoning_content": "I need the file.",
        "tool_calls": [
            {
                "id": f"toolu_{i}",
                "type": "function",
                "function": {"name": "Read", "arguments": {"file_path": f"{name}.txt"}},
            }
            for i, name in ((1, "a"), (2, "b"))
        ],
    }
    assert first == {"role": "tool", "tool_call_id": "toolu_1", "content": "Hello."}
    assert second["tool_call_id"] == "toolu_2"
    assert second["content"] == [
        {"type": "text", "text": "Error:"},
        {"type": "text", "text": "no such file"},
    ]
    assert go_on == {"role": "user", "content": "Go on."}
    assert note == {"role": "system", "content": "The user has opened c.txt."}
    tools: Any = options.pop("tools")
    assert [tool["function"]["name"] for tool in tools] == ["get_weather", "Read"]
    assert options == {
        "model": "demo",
        "max_tokens": 32000,
        "thinking": True,
        "chat_template_kwargs": {"reasoning_effort": "high"},
        "stream_options": {"include_usage": True, "include_stop_reason": True},
    }
    assert question == {"role": "user", "content": "What is 17 + 25?"}


def test_the_changing_line_of_claude_code_leaves_the_prefix_equal(family: Family) -> None:

    def systems(a: str, b: str) -> list[Any]:
        head = BILLING.format(a, b)
        return [
            messages_of(family, *HELLO["messages"], system=system)
            for system in (
                [{"type": "text", "text": head}, {"type": "text", "text": "Be brief."}],
                [{"type": "text", "text": f"{head}\nBe brief."}],
                f"{head}\nBe brief.",
            )
        ] + [messages_of(family, {"role": "system", "content": f"{head}\nBe brief."})]

    one, other = systems("01c", "36ee5"), systems("9f2", "0aaa9")
    assert one == other
    assert all(messages[0]["content"] == "Be brief." for messages in one)
    kept = f"Explain {BILLING}"
    assert messages_of(family, *HELLO["messages"], system=kept)[0]["content"] == kept


@pytest.mark.behaviour("messages: content in blocks means the same as text")
@pytest.mark.behaviour("messages: system is a text or blocks")
def test_text_blocks_mean_the_same_as_text(llm: Llama, family: Family) -> None:
    def tokens(content: Any, system: Any) -> Sequence[int]:
        body = {"messages": [{"role": "user", "content": content}], "system": system}
        messages, options = chat_request(body, family)
        return llm.chat.prepare(messages, options, stream=True).request.tokens

    one = tokens("Hello!", "Be brief.")
    blocks = [{"type": "text", "text": text} for text in ("Hello!", "Be brief.")]
    assert tokens(blocks[:1], blocks[1:]) == one
    assert tokens("Hello!", None) == tokens("Hello!", "") == tokens("Hello!", [])


@pytest.mark.behaviour("messages: a tool_result is a text, blocks, or an error")
def test_results_follow_the_calls_whatever_was_written_before_them(family: Family) -> None:
    blocks = [
        {"type": "text", "text": "Here."},
        {"type": "tool_result", "tool_use_id": "a"},
        {
            "type": "tool_result",
            "tool_use_id": "b",
            "content": [{"type": "tool_reference", "tool_name": "Read"}],
        },
    ]
    assert messages_of(family, {"role": "user", "content": blocks}) == [
        {"role": "tool", "tool_call_id": "a", "content": ""},
        {"role": "tool", "tool_call_id": "b", "content": "Read"},
        {"role": "user", "content": "Here."},
    ]


@pytest.mark.parametrize("system", [{}, {"system": "Be brief."}])
def test_an_empty_list_of_messages_is_a_turn_without_text(family: Family, system: Any) -> None:
    assert messages_of(family, **system)[-1] == {"role": "user", "content": ""}


@pytest.mark.behaviour(
    "messages: thinking of earlier turns raises the count and reaches the template"
)
def test_thinking_of_earlier_turns_reaches_the_template(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>"
        "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    path = write_tiny(tmp_path / "tiny.gguf", n_layer=1, n_embd=32, chat_template=template)
    text = {"type": "text", "text": "42"}
    thinking = {"type": "thinking", "thinking": "17 + 25 = 42", "signature": "x"}
    redacted = {"type": "redacted_thinking", "data": "x"}
    with Llama(path, n_ctx=256, n_threads=1) as llm:
        counts = []
        for blocks in ([text], [redacted, text], [thinking, text]):
            body = {"messages": [*SUM["messages"], {"role": "assistant", "content": blocks}]}
            messages, options = chat_request(body, llm.chat.family)
            counts.append(len(llm.chat.prepare(messages, options, stream=True).request.tokens))
    plain, without, with_thinking = counts
    assert plain == without
    assert with_thinking == plain + len("<think>17 + 25 = 42</think>")


def test_what_the_server_of_anthropic_ran_is_left_out(family: Family) -> None:
    blocks = [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "text", "text": "Found."},
    ]
    assert messages_of(family, *HELLO["messages"], {"role": "assistant", "content": blocks})[1] == {
        "role": "assistant",
        "content": "Found.",
    }


@pytest.mark.behaviour("messages: thinking can be enabled, and metadata is ignored")
@pytest.mark.parametrize(
    ("thinking", "modes"),
    [
        ({"type": "enabled", "budget_tokens": 2000}, {"request", "default", "always"}),
        ({"type": "adaptive"}, {"request", "default", "always"}),
        ({"type": "between_tools"}, {"request", "default", "always"}),
        ({"type": "disabled"}, set()),
    ],
)
@pytest.mark.parametrize("mode", ["request", "default", "always", "never"])
def test_thinking_is_asked_of_models_that_can_switch_it(
    family: Family, thinking: dict[str, Any], modes: set[str], mode: Any
) -> None:
    family = dataclasses.replace(family, thinking=mode)
    found = options_of(family, thinking=thinking)
    if thinking["type"] != "disabled":
        assert found.get("thinking") == (True if mode in modes else None)
        assert found.get("thinking_budget") == (
            thinking.get("budget_tokens") if mode in modes else None
        )
    elif mode == "always":
        assert (found.get("thinking"), found["thinking_budget"]) == (None, 0)
    else:
        assert found["thinking"] is False
    family.thinks(found.get("thinking"))  # raises if the model cannot do that


@pytest.mark.behaviour("messages: stop_sequences, temperature, top_p and top_k are kept")
@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {"max_tokens": 50}),
        ({"max_tokens": None}, {"max_tokens": 4096}),
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 5},
            {"temperature": 0.5, "top_p": 0.9, "top_k": 5},
        ),
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"tool_choice": {"type": "auto"}, "tools": [WEATHER]}, {"tool_choice": "auto"}),
        ({"tool_choice": {"type": "none"}, "tools": [WEATHER]}, {"tool_choice": "none"}),
        (
            {
                "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
                "tools": [{**WEATHER, "type": "custom"}],
            },
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"tool_choice": {"type": "tool", "name": "get_weather"}, "tools": [WEATHER]},
            {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        ),
        (
            {"output_config": {"effort": "low"}},
            {"chat_template_kwargs": {"reasoning_effort": "low"}},
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "object"}},
                }
            },
        ),
    ],
)
def test_fields_become_options_that_a_chat_takes(
    llm: Llama, family: Family, fields: Any, options: Any
) -> None:
    found = chat_request({**HELLO, **fields}, family)
    assert options.items() <= found.options.items()
    llm.chat.prepare(found.messages, found.options, stream=True)


@pytest.mark.behaviour("messages: thinking can be enabled, and metadata is ignored")
def test_unknown_fields_null_fields_and_metadata_change_nothing(family: Family) -> None:
    given = {**HELLO, "tools": [WEATHER]}
    more: dict[str, Any] = {
        "metadata": {"user_id": "u"}, "service_tier": "auto", "container": None, "mcp_servers": [],
        "speed": "fast", "system": None, "temperature": None, "thinking": None, "stream": False,
        "cache_control": {"type": "ephemeral"}, "tool_choice": None, "output_config": None,
    }  # fmt: skip
    tools = [
        {**WEATHER, "cache_control": {"type": "ephemeral"}, "strict": True, "defer_loading": True},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "mcp_toolset", "mcp_server_name": "x"},
        {"type": "tool_of_next_year"},
    ]
    assert chat_request({**given, **more, "tools": tools}, family) == chat_request(given, family)


def user(*blocks: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*blocks]}]}


def assistant(*blocks: object) -> dict[str, Any]:
    return {"messages": [*HELLO["messages"], {"role": "assistant", "content": [*blocks]}]}


def test_pictures_stay_in_their_place(family: Family) -> None:
    text = {"type": "text", "text": "Look."}
    blocks = [text, IMAGE, text, {"type": "image", "source": {"type": "url", "url": "u"}}]
    parts = [
        text,
        {"type": "image", "source": {"data": "AA=="}},
        text,
        {"type": "image", "source": {"url": "u"}},
    ]
    (message,) = messages_of(family, {"role": "user", "content": blocks})
    assert message == {"role": "user", "content": parts}
    assert message["content"][1].where == "messages.0.content.1.source"
    result = {"type": "tool_result", "tool_use_id": "t", "is_error": True, "content": [IMAGE]}
    message = messages_of(family, {"role": "user", "content": [result]})[0]
    assert message["content"] == [{"type": "text", "text": "Error:"}, parts[1]]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
RESULT = {"type": "tool_result", "tool_use_id": "a"}
CALL = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
WRONG: list[tuple[Any, str]] = [
    ([], "the body must be an object, got []"),
    ({}, "messages is missing; it must be a list"),
    ({"messages": "Hi"}, "messages must be a list, got 'Hi'"),
    ({"messages": ["Hi"]}, "messages.0 must be an object"),
    ({"messages": [{"content": "Hi"}]}, "messages.0.role is missing"),
    (
        {"messages": [{"role": "tool", "content": "Hi"}]},
        "messages.0.role='tool' is not one of user",
    ),
    ({"messages": [{"role": "user"}]}, "messages.0.content is missing; it must be a string or a"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content must be a string or a"),
    ({"messages": [{"role": "user", "content": {}}]}, "messages.0.content must be a string or a"),
    (user("Hi"), "messages.0.content.0 must be an object"),
    (user({"text": "Hi"}), "messages.0.content.0.type is missing"),
    (user({"type": "text"}), "messages.0.content.0.text is missing"),
    (user({"type": "text", "text": ["Hi"]}), "messages.0.content.0.text must be a string"),
    (user({"type": "image"}), "messages.0.content.0.source is missing"),
    (user({"type": "image", "source": {}}), "messages.0.content.0.source.type is missing"),
    (
        user({"type": "image", "source": {"type": "file"}}),
        "messages.0.content.0.source.type='file'",
    ),
    (user({"type": "image", "source": {"type": "url"}}), "messages.0.content.0.source.url is miss"),
    (user({"type": "document", "source": {}}), "messages.0.content.0.type: .*is a document"),
    (user({"type": "search_result"}), "messages.0.content.0.type: .*cannot be used here"),
    (user(CALL), "messages.0.content.0.type: .*'tool_use' cannot be used here"),
    (user({**RESULT, "content": [{"type": "image"}]}), "messages.0.content.0.content.0.source is"),
    (user({**RESULT, "content": 5}), "messages.0.content.0.content must be a string or a list"),
    (user({**RESULT, "is_error": "no"}), "messages.0.content.0.is_error must be true or false"),
    (user({"type": "tool_result"}), "messages.0.content.0.tool_use_id is missing"),
    (assistant(RESULT), "messages.1.content.0.type: .*'tool_result' cannot be used here"),
    (assistant({**CALL, "input": "{}"}), "messages.1.content.0.input must be an object"),
    (assistant({**CALL, "name": None}), "messages.1.content.0.name is missing"),
    (assistant({**CALL, "id": 7}), "messages.1.content.0.id must be a string"),
    (assistant({"type": "thinking"}), "messages.1.content.0.thinking is missing"),
    ({"system": 5}, "system must be a string or a list"),
    ({"system": [{"type": "text", "text": 5}]}, "system.0.text must be a string"),
    ({"system": [IMAGE]}, "system.0.type: .*a picture"),
    ({"model": 5}, "model must be a string"),
    ({"stream": "yes"}, "stream must be true or false"),
    ({"metadata": "u"}, "metadata must be an object"),
    ({"max_tokens": "5"}, "max_tokens must be an integer, got '5'"),
    ({"max_tokens": True}, "max_tokens must be an integer, got True"),
    ({"max_tokens": 5.0}, "max_tokens must be an integer, got 5.0"),
    ({"max_tokens": 0}, "max_tokens=0 is outside 1.."),
    ({"max_tokens": 10**30}, "max_tokens=1000.* is outside 1.."),
    ({"temperature": "1"}, "temperature must be a number"),
    ({"temperature": True}, "temperature must be a number"),
    ({"top_p": []}, "top_p must be a number"),
    ({"top_k": 1.5}, "top_k must be an integer"),
    ({"stop_sequences": "a"}, "stop_sequences must be a list"),
    ({"stop_sequences": ["a", 5]}, "stop_sequences.1 must be a string"),
    ({"stop_sequences": [""]}, "stop_sequences.0 must not be empty"),
    ({"tools": {}}, "tools must be a list"),
    ({"tools": ["f"]}, "tools.0 must be an object"),
    ({"tools": [WEATHER, {"type": 5}]}, "tools.1.type must be a string"),
    ({"tools": [{**WEATHER, "name": None}]}, "tools.0.name is missing"),
    ({"tools": [{**WEATHER, "description": 5}]}, "tools.0.description must be a string"),
    ({"tools": [{"name": "f"}]}, "tools.0.input_schema is missing"),
    ({"tools": [{"name": "f", "input_schema": "{}"}]}, "tools.0.input_schema must be an object"),
    ({"tool_choice": "auto"}, "tool_choice must be an object"),
    ({"tool_choice": {"type": "required"}}, "tool_choice.type='required' is not one of auto, any"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name is missing"),
    (
        {"tool_choice": {"type": "any", "disable_parallel_tool_use": 1}},
        "tool_choice.disable_parallel_tool_use must be true or false",
    ),
    ({"thinking": True}, "thinking must be an object"),
    ({"thinking": {"type": "on"}}, "thinking.type='on' is not one of enabled"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": "many"}},
        "thinking.budget_tokens must be an integer",
    ),
    ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens=0 is outside"),
    ({"output_config": []}, "output_config must be an object"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort='huge' is not one of low"),
    ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type='text' is not"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema is miss"),
]


@pytest.mark.behaviour("messages: missing messages are 4xx, and an empty list is answered")
@pytest.mark.parametrize(("body", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_a_wrong_field_is_named_by_its_path(family: Family, body: Any, message: str) -> None:
    if isinstance(body, dict) and body and "messages" not in body:
        body = {**HELLO, **body}
    with pytest.raises(ValidationError, match=f"^{message}".replace("[]", r"\[\]")):
        chat_request(body, family)


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    items: Any = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else items:
        yield from places(item, (*path, key))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
PLACES = [path for path in places(CLAUDE_CODE) if path]


@settings(max_examples=150)
@given(path=st.sampled_from(PLACES), value=JSON_VALUES)
def test_any_value_in_any_place_is_taken_or_refused_by_its_path(
    llm: Llama, path: tuple[Any, ...], value: Any
) -> None:
    body = copy.deepcopy(CLAUDE_CODE)
    place: Any = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    refusal = path[0]
    try:
        messages, options = chat_request(body, llm.chat.family)
        with suppress(ValidationError):
            llm.chat.prepare(messages, options, stream=True)
    except ValidationError as error:
        refusal = str(error)
    assert refusal.startswith(path[0])
