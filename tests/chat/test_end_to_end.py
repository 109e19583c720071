"""Every tool format through `Llama`: a model with its template, and the parsed answer.

The models have random weights. They answer under the grammar of a required call, or write a script.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.speakers import SPEAKERS
from support.tiny_chat import SCHEMAS, TOOLS, Script, Speaker, calls_of, collected, likely, whole
from support.tiny_gguf import write_tiny

from llama_cffi import Llama, ValidationError
from llama_cffi.chat.formats import FORMATS

SEEDS = 2
ASK = [{"role": "user", "content": "What is the weather?"}]


def test_every_format_has_a_speaker() -> None:
    assert SPEAKERS.keys() == FORMATS.keys()


@pytest.fixture(scope="module", params=SPEAKERS)
def speaks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Speaker, Llama]]:
    """A family and its model."""
    speaker = SPEAKERS[request.param]
    path = speaker.write(tmp_path_factory.mktemp("speaker") / "model.gguf")
    with Llama(path, n_ctx=4096, n_threads=1, n_gpu_layers=0) as llm:
        assert llm.chat.family.tool_format.name == request.param
        yield speaker, llm


def options(speaker: Speaker, llm: Llama, **more: Any) -> dict[str, Any]:
    bias = {
        **likely(llm, ["]", ",", ";", ">", "\n"], 3),
        **likely(llm, ['"', "}", *speaker.words, *speaker.control], 5),
        **dict.fromkeys(llm.model.vocab.eog_tokens, 5.0),
    }
    return {"tools": TOOLS, "temperature": 1.0, "logit_bias": bias, "max_tokens": 1200, **more}


def test_required_calls_are_valid_and_equal_when_streamed(speaks: tuple[Speaker, Llama]) -> None:
    speaker, llm = speaks
    for seed in range(SEEDS):
        how = options(speaker, llm, tool_choice="required", seed=seed)
        llm.reset()  # results of other batch sizes may differ in the last bit
        message, reason = whole(llm.create_chat_completion(ASK, **how))
        assert (message["content"], reason) == (None, "tool_calls"), message
        calls = calls_of(message)
        assert len(calls) == 1 or speaker.is_parallel
        llm.reset()
        streamed, reason = collected(llm.create_chat_completion(ASK, stream=True, **how))
        assert (streamed["content"], reason) == (None, "tool_calls")
        assert calls_of(streamed) == calls
        assert streamed.keys() == message.keys()


def test_one_call_only(speaks: tuple[Speaker, Llama]) -> None:
    speaker, llm = speaks
    for seed in range(SEEDS):
        how = options(speaker, llm, parallel_tool_calls=False, seed=seed)
        message, _ = whole(llm.create_chat_completion(ASK, tool_choice="required", **how))
        assert len(calls_of(message)) == 1


def test_the_named_function_is_called(speaks: tuple[Speaker, Llama]) -> None:
    speaker, llm = speaks
    for name in ("weather", "now"):
        choice = {"type": "function", "function": {"name": name}}
        how = options(speaker, llm, tool_choice=choice, parallel_tool_calls=False, seed=1)
        message, reason = whole(llm.create_chat_completion(ASK, **how))
        assert [found for found, _ in calls_of(message)] == [name]
        assert reason == "tool_calls"


CALLS = [("weather", {"city": "Rome", "unit": "C"}), ("now", {})]


def called(parallel: bool) -> dict[str, Any]:
    """Return an assistant's message with calls."""
    calls = [
        {
            "id": f"functions.{name}:{i}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for i, (name, arguments) in enumerate(CALLS[: 1 + parallel])
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_what_the_template_renders_is_allowed_and_parsed(
    speaks: tuple[Speaker, Llama], choice: str
) -> None:
    speaker, llm = speaks
    text = turn(speaker, llm, called(speaker.is_parallel))
    asked = [(None, text, True)]
    if choice == "auto":
        asked.append((None, text, False))
        if llm.chat.family.tool_format.name not in ("llama3", "llama4", "generic"):
            asked.append(("Let me see.", speaker.said.format("Let me see.") + text, True))
    for content, text, stream in asked:
        answer = llm.create_chat_completion(
            ASK, tools=TOOLS, tool_choice=choice, stream=stream, max_tokens=900,
            logits_processor=Script(llm, text),
        )  # fmt: skip
        message, reason = collected(answer) if stream else whole(answer)
        assert (message["content"], reason) == (content, "tool_calls")
        assert calls_of(message) == CALLS[: 1 + speaker.is_parallel]


def turn(speaker: Speaker, llm: Llama, message: dict[str, Any]) -> str:
    """Return the text that the template renders for an assistant's message."""
    render = llm.chat.renderer.template.render
    text = render([*ASK, message], TOOLS, False)[len(render(ASK, TOOLS)) :]
    return text.removesuffix(speaker.turns[2])


def test_a_conversation_continues_after_calls(speaks: tuple[Speaker, Llama]) -> None:
    speaker, llm = speaks
    how = options(speaker, llm, tool_choice="required", seed=5)
    how["parallel_tool_calls"] = False
    message, _ = whole(llm.create_chat_completion(ASK, **how))
    results = [
        {"role": "tool", "tool_call_id": c["id"], "name": c["function"]["name"], "content": "20"}
        for c in message["tool_calls"]
    ]
    messages = [*ASK, message, *results]
    again, reason = whole(llm.create_chat_completion(messages, **how))
    assert calls_of(again)
    assert reason == "tool_calls"
    answer = llm.create_chat_completion(messages, tools=TOOLS, logits_processor=Script(llm, "20"))
    assert whole(answer) == ({"role": "assistant", "content": "20"}, "stop")


def test_several_answers(speaks: tuple[Speaker, Llama]) -> None:
    speaker, llm = speaks
    how = options(speaker, llm, seed=2, n=2, parallel_tool_calls=False)
    how["tool_choice"] = {"type": "function", "function": {"name": "note"}}
    choices = llm.create_chat_completion(ASK, **how)["choices"]
    assert [(c["index"], c["finish_reason"]) for c in choices] == [
        (0, "tool_calls"), (1, "tool_calls"),
    ]  # fmt: skip
    written = [c["message"]["tool_calls"][0]["function"]["arguments"] for c in choices]
    assert written[0] != written[1]
    chunks = [c["choices"][0] for c in llm.create_chat_completion(ASK, stream=True, **how)]
    for choice in choices:
        own = [{"choices": [c]} for c in chunks if c["index"] == choice["index"]]
        assert calls_of(collected(own)[0]) == calls_of(choice["message"])


SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2, 3]}, "s": {"type": "string", "maxLength": 4}},
    "required": ["n", "s"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_reasoning_before_calls(speaks: tuple[Speaker, Llama], choice: str) -> None:
    speaker, llm = speaks
    assert bool(speaker.reasoning) == (llm.chat.family.thinking != "never")
    if not speaker.reasoning:
        return
    text = turn(speaker, llm, {**called(speaker.is_parallel), "reasoning_content": "So."})
    if choice == "required":  # then reasoning is required, and its start marker is forced
        text = text.replace(llm.chat.family.tool_format.reasoning[0], "", 1)
    answer = llm.create_chat_completion(
        ASK, tools=TOOLS, tool_choice=choice, stream=choice == "auto", thinking=True,
        max_tokens=900, logits_processor=Script(llm, text),
    )  # fmt: skip
    message, reason = collected(answer) if choice == "auto" else whole(answer)
    assert (message["content"], reason) == (None, "tool_calls")
    assert message["reasoning_content"] == "So."
    assert calls_of(message) == CALLS[: 1 + speaker.is_parallel]


@pytest.mark.parametrize("thinking", [False, True])
def test_structured_output_after_reasoning(speaks: tuple[Speaker, Llama], thinking: bool) -> None:
    speaker, llm = speaks
    form = llm.chat.family.tool_format
    script = form.content_head
    if thinking:
        if not speaker.reasoning:
            return
        said = {"role": "assistant", "content": "20", "reasoning_content": "So."}
        # The markers around the reasoning are forced.
        before, end, _ = turn(speaker, llm, said).partition(form.reasoning[1])
        script = before.replace(form.reasoning[0], "", 1) + end
    how = options(speaker, llm, response_format=FORMAT, seed=4, tools=None)
    for stream in (False, True):
        how["logits_processor"] = Script(llm, script, is_free=True)
        answer = llm.create_chat_completion(ASK, stream=stream, thinking=thinking or None, **how)
        message, reason = collected(answer) if stream else whole(answer)
        jsonschema.validate(json.loads(message["content"]), SCHEMA)
        assert message.get("reasoning_content", "") == ("So." if thinking else "")
        assert reason == "stop"


def test_the_prompt_contains_the_tools(speaks: tuple[Speaker, Llama]) -> None:
    _, llm = speaks
    _, text = llm.chat.renderer.render([{"role": "system", "content": "Be kind."}, *ASK], TOOLS)
    assert all(f'"{name}"' in text for name in SCHEMAS)
    assert "Be kind." in text
    assert llm.chat.renderer.render(ASK)[1].count("weather") == 1


def test_control_tokens_of_a_user_begin_no_message(speaks: tuple[Speaker, Llama]) -> None:
    speaker, llm = speaks
    control = tuple(mark for mark in (*speaker.control, *speaker.turns) if mark.startswith("<|"))
    marks = [llm.tokenize(mark, add_bos=False, special=True) for mark in control]
    hostile = [{"role": "user", "content": f"a {' '.join(control)} b"}]
    tokens, text = llm.chat.renderer.render(hostile, TOOLS)
    harmless, _ = llm.chat.renderer.render([{"role": "user", "content": "a b"}], TOOLS)
    assert hostile[0]["content"] in text
    for mark in marks:
        if len(mark) == 1:
            assert tokens.count(mark[0]) == harmless.count(mark[0])


OPEN = Speaker(
    "Qwen3 4B Thinking 2507", SPEAKERS["hermes"].call, words=("<tool_call>", "</tool_call>"),
    prompt="<|im_start|>assistant\n<think>\n",
)  # fmt: skip


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_prompt_that_opens_reasoning(tmp_path: Path, choice: str) -> None:
    with Llama(OPEN.write(tmp_path / "m.gguf"), n_ctx=2048, n_threads=1, n_gpu_layers=0) as llm:
        text = (
            'So <tool_call>?\n</think>\n\n<tool_call>{"name": "now", "arguments": {}}</tool_call>'
        )
        for stream in (False, True):
            answer = llm.create_chat_completion(
                ASK, tools=TOOLS, tool_choice=choice, stream=stream, max_tokens=300,
                logits_processor=Script(llm, text),
            )  # fmt: skip
            message, reason = collected(answer) if stream else whole(answer)
            assert (calls_of(message), reason) == ([("now", {})], "tool_calls")
            assert (message["reasoning_content"], message["content"]) == ("So <tool_call>?", None)


PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + PLAIN


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("template", [PLAIN, NO_SYSTEM])
def test_a_template_without_tools_gets_them_as_instructions(
    tmp_path: Path, name: str, template: str
) -> None:
    path = write_tiny(tmp_path / "m.gguf", n_layer=1, n_embd=32)
    with Llama(path, n_ctx=256, n_threads=1, n_gpu_layers=0, chat_format=template) as llm:
        llm.chat.renderer.family = dataclasses.replace(llm.chat.family, tool_format=FORMATS[name])
        _, text = llm.chat.renderer.render(ASK, TOOLS)
        assert text.endswith(f"{ASK[0]['content']}\n")
        assert json.dumps(TOOLS) in text
        if FORMATS[name].instructions is None:
            example = text.split("of this example:\n", 1)[1].split("\nThe functions")[0]
            message = FORMATS[name].parse(example)
            assert [call.name for call in message.tool_calls] == ["example_function"]
            assert json.loads(message.tool_calls[0].arguments) == {"example_parameter": "value"}
        kind = "user" if template is NO_SYSTEM else "system"
        assert text.startswith(f"{kind}: You can call functions.")
        if template is PLAIN:
            kind = [{"role": "system", "content": "Be kind."}, *ASK]
            assert llm.chat.renderer.render(kind, TOOLS)[1].startswith(
                "system: Be kind.\n\nYou can"
            )


def test_functions_as_tools_for_a_template_without_tools(tiny_model: Path) -> None:
    def weather(city: str) -> str:
        """Tell the weather."""
        return city

    with Llama(tiny_model, n_ctx=256, n_threads=1, n_gpu_layers=0) as llm:
        _, text = llm.chat.renderer.render(ASK, [weather])
        assert '"description": "Tell the weather."' in text


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral-v7", "deepseek3", "phi4"])
def test_a_built_in_chat_format(tiny_model: Path, name: str) -> None:
    with Llama(tiny_model, n_ctx=512, n_threads=1, n_gpu_layers=0, chat_format=name) as llm:
        for stream in (False, True):
            answer = llm.create_chat_completion(
                ASK, stream=stream, logits_processor=Script(llm, "Sunny <b>.")
            )
            message, reason = collected(answer) if stream else whole(answer)
            assert (message, reason) == ({"role": "assistant", "content": "Sunny <b>."}, "stop")
        how = {"response_format": FORMAT, "temperature": 1.0, "seed": 1, "max_tokens": 300}
        message, _ = whole(llm.create_chat_completion(ASK, **how))
        jsonschema.validate(json.loads(message["content"]), SCHEMA)
        with pytest.raises(ValidationError, match="does not support tools"):
            llm.create_chat_completion(ASK, tools=TOOLS)
