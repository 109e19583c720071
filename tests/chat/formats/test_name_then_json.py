"""Calls with markers around name and arguments: Kimi K2, Mistral, DeepSeek, Functionary 3.1."""

from __future__ import annotations

import pytest
from support.answer_forms import TOOLS
from support.parsed_answers import Answer, read, tool

from llama_cffi.chat.formats import get_format

A = ("run", {"cmd": "a"})
ARGUMENTS = '{"cmd": "a"}'
BEGIN, END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"


def kimi(call_id: str, arguments: str = ARGUMENTS) -> str:
    return f"<|tool_call_begin|>{call_id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


@pytest.mark.parametrize(
    "call_id",
    ["functions.run:0", "run:0", "functions.run", "run", "functions:run:0", "functions_run:3",
     "functionsrun:0", " functions.run:0 ", "\nfunctions.run:0\n", "functions.run.0"],
)  # fmt: skip
def test_ids_of_kimi(call_id: str) -> None:
    for begin in (BEGIN, "<|tool_call_section_begin|>", ""):
        for end in (END, "<|tool_call_section_end|>", ""):
            text = f"Ok. {begin} {kimi(call_id)} {end}"
            assert read("kimi-k2", text, TOOLS) == Answer("Ok.", [A])
    dotted = [tool("fs.read")]
    for written in ("functions.fs.read:0", "fs.read:0", "fs.read"):
        assert read("kimi-k2", kimi(written), dotted).calls == [("fs.read", {"cmd": "a"})]


def test_the_id_is_the_models_own() -> None:
    message = get_format("kimi-k2").parse(f"{BEGIN}{kimi('functions.run:7')}{END}", TOOLS)
    assert message.tool_calls[0].id == "functions.run:7"


@pytest.mark.parametrize("arguments", ["", "null", "{}", '""', "[]", " {} "])
def test_no_arguments(arguments: str) -> None:
    now = Answer("", [("now", {})])
    assert read("kimi-k2", f"{BEGIN}{kimi('now:0', arguments)}{END}", TOOLS) == now
    assert read("functionary-v3.1", f"<function=now>{arguments}</function>", TOOLS) == now
    if arguments:
        assert read("mistral", f"[TOOL_CALLS]now[ARGS]{arguments}", TOOLS) == now


def test_what_is_no_call_is_content_and_spares_its_neighbours() -> None:
    broken = kimi("functions.run:0", "nope")
    answer = read("kimi-k2", f"{BEGIN}{kimi('run:1')}{broken}{kimi('run:2')}{END}", TOOLS)
    assert answer == Answer(broken, [A, A], is_malformed=True)
    text = f"<function=run>x</function><function=run>{ARGUMENTS}</function>"
    answer = read("functionary-v3.1", text, TOOLS)
    assert answer == Answer("<function=run>x</function>", [A], is_malformed=True)
    text = f"[TOOL_CALLS]bad x[TOOL_CALLS]run[ARGS]{ARGUMENTS}"
    assert read("mistral", text, TOOLS) == Answer("[TOOL_CALLS]bad x", [A], is_malformed=True)


@pytest.mark.parametrize("cut", ['{"cmd": "a"', '{"cmd": "a" ', '{"cmd": "a"\n'])
def test_missing_brackets(cut: str) -> None:
    text = f"{BEGIN}{kimi('run:0', cut)}{kimi('run:1')}{END} Ok."
    assert read("kimi-k2", text, TOOLS) == Answer("Ok.", [A, A], is_malformed=True)
    calls, end = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"  # noqa: RUF001
    for fence in ("```json\n", ""):
        call = (
            f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>run\n{fence}{cut}"  # noqa: RUF001
            f"{fence and '```'}<｜tool▁call▁end｜>"  # noqa: RUF001
        )
        answer = read("deepseek-v3", f"{calls}{call}\n{call}{end}", TOOLS)
        assert answer == Answer("", [A, A], is_malformed=True)


@pytest.mark.parametrize(
    "text",
    [
        f"[TOOL_CALLS]run[ARGS]{ARGUMENTS}",
        f"[TOOL_CALLS]run{ARGUMENTS}",
        f"[TOOL_CALLS] run [ARGS] {ARGUMENTS}",
        f"[TOOL_CALLS]run[CALL_ID]abcdefghi[ARGS]{ARGUMENTS}",
        f'[TOOL_CALLS][{{"name": "run", "arguments": {ARGUMENTS}}}]',
        f'[TOOL_CALLS] [{{"name": "run", "arguments": {ARGUMENTS}, "id": "abcdefghi"}}]',
        f'[TOOL_CALLS]{{"name": "run", "arguments": {ARGUMENTS}}}',
        '[TOOL_CALLS][{"name": "run", "arguments": "{\\"cmd\\": \\"a\\"}"}]',
        f"[TOOL_CALLS]functions.run[ARGS]{ARGUMENTS}",
    ],
)
def test_mistral_old_and_new(text: str) -> None:
    assert read("mistral", text, TOOLS) == Answer("", [A])
    assert read("mistral", f"{text}{text}", TOOLS) == Answer("", [A, A])
    assert read("mistral", f"Hm.\n{text}\nDone.", TOOLS) == Answer("Hm.\nDone.", [A])
    if text[len("[TOOL_CALLS]") :].lstrip()[0] in "[{":
        assert read("mistral-nemo", text, TOOLS) == Answer("", [A])
