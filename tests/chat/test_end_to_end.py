"""Every tool format through `Llama`: a model that speaks it, its template, the answer read back.

The models are random and answer under the grammar of a required call, or say what a script says.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tiny_chat import SCHEMAS, TOOLS, Script, Speaker, calls_of, collected, likely, whole
from tiny_gguf import write_tiny

from llama_cffi import Llama, ValidationError
from llama_cffi.chat.formats import FORMATS

SEEDS = 2
ASK = [{"role": "user", "content": "What is the weather?"}]
NAME, ARGUMENTS = "{{ c.function.name }}", "{{ c.function.arguments | tojson }}"
CALL = f'{{"name": "{NAME}", "arguments": {ARGUMENTS}}}'
LISTED = f"{{% for c in m.tool_calls %}}{{{{ ', ' if not loop.first }}}}{CALL}{{% endfor %}}"
THINK = "<think>{{ m.reasoning_content }}</think>"
EACH = "{% for k, v in c.function.arguments.items() %}"
RAW = "{{ v if v is string else v | tojson }}"
_BAR, _LOW = "\uff5c", "\u2581"  # DeepSeek's own bars and spaces


def deepseek(text: str) -> str:
    return text.replace("|", _BAR).replace("_", _LOW)


DEEPSEEK = tuple(
    deepseek(f"<|tool_{name}|>")
    for name in ("calls_begin", "calls_end", "call_begin", "call_end", "sep")
)


def deepseek_calls(call: str) -> str:
    begin, end, call_begin, call_end, _ = DEEPSEEK
    each = f"{{% for c in m.tool_calls %}}{call_begin}{call}{call_end}{{% endfor %}}"
    return f"{begin}{each}{end}"


def gemma(quote: str) -> str:
    """Return Jinja that writes arguments in Gemma's way."""
    return (
        "{% macro g(v) %}{% if v is mapping %}{{ '{' }}{% for k, w in v.items() %}"
        "{{ ',' if not loop.first }}{{ k }}:{{ g(w) }}{% endfor %}{{ '}' }}"
        f"{{% elif v is string %}}{quote}{{{{ v }}}}{quote}"
        "{% elif v is iterable %}["
        "{% for w in v %}{{ ',' if not loop.first }}{{ g(w) }}{% endfor %}]"
        "{% else %}{{ v | tojson }}{% endif %}{% endmacro %}{{ g(c.function.arguments) }}"
    )


PYTHON = (
    "{% macro p(v) %}{% if v is boolean %}{{ 'True' if v else 'False' }}{% else %}"
    "{{ v | tojson }}{% endif %}{% endmacro %}"
    "[{% for c in m.tool_calls %}{{ ', ' if not loop.first }}{{ c.function.name }}("
    "{% for k, v in c.function.arguments.items() %}{{ ', ' if not loop.first }}{{ k }}={{ p(v) }}"
    "{% endfor %}){% endfor %}]"
)
LLAMA = ("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")
LLAMA_PROMPT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
SPEAKERS = {
    "harmony": Speaker(
        "gpt-oss 20b",
        f"<|channel|>commentary to=functions.{NAME} <|constrain|>json"
        f"<|message|>{ARGUMENTS}<|call|>",
        ("<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|return|>", "<|end|>"),
        turns=("<|start|>", "", "<|end|>"),
        prompt="<|start|>assistant",
        thought="<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|><|start|>assistant",
        is_parallel=False,
        content="<|channel|>final<|message|>{{ m.content }}",
        said="<|channel|>commentary<|message|>{}<|end|><|start|>assistant",
    ),
    "functionary-v3.2": Speaker(
        "functionary small v3.2",
        f">>>{NAME}\n{{{{ c.function.arguments }}}}",
        before=">>>all",
        content=">>>all\n{{ m.content }}",
        said="all\n{}>>>",
        turns=LLAMA,
        prompt=f"{LLAMA_PROMPT}>>>",
    ),
    "functionary-v3.1": Speaker(
        "functionary small v3.1",
        f"<function={NAME}>{ARGUMENTS}</function>",
        before="<|python_tag|>",
        turns=LLAMA,
        prompt=LLAMA_PROMPT,
    ),
    "kimi-k2": Speaker(
        "Kimi K2 Instruct",
        "<|tool_calls_section_begin|>{% for c in m.tool_calls %}<|tool_call_begin|>{{ c.id }}"
        f"<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|>{{% endfor %}}"
        "<|tool_calls_section_end|>",
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
         "<|tool_call_end|>", "<|tool_call_argument_begin|>"),
    ),
    "deepseek-v3": Speaker(
        "DeepSeek V3 0324",
        deepseek_calls(f"function{DEEPSEEK[4]}{NAME}\n```json\n{ARGUMENTS}\n```"),
        DEEPSEEK,
    ),
    "deepseek-v3.1": Speaker(
        "DeepSeek V3.1",
        deepseek_calls(f"{NAME}{DEEPSEEK[4]}{ARGUMENTS}"),
        DEEPSEEK,
        before="{% if thinking %}",
        thought=THINK,
    ),
    "mistral": Speaker(
        "Magistral Small 2509",
        f"[TOOL_CALLS]{NAME}[ARGS]{ARGUMENTS}",
        ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
        thought="[THINK]{{ m.reasoning_content }}[/THINK]",
    ),
    "mistral-nemo": Speaker(
        "Mistral Nemo Instruct 2407", f"[TOOL_CALLS][{LISTED}]", ("[TOOL_CALLS]",)
    ),
    "gemma4": Speaker(
        "gemma 4 31B it",
        "<|tool_call>call:{{ c.function.name }}" + gemma('<|"|>') + "<tool_call|>",
        ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"),
        before="{% if enable_thinking %}",
        thought="<|channel>thought\n{{ m.reasoning_content }}\n<channel|>",
        turns=("<|turn>", "\n", "<turn|>"),
        prompt="<|turn>assistant\n",
    ),
    "functiongemma": Speaker(
        "functiongemma 270m it",
        "<start_function_call>call:{{ c.function.name }}" + gemma("<escape>")
        + "<end_function_call>",
        ("<start_function_call>", "<end_function_call>", "<escape>"),
        turns=("<start_of_turn>", "\n", "<end_of_turn>"),
        prompt="<start_of_turn>assistant\n",
    ),
    "seed-oss": Speaker(
        "Seed OSS 36B Instruct",
        f"<seed:tool_call>\n<function={NAME}>\n{EACH}<parameter={{{{ k }}}}>{RAW}</parameter>\n"
        "{% endfor %}</function>\n</seed:tool_call>",
        ("<seed:think>", "</seed:think>"),
        ("<seed:tool_call>", "</seed:tool_call>", "</parameter>"),
        thought="<seed:think>{{ m.reasoning_content }}</seed:think>",
    ),
    "minimax-m2": Speaker(
        "MiniMax M2",
        f'<minimax:tool_call>\n{{% for c in m.tool_calls %}}<invoke name="{NAME}">\n{EACH}'
        f'<parameter name="{{{{ k }}}}">{RAW}</parameter>\n{{% endfor %}}</invoke>\n'
        "{% endfor %}</minimax:tool_call>",
        words=("<minimax:tool_call>", "</minimax:tool_call>", "</parameter>"),
        before="{% if thinking %}",
        thought=THINK,
    ),
    "minicpm5": Speaker(
        "MiniCPM5 1B",
        f'<function name="{NAME}">{EACH}<param name="{{{{ k }}}}">{RAW}</param>{{% endfor %}}'
        "</function>",
        words=("</param>",),
        before="{% if enable_thinking %}",
        thought=THINK,
    ),
    "glm": Speaker(
        "GLM 4.6",
        f"<tool_call>{NAME}\n{EACH}<arg_key>{{{{ k }}}}</arg_key>\n<arg_value>{RAW}</arg_value>\n"
        "{% endfor %}</tool_call>",
        words=("<tool_call>", "</tool_call>", "<arg_value>", "</arg_value>"),
        before="{% if enable_thinking %}",
        thought=THINK,
    ),
    "qwen3-coder": Speaker(
        "Qwen3.5 4B",
        f"<tool_call>\n<function={NAME}>\n{EACH}<parameter={{{{ k }}}}>\n{RAW}\n</parameter>\n"
        "{% endfor %}</function>\n</tool_call>",
        words=("<tool_call>", "</tool_call>", "\n</parameter>"),
        before="{% if enable_thinking %}",
        thought=THINK,
    ),
    "phi4": Speaker(
        "Phi 4 mini instruct", f"<|tool_call|>[{LISTED}]<|/tool_call|>",
        ("<|tool_call|>", "<|/tool_call|>"),
        before="<|tool|>",
        turns=("<|im_start|>", "\n", "<|end|>"),
    ),
    "granite": Speaker(
        "granite 3.3 8b instruct", f"<|tool_call|>[{LISTED}]", ("<|tool_call|>",),
        before="{% if thinking %}",
        thought=THINK,
    ),
    "nemotron": Speaker(
        "Nemotron Nano v2", f"<TOOLCALL>[{LISTED}]</TOOLCALL>",
        before="{% if enable_thinking %}", thought=THINK,
    ),
    "apriel": Speaker("Apriel 1.5 15b", f"<tool_calls>[{LISTED}]</tool_calls>"),
    "lfm2": Speaker(
        "LFM2 8B A1B", f"<|tool_call_start|>{PYTHON}<|tool_call_end|>",
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "hermes": Speaker(
        "Qwen3 8B", f"<tool_call>\n{CALL}\n</tool_call>",
        words=("<tool_call>", "</tool_call>"),
        before="{% if enable_thinking %}",
        thought=THINK,
    ),
    "llama3": Speaker(
        "Llama 3.1 8B Instruct", f'{{"name": "{NAME}", "parameters": {ARGUMENTS}}}',
        ("<|python_tag|>",),
        before="<|python_tag|>",
        turns=LLAMA,
        prompt=LLAMA_PROMPT,
        is_parallel=False,
    ),
    "gemma-tool-code": Speaker(
        "gemma 3 27b it", f"```tool_code\n{PYTHON}\n```", words=("```",),
        turns=("<start_of_turn>", "\n", "<end_of_turn>"),
        prompt="<start_of_turn>assistant\n",
        tools="",
    ),
    "generic": Speaker("Unheard of", f'{{"tool_calls": [{LISTED}]}}', tools=""),
}  # fmt: skip


DSML = "\uff5cDSML\uff5c"


def tagged(calls: str) -> Speaker:
    """Return DeepSeek from V3.2 on, whose *calls* is one tag or the other."""
    kind = "{{ 'true' if v is string else 'false' }}"
    return Speaker(
        "DeepSeek V3.2",
        f'<{DSML}{calls}>\n{{% for c in m.tool_calls %}}<{DSML}invoke name="{NAME}">\n{EACH}'
        f'<{DSML}parameter name="{{{{ k }}}}" string="{kind}">{RAW}</{DSML}parameter>\n'
        f"{{% endfor %}}</{DSML}invoke>\n{{% endfor %}}</{DSML}{calls}>",
        words=(f"</{DSML}parameter>", f"</{DSML}{calls}>"),
        before="{% if thinking %}",
        thought=THINK,
    )


def cohere(words: str) -> Speaker:
    call = f'{{"tool_call_id": "{{{{ loop.index0 }}}}", "tool_name": "{NAME}", "parameters": '
    comma = "{{ ',' if not loop.last }}"
    return Speaker(
        "Command R7B",
        f"<|START_ACTION|>[\n{{% for c in m.tool_calls %}}    {call}{ARGUMENTS}}}{comma}\n"
        "{% endfor %}]<|END_ACTION|>",
        ("<|START_ACTION|>", "<|END_ACTION|>", f"<|START_{words}|>", f"<|END_{words}|>",
         "<|START_THINKING|>", "<|END_THINKING|>"),
        before="{% if enable_thinking %}",
        thought="<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|>",
        content=f"<|START_{words}|>{{{{ m.content }}}}<|END_{words}|>",
        said=f"<|START_{words}|>{{}}<|END_{words}|>",
    )  # fmt: skip


HY = ":opensource>"
M3 = "]<]minimax[>["
SPEAKERS |= {
    "muse": Speaker(
        "Muse Glimmer",
        "{% for c in m.tool_calls %}{{ '<|eom|><|start|>assistant' if not loop.first }}"
        f' to={NAME}<|message|><atem:function_calls>\n<atem:invoke name="{NAME}">\n{EACH}'
        f'<atem:parameter name="{{{{ k }}}}">{RAW}</atem:parameter>\n{{% endfor %}}'
        "</atem:invoke>\n</atem:function_calls>{% endfor %}",
        ("<|message|>", "<|eom|>"),
        ("</atem:parameter>",),
        before="{% if thinking %}",
        turns=("<|start|>", "", "<|eot|>"),
        prompt="<|start|>assistant",
        thought=" to=self<|message|>{{ m.reasoning_content }}<|eom|><|start|>assistant",
        content=" to=user<|message|>{{ m.content }}",
        said=" to=user<|message|>{}<|eom|><|start|>assistant",
    ),
    "kimi-k3": Speaker(
        "Kimi K3",
        "<|open|>tools<|sep|>{% for c in m.tool_calls %}"
        f'<|open|>call tool="{NAME}" index="{{{{ loop.index }}}}"<|sep|>{EACH}'
        '<|open|>argument key="{{ k }}" type="'
        "{{ 'string' if v is string else 'object' if v is mapping else 'array' }}\"<|sep|>"
        f"{RAW}<|close|>argument<|sep|>{{% endfor %}}<|close|>call<|sep|>{{% endfor %}}"
        "<|close|>tools<|sep|>",
        ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        before="{% if thinking %} <|end_of_msg|>",
        thought="<|open|>think<|sep|>{{ m.reasoning_content }}<|close|>think<|sep|>",
        content="<|open|>response<|sep|>{{ m.content }}<|close|>response<|sep|>",
        said="<|open|>response<|sep|>{}<|close|>response<|sep|>",
    ),
    "minimax-m3": Speaker(
        "MiniMax M3",
        "{% macro x(v) %}{% if v is mapping %}{% for k, w in v.items() %}"
        f"{M3}<{{{{ k }}}}>{{{{ x(w) }}}}{M3}</{{{{ k }}}}>{{% endfor %}}"
        "{% elif v is string %}{{ v }}{% elif v is iterable %}{% for w in v %}"
        f"{M3}<item>{{{{ x(w) }}}}{M3}</item>{{% endfor %}}"
        "{% else %}{{ v | tojson }}{% endif %}{% endmacro %}"
        f"{M3}<tool_call>\n{{% for c in m.tool_calls %}}{M3}<invoke name=\"{NAME}\">"
        f"{{{{ x(c.function.arguments) }}}}{M3}</invoke>\n{{% endfor %}}{M3}</tool_call>",
        words=(M3,),
        before="{% if thinking %} <invoke name=",
        thought="<mm:think>{{ m.reasoning_content }}</mm:think>",
    ),
    "solar": Speaker(
        "Solar Open 100B",
        "<|tool_calls|>{% for c in m.tool_calls %}<|tool_call:begin|>{{ 'abcdefghi' }}"
        f"{{{{ loop.index }}}}<|tool_call:name|>{NAME}<|tool_call:args|>{ARGUMENTS}"
        "<|tool_call:end|>{% endfor %}",
        ("<|tool_calls|>", "<|tool_call:begin|>", "<|tool_call:name|>", "<|tool_call:args|>",
         "<|tool_call:end|>", "<|content|>", "<|think|>", "<|end|>", "<|calls|>", "<|flush|>"),
        before="{% if thinking %}",
        turns=("<|begin|>", "", "<|calls|>"),
        prompt="<|begin|>assistant",
        thought="<|think|>{{ m.reasoning_content }}<|end|><|begin|>assistant",
        content="<|content|>{{ m.content }}",
        said="<|content|>{}<|end|><|begin|>assistant",
    ),
    "deepseek-v3.2": tagged("function_calls"),
    "deepseek-v4": tagged("tool_calls"),
    "hunyuan3": Speaker(
        "Hy3",
        f"<tool_calls{HY}\n{{% for c in m.tool_calls %}}<tool_call{HY}{NAME}<tool_sep{HY}\n{EACH}"
        f"<arg_key{HY}{{{{ k }}}}</arg_key{HY}\n<arg_value{HY}{RAW}</arg_value{HY}\n"
        f"{{% endfor %}}</tool_call{HY}\n{{% endfor %}}</tool_calls{HY}",
        words=(f"<arg_value{HY}", f"</arg_value{HY}", f"</tool_calls{HY}"),
        before="{% if thinking %}",
        thought=f"<think{HY}{{{{ m.reasoning_content }}}}</think{HY}",
    ),
    "command-r7b": cohere("RESPONSE"),
    "cohere2-moe": cohere("TEXT"),
    "command-r-plus": Speaker(
        "Command R plus",
        "\nAction:\n```json\n[\n{% for c in m.tool_calls %}{{ ',\n' if not loop.first }}"
        f'    {{\n        "tool_name": "{NAME}",\n        "parameters": {ARGUMENTS}\n    }}'
        "{% endfor %}{{ '\n' }}]```",
        before="tool_name",
    ),
    "apertus": Speaker(
        "Apertus 8B Instruct",
        "<|tools_prefix|>[{% for c in m.tool_calls %}{{ ', ' if not loop.first }}"
        f'{{"{NAME}": {ARGUMENTS}}}{{% endfor %}}]<|tools_suffix|>',
        ("<|tools_prefix|>", "<|tools_suffix|>", "<|inner_prefix|>", "<|inner_suffix|>"),
        before="{% if enable_thinking %}",
        thought="<|inner_prefix|>{{ m.reasoning_content }}<|inner_suffix|>",
    ),
    "firefunction": Speaker(
        "Firefunction v2", f"functools[{LISTED}]", before=" functools[", turns=LLAMA,
        prompt=LLAMA_PROMPT,
    ),
    "gigachat3.1": Speaker(
        "GigaChat3.1 10B", f"<|function_call|>{CALL}", ("<|function_call|>", "<|role_sep|>"),
        before="<|role_sep|>", is_parallel=False,
    ),
    "gigachat3": Speaker(
        "GigaChat3 10B", f"function call<|role_sep|>\n{CALL}", ("<|role_sep|>", "<|message_sep|>"),
        before="<|message_sep|>", is_parallel=False, said="{}<|message_sep|>\n\n",
    ),
    "minimax-m1": Speaker(
        "MiniMax M1",
        f"<tool_calls>\n{{% for c in m.tool_calls %}}{CALL}\n{{% endfor %}}</tool_calls>",
        before="beginning_of_sentence",
    ),
}  # fmt: skip


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


def test_required_calls_are_valid_streamed_and_whole(speaks: tuple[Speaker, Llama]) -> None:
    speaker, llm = speaks
    for seed in range(SEEDS):
        how = options(speaker, llm, tool_choice="required", seed=seed)
        llm.reset()  # what was evaluated in other pieces may differ in the last bit
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
def test_what_the_template_writes_is_allowed_and_read(
    speaks: tuple[Speaker, Llama], choice: str
) -> None:
    speaker, llm = speaks
    text = turn(speaker, llm, called(speaker.is_parallel))
    asked = [(None, text, True)]
    if choice == "auto":
        asked.append((None, text, False))
        if llm.chat.family.tool_format.name not in ("llama3", "generic"):
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
    """Return what the template writes of an assistant's message."""
    render = llm.chat.template.render
    text = render([*ASK, message], TOOLS, False)[len(render(ASK, TOOLS)) :]
    return text.removesuffix(speaker.turns[2])


def test_a_conversation_with_calls_goes_on(speaks: tuple[Speaker, Llama]) -> None:
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
def test_a_thought_comes_before_calls(speaks: tuple[Speaker, Llama], choice: str) -> None:
    speaker, llm = speaks
    assert bool(speaker.thought) == (llm.chat.family.thinking != "never")
    if not speaker.thought:
        return
    text = turn(speaker, llm, {**called(speaker.is_parallel), "reasoning_content": "So."})
    if choice == "required":  # then a thought has to come, and what begins it is put there
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
def test_structured_output_and_the_thought_before_it(
    speaks: tuple[Speaker, Llama], thinking: bool
) -> None:
    speaker, llm = speaks
    form = llm.chat.family.tool_format
    script = form.content_head
    if thinking:
        if not speaker.thought:
            return
        said = {"role": "assistant", "content": "20", "reasoning_content": "So."}
        # What is around the thought is put there.
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


def test_the_prompt_shows_the_tools(speaks: tuple[Speaker, Llama]) -> None:
    _, llm = speaks
    _, text = llm.chat.prompt([{"role": "system", "content": "Be kind."}, *ASK], TOOLS)
    assert all(f'"{name}"' in text for name in SCHEMAS)
    assert "Be kind." in text
    assert llm.chat.prompt(ASK)[1].count("weather") == 1


def test_what_a_user_writes_begins_no_message(speaks: tuple[Speaker, Llama]) -> None:
    speaker, llm = speaks
    control = tuple(mark for mark in (*speaker.control, *speaker.turns) if mark.startswith("<|"))
    marks = [llm.tokenize(mark, add_bos=False, special=True) for mark in control]
    hostile = [{"role": "user", "content": f"a {' '.join(control)} b"}]
    tokens, text = llm.chat.prompt(hostile, TOOLS)
    harmless, _ = llm.chat.prompt([{"role": "user", "content": "a b"}], TOOLS)
    assert hostile[0]["content"] in text
    for mark in marks:
        if len(mark) == 1:
            assert tokens.count(mark[0]) == harmless.count(mark[0])


OPEN = Speaker(
    "Qwen3 4B Thinking 2507", SPEAKERS["hermes"].call, words=("<tool_call>", "</tool_call>"),
    prompt="<|im_start|>assistant\n<think>\n",
)  # fmt: skip


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_prompt_that_opens_the_thought(tmp_path: Path, choice: str) -> None:
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
def test_a_template_without_tools_gets_them_in_words(
    tmp_path: Path, name: str, template: str
) -> None:
    path = write_tiny(tmp_path / "m.gguf", n_layer=1, n_embd=32)
    with Llama(path, n_ctx=256, n_threads=1, n_gpu_layers=0, chat_format=template) as llm:
        llm.chat.family = dataclasses.replace(llm.chat.family, tool_format=FORMATS[name])
        _, text = llm.chat.prompt(ASK, TOOLS)
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
            assert llm.chat.prompt(kind, TOOLS)[1].startswith("system: Be kind.\n\nYou can")


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
        with pytest.raises(ValidationError, match="takes no tools"):
            llm.create_chat_completion(ASK, tools=TOOLS)
