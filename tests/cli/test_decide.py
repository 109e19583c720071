"""`llama-cffi decide`: the probabilities of `Llama.decide`."""

from __future__ import annotations

import json
import subprocess

import pytest
from support.command_line import PROGRAM, Runner

from llama_cffi import ChoiceQuestion, Llama, Option, PredicateQuestion, ScoreQuestion, demo

TEXT = "I was charged twice."
ASK = (
    "--choice", "Which team?", "billing", "tech=hardware and apps", "--predicate", "It is urgent.",
    "--score", "How angry?", "calm", "angry",
)  # fmt: skip


def test_answers_are_those_of_the_class_in_the_order_asked(run: Runner) -> None:
    with Llama(demo.model_path(), n_threads=1) as llm:
        choice = llm.decide(
            TEXT,
            ChoiceQuestion("Which team?", [Option("billing"), Option("tech", "hardware and apps")]),
        )
        predicate = llm.decide(TEXT, PredicateQuestion("It is urgent."))
        score = llm.decide(TEXT, ScoreQuestion("How angry?", ["calm", "angry"]))
    found = run.json("decide", TEXT, *ASK)["answers"]
    assert [answer["type"] for answer in found] == ["choice", "predicate", "score"]
    shares = [item["probability"] for item in found[0]["probabilities"]]
    assert shares == pytest.approx([*choice.probabilities.values()], abs=1e-2)
    assert sum(shares) == pytest.approx(1)
    assert found[1]["probability"] == pytest.approx(predicate.probability, abs=1e-2)
    assert found[2]["score"] == pytest.approx(score.score, abs=1e-2)
    lines = run.text("decide", *ASK, stdin=TEXT).splitlines()
    assert lines[0].startswith("Which team?  ")
    assert [line.split()[0] for line in lines[1:3]] == ["billing", "tech"]
    assert len(lines) == 7
    run.text("decide", TEXT, "--predicate", "x", "--average-orders")


def test_each_line_gets_a_line_of_json_through_a_pipe() -> None:
    done = subprocess.run(
        [PROGRAM, "decide", "--lines", "--predicate", "It is urgent."],
        input=b"one\n\ntwo\nthree\n",
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 3
    assert all(0 <= line["answers"][0]["probability"] <= 1 for line in lines)


def test_json_is_an_input_too(run: Runner) -> None:
    talk = json.dumps([{"role": "user", "content": TEXT}])
    args = ("decide", "--json-input", "--predicate", "It is urgent.")
    assert run.json(*args, talk)["answers"][0]["type"] == "predicate"
    assert "is not JSON" in run.error(*args, "{")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a", "--choice", "Which?", "one"], "needs 2 to 255 of them, got 1"),
        (["a", "--score", "Which?", "one", "one"], "is there twice"),
        (["", "--predicate", "x"], "the text is empty"),
        (["--predicate", "x"], "the text is empty"),
        (["-f", "nowhere", "--predicate", "x"], "cannot read nowhere"),
    ],
)
def test_wrong_input_is_one_sentence(args: list[str], message: str, run: Runner) -> None:
    assert message in run.error("decide", *args)


def test_no_question_is_a_usage_error(run: Runner) -> None:
    assert "ask at least one question" in run.usage("decide", "a")
    assert "give the text once" in run.usage("decide", "a", "-p", "b", "--predicate", "x")
