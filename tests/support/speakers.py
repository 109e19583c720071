"""The shortest chat template of every tool format; see `tiny_chat.Speaker`."""

from __future__ import annotations

from support.tiny_chat import Speaker

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
    """Return Jinja that writes arguments in Gemma's notation."""
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
        reasoning="<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|>"
        "<|start|>assistant",
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
        reasoning=THINK,
    ),
    "mistral": Speaker(
        "Magistral Small 2509",
        f"[TOOL_CALLS]{NAME}[ARGS]{ARGUMENTS}",
        ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
        reasoning="[THINK]{{ m.reasoning_content }}[/THINK]",
    ),
    "mistral-nemo": Speaker(
        "Mistral Nemo Instruct 2407", f"[TOOL_CALLS][{LISTED}]", ("[TOOL_CALLS]",)
    ),
    "gemma4": Speaker(
        "gemma 4 31B it",
        "<|tool_call>call:{{ c.function.name }}" + gemma('<|"|>') + "<tool_call|>",
        ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"),
        before="{% if enable_thinking %}",
        reasoning="<|channel>thought\n{{ m.reasoning_content }}\n<channel|>",
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
        reasoning="<seed:think>{{ m.reasoning_content }}</seed:think>",
    ),
    "minimax-m2": Speaker(
        "MiniMax M2",
        f'<minimax:tool_call>\n{{% for c in m.tool_calls %}}<invoke name="{NAME}">\n{EACH}'
        f'<parameter name="{{{{ k }}}}">{RAW}</parameter>\n{{% endfor %}}</invoke>\n'
        "{% endfor %}</minimax:tool_call>",
        words=("<minimax:tool_call>", "</minimax:tool_call>", "</parameter>"),
        before="{% if thinking %}",
        reasoning=THINK,
    ),
    "minicpm5": Speaker(
        "MiniCPM5 1B",
        f'<function name="{NAME}">{EACH}<param name="{{{{ k }}}}">{RAW}</param>{{% endfor %}}'
        "</function>",
        words=("</param>",),
        before="{% if enable_thinking %}",
        reasoning=THINK,
    ),
    "glm": Speaker(
        "GLM 4.6",
        f"<tool_call>{NAME}\n{EACH}<arg_key>{{{{ k }}}}</arg_key>\n<arg_value>{RAW}</arg_value>\n"
        "{% endfor %}</tool_call>",
        words=("<tool_call>", "</tool_call>", "<arg_value>", "</arg_value>"),
        before="{% if enable_thinking %}",
        reasoning=THINK,
    ),
    "qwen3-coder": Speaker(
        "Qwen3.5 4B",
        f"<tool_call>\n<function={NAME}>\n{EACH}<parameter={{{{ k }}}}>\n{RAW}\n</parameter>\n"
        "{% endfor %}</function>\n</tool_call>",
        words=("<tool_call>", "</tool_call>", "\n</parameter>"),
        before="{% if enable_thinking %}",
        reasoning=THINK,
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
        reasoning=THINK,
    ),
    "nemotron": Speaker(
        "Nemotron Nano v2", f"<TOOLCALL>[{LISTED}]</TOOLCALL>",
        before="{% if enable_thinking %}", reasoning=THINK,
    ),
    "apriel": Speaker(
        "Apriel 1.5 15b", f"<tool_calls>[{LISTED}]</tool_calls>",
        reasoning=(
            "Here are my reasoning steps:\n{{ m.reasoning_content }}\n[BEGIN FINAL RESPONSE]\n"
        ),
    ),
    "lfm2": Speaker(
        "LFM2 8B A1B", f"<|tool_call_start|>{PYTHON}<|tool_call_end|>",
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "hermes": Speaker(
        "Qwen3 8B", f"<tool_call>\n{CALL}\n</tool_call>",
        words=("<tool_call>", "</tool_call>"),
        before="{% if enable_thinking %}",
        reasoning=THINK,
    ),
    "llama3": Speaker(
        "Llama 3.1 8B Instruct", f'{{"name": "{NAME}", "parameters": {ARGUMENTS}}}',
        ("<|python_tag|>",),
        before="<|python_tag|>",
        turns=LLAMA,
        prompt=LLAMA_PROMPT,
        is_parallel=False,
    ),
    "llama4": Speaker(
        "Llama 4 Scout 17B 16E Instruct", f'{{"name": "{NAME}", "parameters": {ARGUMENTS}}}',
        ("<|python_start|>", "<|python_end|>"),
        before="<|python_start|>",
        turns=("<|header_start|>", "<|header_end|>\n\n", "<|eot|>"),
        prompt="<|header_start|>assistant<|header_end|>\n\n",
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
    """Return the speaker of DeepSeek V3.2 and later, with *calls* as the tag of calls."""
    kind = "{{ 'true' if v is string else 'false' }}"
    return Speaker(
        "DeepSeek V3.2",
        f'<{DSML}{calls}>\n{{% for c in m.tool_calls %}}<{DSML}invoke name="{NAME}">\n{EACH}'
        f'<{DSML}parameter name="{{{{ k }}}}" string="{kind}">{RAW}</{DSML}parameter>\n'
        f"{{% endfor %}}</{DSML}invoke>\n{{% endfor %}}</{DSML}{calls}>",
        words=(f"</{DSML}parameter>", f"</{DSML}{calls}>"),
        before="{% if thinking %}",
        reasoning=THINK,
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
        reasoning="<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|>",
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
        reasoning=" to=self<|message|>{{ m.reasoning_content }}<|eom|><|start|>assistant",
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
        reasoning="<|open|>think<|sep|>{{ m.reasoning_content }}<|close|>think<|sep|>",
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
        reasoning="<mm:think>{{ m.reasoning_content }}</mm:think>",
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
        reasoning="<|think|>{{ m.reasoning_content }}<|end|><|begin|>assistant",
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
        reasoning=f"<think{HY}{{{{ m.reasoning_content }}}}</think{HY}",
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
        reasoning="<|inner_prefix|>{{ m.reasoning_content }}<|inner_suffix|>",
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
