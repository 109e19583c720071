"""Questions are checked when they are made; answers follow the formulas of the field."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_cffi import (
    ChoiceQuestion,
    Option,
    PredicateQuestion,
    Question,
    ScoreQuestion,
    ValidationError,
)


@st.composite
def distributions(draw: st.DrawFn) -> list[float]:
    weights = draw(st.lists(st.floats(0, 1), min_size=2, max_size=20))
    weights[draw(st.integers(0, len(weights) - 1))] += 0.1
    return [weight / sum(weights) for weight in weights]


def names(n: int) -> list[str]:
    return [f"option {i}" for i in range(n)]


@settings(max_examples=50)
@given(distributions(), st.floats(0, 1))
def test_confidence_of_a_choice_is_what_it_has_above_chance(p: list[float], mass: float) -> None:
    answer = ChoiceQuestion("?", names(len(p)), name="q").answer(p, mass)
    n = len(p)
    assert answer.confidence == pytest.approx((max(p) - 1 / n) / (1 - 1 / n), abs=1e-9)
    assert 0 <= answer.confidence <= 1 + 1e-9
    assert answer.probabilities[answer.choice] == max(p)
    assert [*answer.probabilities.values()] == p
    assert (answer.name, answer.label_mass) == ("q", mass)


@settings(max_examples=50)
@given(distributions())
def test_score_is_the_mean_level_and_its_confidence_the_closeness_to_the_mode(
    p: list[float],
) -> None:
    answer = ScoreQuestion("?", names(len(p))).answer(p, 1.0)
    n, mode = len(p), p.index(max(p))
    assert answer.score == pytest.approx(sum(i * x for i, x in enumerate(p)))
    assert 0 <= answer.score <= n - 1 + 1e-9
    assert answer.level == f"option {mode}"
    distance = math.fsum(x * abs(i - mode) for i, x in enumerate(p))
    spread = math.fsum(abs(i - (n - 1) / 2) for i in range(n)) / n
    assert answer.confidence == pytest.approx(max(0.0, 1 - distance / spread), abs=1e-9)
    assert 0 <= answer.confidence <= 1


@settings(max_examples=50)
@given(st.integers(2, 255), st.data())
def test_certainty_is_confidence_one_and_indifference_zero(n: int, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, n - 1))
    certain = [float(i == k) for k in range(n)]
    for question in (ChoiceQuestion("?", names(n)), ScoreQuestion("?", names(n))):
        assert question.answer(certain, 1.0).confidence == pytest.approx(1)
        assert question.answer([1 / n] * n, 1.0).confidence == pytest.approx(0, abs=1e-9)
    assert ScoreQuestion("?", names(n)).answer(certain, 1.0).score == i


@settings(max_examples=50)
@given(distributions())
def test_confidence_of_a_choice_does_not_depend_on_the_order(p: list[float]) -> None:
    question = ChoiceQuestion("?", names(len(p)))
    there, back = question.answer(p, 1.0), question.answer(p[::-1], 1.0)
    assert there.confidence == pytest.approx(back.confidence)


@settings(max_examples=50)
@given(st.floats(0, 1))
def test_a_predicate_has_its_probability_only(p: float) -> None:
    answer = PredicateQuestion("It rains.").answer([p, 1 - p], 0.5)
    assert (answer.probability, answer.value) == (p, p > 0.5)
    assert not hasattr(answer, "confidence")


def test_options_come_as_list_mapping_or_objects() -> None:
    made = (Option("a", "first"), Option(True))
    assert ChoiceQuestion("?", [Option("a", "first"), True]).options == made
    assert ChoiceQuestion("?", {"a": "first", "b": None}).options == (made[0], Option("b"))
    assert ScoreQuestion("?", ("low", "high")).options == (Option("low"), Option("high"))
    assert PredicateQuestion("?", true="yes it is").options == (
        Option(True, "yes it is"),
        Option(False),
    )


def test_a_text_and_a_bool_with_the_same_spelling_are_two_options() -> None:
    answer = ChoiceQuestion("?", ["true", True]).answer([0.25, 0.75], 1.0)
    assert answer.choice is True
    assert answer.probabilities == {"true": 0.25, True: 0.75}


def test_questions_are_frozen_comparable_and_picklable() -> None:
    question = ChoiceQuestion("?", ["a", "b"], name="q")
    assert question == ChoiceQuestion("?", {"a": "", "b": None}, name="q")
    assert question != ChoiceQuestion("?", ["a", "b"], name="r")
    assert question.named("other") == question  # it has a name
    assert ChoiceQuestion("?", ["a", "b"]).named("q") == question
    assert pickle.loads(pickle.dumps(question)) == question
    with pytest.raises(dataclasses.FrozenInstanceError):
        question.name = "r"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChoiceQuestion("?", ["a"]), r"2 to 255 of them, got 1"),
        (lambda: ChoiceQuestion("?", []), r"2 to 255 of them, got 0"),
        (lambda: ChoiceQuestion("?", names(256)), r"2 to 255 of them, got 256"),
        (lambda: ChoiceQuestion("?", ["a", "b", "a"]), r"'a' is there twice"),
        (lambda: ChoiceQuestion("?", [True, True]), r"True is there twice"),
        (lambda: ChoiceQuestion("?", ["a", "  "]), r"'  ' is empty"),
        (lambda: ChoiceQuestion("?", "ab"), r"options must be a list, or a mapping"),
        (lambda: ChoiceQuestion("?", 5), r"options must be a list, or a mapping"),
        (lambda: ChoiceQuestion("?", ["a", 1]), r"a value of options must be a str, got 1"),
        (lambda: ChoiceQuestion("?", {"a": 3, "b": ""}), r"description of 'a' must be a str"),
        (lambda: ChoiceQuestion(7, ["a", "b"]), r"instructions must be a str"),
        (lambda: ChoiceQuestion("?", ["a", "b"], name=1), r"name must be a str"),
        (lambda: ScoreQuestion("?", ["low"]), r"levels: .*2 to 255 of them, got 1"),
        (lambda: ScoreQuestion("?", ["low", "low"]), r"'low' is there twice"),
        (lambda: ScoreQuestion("?", ["low", True]), r"a level must be a str, got True"),
        (lambda: PredicateQuestion(None), r"instructions must be a str"),
        (lambda: PredicateQuestion("?", true=1), r"true must be a str"),
    ],
)
def test_a_wrong_question_is_refused_when_it_is_made(make: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make()


def test_a_question_without_a_kind_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Question()  # type: ignore[abstract]
