# ruff: noqa: RUF001 -- special tokens of models have unusual characters
"""The forms in which models write calls: what their templates have, and what they write instead."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from support.parsed_answers import Call, tool

#: Values that look like syntax of some notation.
VALUES = [
    "", " ", "a", "it's", 'say "hi"', "\\", "a\\", "C:\\dir\\new", r"\d+\.\w", '\\"', "\\'",
    "{", "}", "}]", "[1, 2)", "a, b: c = d", "{'a': 1}", '{"a": [1]}', "<", "<|", "'", '"',
    "l1\nl2\r\n\tl3", "😀é中\u2028", "\x00\x07\x7f", "a" * 300,
    "null", "None", "true", "123", "02134", "1e5", "key=value", ", x=1)", "')", '")]',
    '", "n": 5}', "', n=5)", "'''", '"""', "```", "</tool_call>", "x</tool_call>\n<tool_call>y",
    "<tool_call|>", "<|tool_call_end|>", "[TOOL_CALLS]", "<|call|>", "<|python_end|>",
    "</function>", "</TOOLCALL>", "<|END_ACTION|>", "<|tool_call_argument_begin|>",
    "<｜tool▁call▁end｜>", "[run(cmd='a')]", "call:run{cmd:1}", ">>>now\n{}", "print('x')",
]  # fmt: skip

_STRING = {"type": "string"}
TOOLS = [
    tool(
        "run",
        cmd=_STRING,
        n={"type": "integer"},
        tags={"type": "array", "items": _STRING},
        at={"type": "object"},
        x={"type": ["string", "null"]},
    ),
    tool("now"),
    tool("get-it.x", q=_STRING),
]


class Form(NamedTuple):
    """A way to write calls.

    Attributes:
        format: The name of the tool format.
        write: Returns the text of calls.
        is_whole: Whether the calls are the whole answer.
    """

    format: str
    write: Callable[[Sequence[Call]], str]
    is_whole: bool = False


def dumped(call: Call, key: str = "arguments", **options: Any) -> str:
    """Return a call as JSON, with *key* for the arguments."""
    return json.dumps({"name": call[0], key: call[1]}, ensure_ascii=False, **options)


def arguments_of(call: Call) -> str:
    """Return the arguments of a call as JSON."""
    return json.dumps(call[1], ensure_ascii=False)


def python(call: Call, write: Callable[[Any], str] = repr) -> str:
    """Return a call as Python; *write* writes the values."""
    return f"{call[0]}({', '.join(f'{key}={write(value)}' for key, value in call[1].items())})"


def double_quoted(value: Any) -> str:
    """Return a value as Python with JSON's strings, as LFM2's template writes them."""
    if isinstance(value, dict):
        members = (f"{json.dumps(key)}: {double_quoted(item)}" for key, item in value.items())
        return "{" + ", ".join(members) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(double_quoted, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def gemma(value: Any, quote: str = '<|"|>', has_quoted_keys: bool = False) -> str:
    """Return a value in Gemma's notation."""
    if isinstance(value, dict):
        mark = quote if has_quoted_keys else ""
        members = (
            f"{mark}{key}{mark}:{gemma(item, quote, has_quoted_keys)}"
            for key, item in value.items()
        )
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(gemma(item, quote, has_quoted_keys) for item in value) + "]"
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    return "None" if value is None else json.dumps(value)


def _around(before: str, after: str, sep: str, write: Callable[[Call], str]) -> Any:
    return lambda calls: before + sep.join(map(write, calls)) + after


def _each(before: str, after: str, write: Callable[[Call], str], sep: str = "") -> Any:
    return lambda calls: sep.join(f"{before}{write(call)}{after}" for call in calls)


def _list(before: str, after: str, key: str = "arguments") -> Any:
    return _around(f"{before}[", f"]{after}", ", ", lambda call: dumped(call, key))


def _openai(call: Call) -> str:
    function = {"name": call[0], "arguments": arguments_of(call)}
    return json.dumps({"type": "function", "function": function})


def _kimi(section: tuple[str, str], prefix: str, has_number: bool) -> Any:
    def write(calls: Sequence[Call]) -> str:
        ids = (f"{prefix}{call[0]}{f':{i}' * has_number}" for i, call in enumerate(calls))
        return (
            section[0]
            + "".join(
                f"<|tool_call_begin|>{call_id}<|tool_call_argument_begin|>{arguments_of(call)}"
                "<|tool_call_end|>"
                for call_id, call in zip(ids, calls, strict=True)
            )
            + section[1]
        )

    return write


def _cohere(calls: Sequence[Call]) -> str:
    made = [
        {"tool_call_id": str(i), "tool_name": name, "parameters": arguments}
        for i, (name, arguments) in enumerate(calls)
    ]
    return f"<|START_ACTION|>{json.dumps(made, indent=4)}<|END_ACTION|>"


def _command_r(before: str, after: str) -> Any:
    def write(calls: Sequence[Call]) -> str:
        made = [{"tool_name": name, "parameters": arguments} for name, arguments in calls]
        return f"{before}{json.dumps(made, indent=4)}{after}"

    return write


def _solar(calls: Sequence[Call]) -> str:
    return "<|tool_calls|>" + "".join(
        f"<|tool_call:begin|>id{i}<|tool_call:name|>{call[0]}<|tool_call:args|>"
        f"{arguments_of(call)}<|tool_call:end|>"
        for i, call in enumerate(calls)
    )


def _harmony(header: str, write: Callable[[Call], str] = arguments_of) -> Any:
    return lambda calls: "".join(f"{header % call[0]}{write(call)}<|call|>" for call in calls)


_CALL, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_SEP = "<｜tool▁sep｜>"
_SECTIONS = [
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ("<|tool_call_section_begin|>", "<|tool_call_section_end|>"),
    ("", ""),
]
_HEADERS = [
    "<|start|>assistant<|channel|>commentary to=functions.%s <|constrain|>json<|message|>",
    "<|channel|>commentary to=functions.%s json<|message|>",
    "<|start|>assistant to=functions.%s<|channel|>commentary <|constrain|>json<|message|>",
    "<|start|>assistant to=functions.%s<|channel|>analysis<|message|>",
    "<|channel|>commentary to=%s code<|message|>",
    "<|channel|>commentary? to=functions.%s<|message|>",
    "<|channel|>commentary to=functions.%s <|constrain|>json",
    "<|channel|>commentary to=assistant<|channel|>commentary to=functions.%s<|message|>",
]


def _gemma_python(call: Call) -> str:
    return f"{call[0]}{{{', '.join(f'{key}={value!r}' for key, value in call[1].items())}}}"


FORMS = [
    Form("hermes", _each("<tool_call>\n", "\n</tool_call>", dumped, "\n")),
    Form("hermes", _each("<tool_call>", "</tool_call>", lambda c: dumped(c, "parameters"))),
    Form("hermes", _each("<tool_call>\n", "\n</tool_call>", lambda c: dumped(c, indent=2))),
    Form("hermes", _each("<tool_call>\n```json\n", "\n```\n</tool_call>", dumped)),
    Form("hermes", _each("<tool_call>", "</tool_call>",
         lambda c: json.dumps({"arguments": c[1], "name": c[0]}))),
    Form("hermes", _each("<tool_call>", "</tool_call>",
         lambda c: json.dumps({"name": c[0], "arguments": arguments_of(c)}))),
    Form("hermes", _each("<tool_call>", "</tool_call>",
         lambda c: repr({"name": c[0], "arguments": c[1]}))),
    Form("hermes", _each("<tool_call>", "</tool_call>", _openai)),
    Form("hermes", _list("<tool_call>", "</tool_call>")),
    Form("granite", _list("<|tool_call|>", "")),
    Form("granite", _list("<tool_call>", "</tool_call>")),
    Form("nemotron", _list("<TOOLCALL>", "</TOOLCALL>")),
    Form("phi4", _list("<|tool_call|>", "<|/tool_call|>")),
    Form("phi4", _list("functools", "")),
    Form("firefunction", _list("functools", "")),
    Form("apriel", _list("<tool_calls>", "</tool_calls>")),
    Form("minimax-m1", _around("<tool_calls>\n", "\n</tool_calls>", "\n", dumped)),
    Form("gigachat3.1", _each("<|function_call|>", "", dumped)),
    Form("mistral-nemo", _list("[TOOL_CALLS]", "")),
    Form("mistral", _list("[TOOL_CALLS] ", "")),
    Form("mistral", _each("[TOOL_CALLS]", "", lambda c: f"{c[0]}[ARGS]{arguments_of(c)}")),
    Form("mistral", _each("[TOOL_CALLS]", "", lambda c: f"{c[0]}{arguments_of(c)}")),
    Form("command-r7b", _cohere),
    Form("command-r-plus", _command_r("Action: ```json\n", "\n```")),
    Form("command-r-plus", _command_r("Action:```json\n", "```")),
    Form("apertus", _around("<|tools_prefix|>[", "]<|tools_suffix|>", ", ",
         lambda c: json.dumps({c[0]: c[1]}))),
    *(
        Form("kimi-k2", _kimi(section, prefix, has_number))
        for section in _SECTIONS
        for prefix in ("functions.", "", "functions:", "\nfunctions.")
        for has_number in (True, False)
    ),
    Form("deepseek-v3", _around(_CALLS, _CALLS_END, "\n",
         lambda c: f"{_CALL}function{_SEP}{c[0]}\n```json\n{arguments_of(c)}\n```{_CALL_END}")),
    Form("deepseek-v3", _each("", "", lambda c: (
         f"{_CALL}function{_SEP}{c[0]}\n{arguments_of(c)}\n{_CALL_END}"))),
    Form("deepseek-v3.1", _around(_CALLS, _CALLS_END, "",
         lambda c: f"{_CALL}{c[0]}{_SEP}{arguments_of(c)}{_CALL_END}")),
    Form("deepseek-v3.1", _around(_CALLS, _CALLS_END, "",
         lambda c: f"{_CALL}{c[0]}{_SEP}\n```json\n{arguments_of(c)}\n```\n{_CALL_END}")),
    Form("functionary-v3.1", _each("<function=", "</function>",
         lambda c: f"{c[0]}>{arguments_of(c)}")),
    Form("functionary-v3.2", _each(">>>", "", lambda c: f"{c[0]}\n{arguments_of(c)}"), True),
    Form("solar", _solar),
    Form("gemma4", _each("<|tool_call>call:", "<tool_call|>", lambda c: c[0] + gemma(c[1]))),
    Form("gemma4", _each("<|tool_call>call:", "<tool_call|>",
         lambda c: c[0] + gemma(c[1], has_quoted_keys=True))),
    Form("gemma4", _each("<|tool_call>call:", "<tool_call|>",
         lambda c: c[0] + arguments_of(c))),
    Form("gemma4", _each("<|tool_call>call:", "<tool_call|>", lambda c: c[0] + repr(c[1]))),
    Form("gemma4", _each("<|tool_call>call:", "<tool_call|>", python)),
    Form("gemma4", _each("<|tool_call>call:server:", "<tool_call|>", _gemma_python)),
    Form("gemma4", _each("<|tool_call>:call:", "<tool_call|><tool_call|>",
         lambda c: c[0] + gemma(c[1]))),
    Form("gemma4", _each("<|tool_call>", "<tool_call|>", dumped)),
    Form("gemma4", _each("call:", "", lambda c: c[0] + gemma(c[1]), "\n")),
    Form("functiongemma", _each("<start_function_call>call:", "<end_function_call>",
         lambda c: c[0] + gemma(c[1], "<escape>"))),
    *(
        Form("lfm2", _around(before, after, ", ", lambda c, write=write: python(c, write)))
        for write in (repr, double_quoted)
        for before, after in (
            ("<|tool_call_start|>[", "]<|tool_call_end|>"),
            ("<|tool_call_start|> [ ", " ] <|tool_call_end|>"),
            ("[", "]"),
        )
    ),
    Form("lfm2", _each("<|tool_call_start|>", "<|tool_call_end|>", python)),
    Form("lfm2", _list("<|tool_call_start|>", "<|tool_call_end|>")),
    Form("gemma-tool-code", _each("```tool_code\nprint(", ")\n```", python, "\n")),
    Form("gemma-tool-code", _around("```tool_code\n", "\n```", "\n", python)),
    Form("gemma-tool-code", _around("```tool_code\n[", "]\n```", ", ", python)),
    Form("llama4", _each("", "", lambda c: dumped(c, "parameters"), "\n")),
    Form("llama4", _each("", "", lambda c: json.dumps(
         {"type": "function", "name": c[0], "parameters": c[1]}), "; ")),
    Form("llama4", _each("<|python_start|>", "<|python_end|>",
         lambda c: dumped(c, "parameters"))),
    Form("llama4", _each("<|python_start|>", "<|python_end|>", python)),
    Form("llama4", _around("<|python_start|>[", "]<|python_end|>", ", ", python)),
    Form("llama4", _around("[", "]", ", ", python)),
    Form("llama4", _list("", "", "parameters")),
    Form("llama3", _each("", "", lambda c: dumped(c, "parameters"), "; ")),
    Form("llama3", _each("<|python_tag|>", "", lambda c: dumped(c, "parameters"))),
    Form("llama3", _each("<|python_tag|>", "",
         lambda c: python((f"{c[0]}.call", c[1]), double_quoted))),
    Form("llama3", _around("[", "]", ", ", lambda c: python(c, double_quoted))),
    Form("generic", _list('{"tool_calls": ', "}"), True),
    Form("generic", _list('```json\n{"tool_calls": ', "}\n```"), True),
    Form("generic", _list("", ""), True),
    Form("generic", _list("```json\n", "\n```"), True),
    *(Form("harmony", _harmony(header)) for header in _HEADERS),
    Form("harmony", _harmony("<|channel|>commentary to=functions.%s<|message|>",
         lambda c: f"[{arguments_of(c)}]")),
    Form("harmony", _harmony("<|channel|>commentary to=functions.%s<|message|>",
         lambda c: json.dumps(arguments_of(c)))),
    Form("harmony", _harmony("<|channel|>commentary to=functions.%s<|message|>",
         lambda c: f"```json\n{arguments_of(c)}\n```")),
]  # fmt: skip
