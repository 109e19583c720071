"""Tool formats: how models write tool calls and reasoning.

Modules are named by the shape of a call, because most shapes serve several families of models; a
class that serves only one family is named after it. `FORMATS` lists every family. A model's format
is detected from its chat template.
"""

from __future__ import annotations

from ...errors import ValidationError
from .bare_json import GenericFormat, Llama3Format, Llama4Format
from .bare_keys import BareKeysFormat
from .base import ToolFormat, ToolStream
from .json_calls import HermesFormat, JsonListFormat, NameKeyFormat
from .message import Delta, ParsedMessage, ToolCall
from .name_then_json import (
    DeepSeekFormat,
    FunctionaryV31Format,
    KimiFormat,
    MistralFormat,
    SolarFormat,
)
from .nested_arguments import MiniMaxM3Format
from .python_calls import PythonFormat
from .recipients import FunctionaryV32Format, HarmonyFormat, MuseFormat
from .syntax import Alternatives, CallGrammar, Element, GrammarParts, Json, Maybe, Repeat, Text
from .tagged_arguments import KimiK3Format, TaggedArgumentsFormat

__all__ = [
    "FORMATS",
    "Alternatives",
    "CallGrammar",
    "Delta",
    "Element",
    "GrammarParts",
    "Json",
    "Maybe",
    "ParsedMessage",
    "Repeat",
    "Text",
    "ToolCall",
    "ToolFormat",
    "ToolStream",
    "detect_format",
    "get_format",
]

_TAGS = ("<tool_call>", "</tool_call>")
_KEY_TAGS = ("<arg_key>", "</arg_key>")
_VALUE_TAGS = ("<arg_value>", "</arg_value>")
_DSML = "\uff5cDSML\uff5c"
_DSML_CALLS = ("function_calls", "tool_calls", "toolcalls")  # of V3.2, of V4, and a mistake
_HY = ":opensource>"
_PARAMETER = ("<parameter=", ">")

#: Tool formats by name, in the order of detection: the most specific first.
FORMATS: dict[str, ToolFormat] = {
    form.name: form
    for form in (
        HarmonyFormat(),
        FunctionaryV32Format(),
        FunctionaryV31Format(),
        KimiFormat(
            "kimi-k2",
            ("<|tool_calls_section_begin|>",),
            before=("<|tool_call_begin|>",),
            between="<|tool_call_argument_begin|>",
            after="<|tool_call_end|>",
            begin=("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"),
            end=("<|tool_calls_section_end|>", "<|tool_call_section_end|>"),
        ),
        MuseFormat(),
        KimiK3Format(),
        MiniMaxM3Format(),
        SolarFormat(),
        *(
            TaggedArgumentsFormat(
                name, ("DSML", f"{calls}>"), f"<{_DSML}{calls}>", f'<{_DSML}invoke name="', '">',
                (f'<{_DSML}parameter name="', '" string="true">', '" string="false">'),
                ("", f"</{_DSML}parameter>"), f"</{_DSML}invoke>", f"</{_DSML}{calls}>",
                is_shared=True,
                variants=tuple((f"<{_DSML}{c}>", f"</{_DSML}{c}>") for c in _DSML_CALLS),
            )
            for name, calls in (("deepseek-v3.2", "function_calls"), ("deepseek-v4", "tool_calls"))
        ),
        DeepSeekFormat("deepseek-v3", ("tool▁calls▁begin", "```json"), is_fenced=True),
        DeepSeekFormat("deepseek-v3.1", ("tool▁calls▁begin",), is_fenced=False),
        MistralFormat(),
        JsonListFormat("mistral-nemo", ("[TOOL_CALLS]",), ("[TOOL_CALLS]",)),
        BareKeysFormat("gemma4", ("<|tool_call>",), "<|tool_call>", "<tool_call|>", '<|"|>'),
        BareKeysFormat(
            "functiongemma",
            ("<start_function_call>",),
            "<start_function_call>",
            "<end_function_call>",
            "<escape>",
        ),
        TaggedArgumentsFormat(
            "seed-oss", ("<seed:tool_call>",), "<seed:tool_call>", "<function=", ">", _PARAMETER,
            ("", "</parameter>"), "</function>", "</seed:tool_call>",
            reasoning=("<seed:think>", "</seed:think>"),
        ),
        TaggedArgumentsFormat(
            "minimax-m2", ("<minimax:tool_call>",), "<minimax:tool_call>", '<invoke name="', '">',
            ('<parameter name="', '">'), ("", "</parameter>"), "</invoke>", "</minimax:tool_call>",
            is_shared=True,
        ),
        TaggedArgumentsFormat(
            "hunyuan3", (":opensource", "<tool_calls", "<arg_key"), f"<tool_calls{_HY}",
            f"<tool_call{_HY}", f"<tool_sep{_HY}", (f"<arg_key{_HY}", f"</arg_key{_HY}"),
            (f"<arg_value{_HY}", f"</arg_value{_HY}"), f"</tool_call{_HY}", f"</tool_calls{_HY}",
            is_shared=True, is_inline=True, reasoning=(f"<think{_HY}", f"</think{_HY}"),
        ),
        TaggedArgumentsFormat(
            "minicpm5", ('<function name="', '<param name="'), "", '<function name="', '">',
            ('<param name="', '">'), ("", "</param>"), "</function>", "",
            is_inline=True, raw=("<![CDATA[", "]]>"),
        ),
        TaggedArgumentsFormat(
            "glm", ("<tool_call>", "<arg_key>"), _TAGS[0], "", "", _KEY_TAGS, _VALUE_TAGS,
            _TAGS[1], "", is_inline=True,
        ),
        TaggedArgumentsFormat(
            "qwen3-coder", ("<tool_call>", "<function=", "<parameter="), _TAGS[0], "<function=",
            ">", _PARAMETER, ("", "</parameter>"), "</function>", _TAGS[1], frame="\n",
        ),
        JsonListFormat(
            "phi4", ("<|tool|>",), ("<|tool_call|>", "functools"), "<|/tool_call|>"
        ),
        *(
            JsonListFormat(
                name, ("<|START_ACTION|>", f"<|START_{words}|>"), ("<|START_ACTION|>",),
                "<|END_ACTION|>", brackets=("[\n    ", "\n]"), separator=",\n    ",
                layout=(', "tool_name": ', ', "parameters": ', "}"), id_key='{"tool_call_id": ',
                reasoning=("<|START_THINKING|>", "<|END_THINKING|>"),
                content=(f"<|START_{words}|>", f"<|END_{words}|>"),
            )
            for name, words in (("command-r7b", "RESPONSE"), ("cohere2-moe", "TEXT"))
        ),
        JsonListFormat(
            "command-r-plus", ("Action:", "```json", "tool_name"),
            ("Action:\n```json\n", "Action: ```json\n", "Action:```json\n"), "```",
            brackets=("[\n    ", "\n]"), separator=",\n    ",
            layout=('{\n        "tool_name": ', ',\n        "parameters": ', "\n    }"),
        ),
        NameKeyFormat(
            "apertus", ("<|tools_prefix|>",), ("<|tools_prefix|>",), "<|tools_suffix|>",
            reasoning=("<|inner_prefix|>", "<|inner_suffix|>"),
        ),
        JsonListFormat("firefunction", (" functools[",), ("functools",)),
        JsonListFormat(
            "gigachat3.1", ("<|role_sep|>", "<|function_call|>"), ("<|function_call|>",),
            brackets=("", ""), is_parallel=False,
        ),
        JsonListFormat(
            "gigachat3", ("<|role_sep|>", "<|message_sep|>", "function call"),
            ("function call<|role_sep|>\n",), brackets=("", ""), is_parallel=False,
            content=("<|message_sep|>\n\n",),
        ),
        JsonListFormat(
            "minimax-m1", ("<tool_calls>", "beginning_of_sentence"), ("<tool_calls>",),
            "</tool_calls>", brackets=("\n", "\n"), separator="\n",
        ),
        JsonListFormat(
            "granite", ("<|tool_call|>",), ("<|tool_call|>", "<tool_call>"),
            other_ends=("</tool_call>",),
        ),
        JsonListFormat("nemotron", ("<TOOLCALL>",), ("<TOOLCALL>",), "</TOOLCALL>"),
        JsonListFormat(
            "apriel", ("<tool_calls>[",), ("<tool_calls>",), "</tool_calls>",
            reasoning=("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),
            content=("", "[END FINAL RESPONSE]"),
        ),
        PythonFormat(
            "lfm2", ("<|tool_call_start|>",), "<|tool_call_start|>", "<|tool_call_end|>",
            templates=(("<|tool_list_start|>",), ("List of tools: [",)), is_bare=True,
        ),
        HermesFormat(),
        Llama4Format(),
        Llama3Format(),
        PythonFormat(
            "gemma-tool-code", (), "```tool_code\n", "```",
            "You can call functions. To call one, write a block that begins with ```tool_code, "
            "holds the call in Python, each argument by its name, and ends with ```. The "
            "functions, as JSON:",
        ),
        GenericFormat(),
    )
}  # fmt: skip


def detect_format(template: str | None) -> ToolFormat:
    """Return the format that a chat template uses, given its source; else `generic`."""
    for form in FORMATS.values():
        if template and form.detect(template):
            return form
    return FORMATS["generic"]


def get_format(name: str) -> ToolFormat:
    """Return the format called *name*.

    Raises:
        ValidationError: The name is unknown.
    """
    if name not in FORMATS:
        raise ValidationError(f"unknown tool format {name!r}; choose one of {sorted(FORMATS)}")
    return FORMATS[name]
