"""How families of models write tool calls and thoughts: found by their chat template."""

from __future__ import annotations

from ...errors import ValidationError
from .base import ToolFormat, ToolStream
from .functionary import FunctionaryFormat
from .gemma import GemmaFormat
from .generic import GenericFormat
from .grammar import CallGrammar, Choice, GrammarParts, Json, Maybe, Piece, Repeat, Text
from .harmony import HarmonyFormat
from .headed import (
    DeepSeekFormat,
    KimiFormat,
    MistralFormat,
    TaggedFunctionFormat,
)
from .json_calls import HermesFormat, JsonListFormat
from .llama3 import Llama3Format
from .message import Delta, ParsedMessage, ToolCall
from .python_calls import PythonFormat
from .tagged_values import TaggedValuesFormat

__all__ = [
    "FORMATS",
    "CallGrammar",
    "Choice",
    "Delta",
    "GrammarParts",
    "Json",
    "Maybe",
    "ParsedMessage",
    "Piece",
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
_PARAMETER = ("<parameter=", ">")

#: Name -> format, in the order in which their marks are looked for: the special ones first.
FORMATS: dict[str, ToolFormat] = {
    form.name: form
    for form in (
        HarmonyFormat(),
        FunctionaryFormat(),
        TaggedFunctionFormat(),
        KimiFormat(
            "kimi-k2",
            ("<|tool_calls_section_begin|>",),
            before=("<|tool_call_begin|>",),
            between="<|tool_call_argument_begin|>",
            after="<|tool_call_end|>",
            begin=("<|tool_calls_section_begin|>",),
            end="<|tool_calls_section_end|>",
        ),
        DeepSeekFormat("deepseek-v3", ("tool▁calls▁begin", "```json"), is_fenced=True),
        DeepSeekFormat("deepseek-v3.1", ("tool▁calls▁begin",), is_fenced=False),
        MistralFormat(),
        JsonListFormat("mistral-nemo", ("[TOOL_CALLS]",), ("[TOOL_CALLS]",)),
        GemmaFormat("gemma4", ("<|tool_call>",), "<|tool_call>", "<tool_call|>", '<|"|>'),
        GemmaFormat(
            "functiongemma",
            ("<start_function_call>",),
            "<start_function_call>",
            "<end_function_call>",
            "<escape>",
        ),
        TaggedValuesFormat(
            "seed-oss", ("<seed:tool_call>",), "<seed:tool_call>", "<function=", ">", _PARAMETER,
            ("", "</parameter>"), "</function>", "</seed:tool_call>",
            reasoning=("<seed:think>", "</seed:think>"),
        ),
        TaggedValuesFormat(
            "minimax-m2", ("<minimax:tool_call>",), "<minimax:tool_call>", '<invoke name="', '">',
            ('<parameter name="', '">'), ("", "</parameter>"), "</invoke>", "</minimax:tool_call>",
        ),
        TaggedValuesFormat(
            "minicpm5", ('<function name="', '<param name="'), "", '<function name="', '">',
            ('<param name="', '">'), ("", "</param>"), "</function>", "",
        ),
        TaggedValuesFormat(
            "glm", ("<tool_call>", "<arg_key>"), _TAGS[0], "", "", _KEY_TAGS, _VALUE_TAGS,
            _TAGS[1], "",
        ),
        TaggedValuesFormat(
            "qwen3-coder", ("<tool_call>", "<function=", "<parameter="), _TAGS[0], "<function=",
            ">", _PARAMETER, ("", "</parameter>"), "</function>", _TAGS[1], frame="\n",
        ),
        JsonListFormat(
            "phi4", ("<|tool|>",), ("<|tool_call|>", "functools"), "<|/tool_call|>"
        ),
        JsonListFormat("granite", ("<|tool_call|>",), ("<|tool_call|>",)),
        JsonListFormat("nemotron", ("<TOOLCALL>",), ("<TOOLCALL>",), "</TOOLCALL>"),
        JsonListFormat("apriel", ("<tool_calls>[",), ("<tool_calls>",), "</tool_calls>"),
        PythonFormat(
            "lfm2", ("<|tool_call_start|>",), "<|tool_call_start|>", "<|tool_call_end|>"
        ),
        HermesFormat(),
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
    """Return the format of a chat template (its source); `generic` where it has none."""
    for form in FORMATS.values():
        if template and form.detect(template):
            return form
    return FORMATS["generic"]


def get_format(name: str) -> ToolFormat:
    """Return the format of that name.

    Raises:
        ValidationError: There is none.
    """
    if name not in FORMATS:
        raise ValidationError(f"no tool format is called {name!r}; there are {sorted(FORMATS)}")
    return FORMATS[name]
