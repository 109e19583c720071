"""Python types become questions, and answers become their values."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from llama_cffi import (
    Answer,
    ChoiceAnswer,
    ChoiceQuestion,
    Decision,
    Option,
    PredicateAnswer,
    PredicateQuestion,
    ScoreAnswer,
    ScoreQuestion,
    ValidationError,
)
from llama_cffi.decisions.typed import form_of


class Team(enum.Enum):
    """The team that handles a message."""

    BILLING = "billing"
    TECH = "technical problems"
    OTHER = 3


@dataclass(frozen=True)
class Ticket:
    """A message to the support.

    Attributes:
        team: Which team has to answer?
        urgent: Is it urgent?
    """

    team: Team
    urgent: bool
    mood: Annotated[float, ScoreQuestion("How angry is the writer?", ["calm", "cross", "furious"])]
    language: Annotated[Literal["en", "de"], "Which language is it?"]
    needs_reply: Decision[bool]


def answers_for(form: Any, chosen: Sequence[int]) -> list[Answer]:
    """Answer each question of a form with its option of that number."""
    return [
        question.answer([0.9 if k == i else 0.1 for k in range(len(question.options))], 0.5)
        for question, i in zip(form.questions, chosen, strict=True)
    ]


def decided(type_: Any, *chosen: int) -> Any:
    form = form_of(type_)
    return form.build(answers_for(form, chosen))


def test_a_dataclass_has_a_question_for_each_field() -> None:
    questions = form_of(Ticket).questions
    assert [q.name for q in questions] == ["team", "urgent", "mood", "language", "needs_reply"]
    assert [q.kind for q in questions] == ["choice", "predicate", "score", "choice", "predicate"]
    assert [q.instructions for q in questions] == [
        "Which team has to answer?",
        "Is it urgent?",
        "How angry is the writer?",
        "Which language is it?",
        "needs reply",
    ]
    assert questions[0].options == (
        Option("billing"),
        Option("technical problems"),
        Option("OTHER"),
    )


def test_a_dataclass_is_made_of_the_values() -> None:
    ticket = decided(Ticket, 1, 0, 2, 1, 1)
    assert (ticket.team, ticket.urgent, ticket.language) == (Team.TECH, True, "de")
    assert ticket.mood == pytest.approx(0.1 + 2 * 0.9)
    assert ticket.needs_reply.value is False
    assert ticket.needs_reply.answer == PredicateAnswer("needs_reply", 0.5, 0.1)


def test_decision_of_a_dataclass_has_every_answer_by_field() -> None:
    decision = decided(Decision[Ticket], 0, 1, 0, 0, 0)
    assert decision.value.team is Team.BILLING
    assert [*decision.answers] == ["team", "urgent", "mood", "language", "needs_reply"]
    assert isinstance(decision.answers["team"], ChoiceAnswer)
    assert isinstance(decision.answers["mood"], ScoreAnswer)
    with pytest.raises(ValidationError, match="there are 5 answers; use answers"):
        _ = decision.answer


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (bool, [True, False]),
        (Team, [Team.BILLING, Team.TECH, Team.OTHER]),
        (Literal["a", "b"], ["a", "b"]),
        (Literal[1, 2, 3], [1, 2, 3]),
        (Literal[True, False], [True, False]),
        (Literal["true", True], ["true", True]),
        (Literal[1, True], [1, True]),
        (Literal[Team.TECH, Team.OTHER], [Team.TECH, Team.OTHER]),
        (Annotated[bool, "Is it?"], [True, False]),
        (Annotated[bool, PredicateQuestion("Is it?")], [True, False]),
        (Annotated[str, ChoiceQuestion("Which?", ["x", "y"])], ["x", "y"]),
        (Annotated[str, ScoreQuestion("How?", ["low", "high"])], ["low", "high"]),
        (enum.IntEnum("Size", ["S", "L"]), [1, 2]),
        (enum.Enum("Flag", {"ON": True, "OFF": False}), None),
    ],
)
def test_the_value_is_the_most_probable_member(type_: Any, values: list[Any] | None) -> None:
    values = [*type_] if values is None else values
    for i, value in enumerate(values):
        found = decided(type_, i)
        assert (found, type(found) is bool) == (value, type(value) is bool)
        assert decided(Decision[type_], i).value == value


def test_a_predicate_may_give_its_probability() -> None:
    assert decided(Annotated[float, PredicateQuestion("Is it?")], 0) == 0.9


def test_descriptions_come_from_annotated_then_the_field_then_the_class() -> None:
    @dataclass
    class Example:
        """An example.

        Attributes:
            a: From the field.
            b: From the field.
        """

        a: Annotated[Team, "From Annotated."]
        b: Team
        c: Team

    assert [q.instructions for q in form_of(Example).questions] == [
        "From Annotated.",
        "From the field.",
        "The team that handles a message.",
    ]
    assert form_of(bool).questions[0].instructions == ""
    assert form_of(Annotated[bool, "Is it?"]).questions[0].instructions == "Is it?"


def test_a_question_gives_its_answer_and_a_list_gives_a_list() -> None:
    question = PredicateQuestion("Is it?", name="q")
    assert decided(question, 0) == PredicateAnswer("q", 0.5, 0.9)
    assert decided([question, question], 0, 1) == [
        PredicateAnswer("q", 0.5, 0.9),
        PredicateAnswer("q", 0.5, 0.1),
    ]


def test_a_named_question_in_annotated_keeps_its_name() -> None:
    question = PredicateQuestion("Is it?", name="mine")
    assert [*decided(Decision[Annotated[bool, question]], 0).answers] == ["mine"]


@dataclass
class Nested:
    inner: Ticket


@dataclass
class Empty:
    pass


@dataclass
class Twice:
    a: Annotated[bool, PredicateQuestion("?", name="same")]
    b: Annotated[bool, PredicateQuestion("?", name="same")]


@dataclass
class Unset:
    text: str = field(default="")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "questions is empty; ask at least one"),
        (["Is it?"], r"questions\[0\] must be a question, such as .*, got 'Is it\?'"),
        ("Is it?", "cannot be decided"),
        (str, "str: str cannot be decided; use bool, an Enum, a Literal"),
        (int, "int: int cannot be decided"),
        (None, "cannot be decided"),
        (Decision, r"Decision needs the type to decide, such as Decision\[bool\]"),
        (Decision[Twice], "two questions are named 'same'"),
        (list[bool], r"list\[bool\] cannot be decided"),
        (Nested, r"inner: Ticket cannot be decided"),
        (Empty, "Empty has no field to decide"),
        (Unset, "text: str cannot be decided"),
        (Literal["a"], r"2 to 255 of them, got 1"),
        (Literal["1", 1], r"'1' is there twice"),
        (Literal["a", None], r"None cannot be an option; use str, bool or int"),
        (Literal[b"a", b"b"], r"b'a' cannot be an option"),
        (enum.Enum("One", ["A"]), r"2 to 255 of them, got 1"),
        (Annotated[int, ScoreQuestion("?", ["a", "b"])], "a ScoreQuestion does not give int"),
        (Annotated[bool, ChoiceQuestion("?", ["a", "b"])], "a ChoiceQuestion does not give bool"),
        (Annotated[str, ChoiceQuestion("?", ["a", True])], "options of a str must be str"),
    ],
)
def test_what_cannot_be_decided_is_refused(asked: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        form_of(asked)
