"""`llama-cffi generate`: structure, files, JSON lines, and the options of every other command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.command_line import Runner

ASK = "What is 12 + 30?"


def test_an_answer_has_the_structure_that_is_asked_for(run: Runner, tmp_path: Path) -> None:
    def answer(*args: object) -> str:
        return run.text("generate", ASK, "-n", 64, *args).strip()

    assert re.fullmatch("[a-z]{3}", answer("--regex", "[a-z]{3}"))
    assert answer("--grammar", 'root ::= "yes"') == "yes"
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    assert json.loads(answer("-j", json.dumps(schema))) == {"n": 7}
    file = tmp_path / "file"
    file.write_text(json.dumps(schema), "utf-8")
    assert json.loads(answer("-jf", file)) == {"n": 7}
    file.write_text('root ::= "no"', "utf-8")
    assert answer("--grammar-file", file) == "no"


def test_a_file_is_the_prompt_or_follows_it(run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(ASK + "\n", "utf-8")
    assert run.text("generate", "-f", file) == run.text("generate", ASK) == "42\n"
    assert run.text("generate", "-f", "-", stdin=ASK) == "42\n"
    file.write_text("12 + 30?", "utf-8")
    assert run.text("generate", "What is", "-f", file) == run.text(
        "generate", "What is\n\n12 + 30?"
    )


def test_json_lines_have_each_token_and_then_the_whole(run: Runner) -> None:
    lines = [
        json.loads(line)
        for line in run.text("generate", ASK, "--jsonl", "--logprobs", 2).splitlines()
    ]
    *steps, last = lines
    assert "".join(step["piece"] for step in steps) == last["text"] == "42"
    assert [step["token"] for step in steps] == last["tokens"]
    assert all(len(step["top_logprobs"]) == 2 for step in steps)
    assert all(step["logprob"] <= 0 for step in steps)


def test_stops_and_sampling_reach_the_engine(run: Runner) -> None:
    assert run.text("generate", ASK, "--stop", "2") == "4\n"
    (token,) = run.json("tokenize", "4")["tokens"]
    assert run.text("generate", ASK, "--logit-bias", f"{token}-inf") != "42\n"
    assert run.text("generate", ASK, "-fa", "off", "-ub", 64, "-ctk", "f32") == "42\n"


def test_variables_of_the_engine_still_count(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CFFI_UBATCH", "many")
    assert "LLAMA_CFFI_UBATCH" in run.error("generate", ASK)
    assert run.text("generate", ASK, "-ub", 64) == "42\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-j", "{"], "JSON"),
        (["-jf", "nowhere"], "cannot read nowhere"),
        (["-f", "nowhere"], "cannot read nowhere"),
        (["--ignore-eos", "--grammar", 'root ::= "a"'], "ignore_eos"),
        (["--lora", "nowhere"], "nowhere"),
        (["-ctk", "q9"], "type_k"),
    ],
)
def test_wrong_input_is_one_sentence(args: list[str], message: str, run: Runner) -> None:
    assert message.lower() in run.error("generate", "x", *args).lower()


@pytest.mark.parametrize(("option", "text"), [("--regex", "a("), ("--grammar", 'root ::= "b')])
def test_wrong_patterns_and_grammars_are_shown(option: str, text: str, run: Runner) -> None:
    done = run("generate", "x", option, text)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert text in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--grammar", "a", "--regex", "b"], "--grammar and --regex exclude each other"),
        (["--json", "--jsonl"], "give one"),
        (["--logprobs", "1"], "--logprobs is for --jsonl"),
        (["--logit-bias", "x"], "must be a token id"),
    ],
)
def test_wrong_arguments_are_usage_errors(args: list[str], message: str, run: Runner) -> None:
    assert message in run.usage("generate", "x", *args)
