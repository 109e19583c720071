"""Closed questions about an input, and their answers.

The answers are those of System One and of OpenAI's `/v1/decisions`: the definitions of score and
confidence are those of `transformers.decision`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from ..errors import ValidationError
from ..html_repr import shown_by
from ..validation import as_list, check_str, check_type, shown

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "MAX_OPTIONS",
    "Answer",
    "ChoiceAnswer",
    "ChoiceQuestion",
    "Kind",
    "Option",
    "PredicateAnswer",
    "PredicateQuestion",
    "Question",
    "ScoreAnswer",
    "ScoreQuestion",
]

MAX_OPTIONS = 255

Kind = Literal["predicate", "choice", "score"]
A_co = TypeVar("A_co", covariant=True)


@dataclass(frozen=True)
class Option:
    """An option of a choice, or a level of a score.

    Attributes:
        value: Its value; that of a level is a str.
        description: What it stands for; may be empty.
    """

    value: str | bool
    description: str = ""

    @property
    def text(self) -> str:
        """The value as it is written in a prompt."""
        return self.value if isinstance(self.value, str) else str(self.value).lower()


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        name: The name of the question.
        label_mass: The probability of all labels together, from 0 to 1, where the model could
            continue with any token. A small one says that it would not have answered with one.
    """

    name: str
    label_mass: float

    _repr_html_ = shown_by("answer")


@dataclass(frozen=True)
class PredicateAnswer(Answer):
    """The answer to a `PredicateQuestion`.

    Attributes:
        name: The name of the question.
        label_mass: See `Answer`.
        probability: The probability that the statement is true.
    """

    probability: float

    @property
    def value(self) -> bool:
        """Whether the statement is more likely true than not."""
        return self.probability > 0.5


@dataclass(frozen=True)
class ChoiceAnswer(Answer):
    """The answer to a `ChoiceQuestion`.

    Attributes:
        name: The name of the question.
        label_mass: See `Answer`.
        choice: The most probable option; the first of several.
        probabilities: The probability of each option, in their order; they sum to 1.
        confidence: (p - 1/n) / (1 - 1/n) for the probability p of the choice among n options: from
            0 to 1.
    """

    choice: str | bool
    probabilities: Mapping[str | bool, float]
    confidence: float


@dataclass(frozen=True)
class ScoreAnswer(Answer):
    """The answer to a `ScoreQuestion`.

    Attributes:
        name: The name of the question.
        label_mass: See `Answer`.
        score: The mean level, from 0 for the lowest to n - 1.
        level: The most probable level; the lowest of several.
        probabilities: The probability of each level, the lowest first; they sum to 1.
        confidence: 1 - d/u, at least 0. d is the mean distance to the most probable level, and u
            that of equally probable levels to their mean.
    """

    score: float
    level: str
    probabilities: Mapping[str, float]
    confidence: float


@dataclass(frozen=True, init=False)
class Question(ABC, Generic[A_co]):
    """A closed question.

    Attributes:
        instructions: The question; may be empty if the input asks it.
        options: The possible answers.
        name: Its name, for the answer and for messages; may be empty.
    """

    kind: ClassVar[Kind]

    instructions: str
    options: tuple[Option, ...]
    name: str

    @abstractmethod
    def answer(self, probabilities: Sequence[float], label_mass: float) -> A_co:
        """Return the answer.

        Args:
            probabilities: The probability of each option, in their order.
            label_mass: See `Answer`.
        """

    def named(self, name: str) -> Self:
        """Return the question with *name*, unless it has one."""
        question = copy(self)
        object.__setattr__(question, "name", self.name or name)
        return question

    def _set(self, instructions: str, options: tuple[Option, ...], name: str) -> None:
        object.__setattr__(self, "instructions", check_str("instructions", instructions))
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "name", check_str("name", name))


@dataclass(frozen=True, init=False)
class PredicateQuestion(Question[PredicateAnswer]):
    """A question about how likely a statement about the input is to be true.

    The arguments *true* and *false* describe what yes and no mean.

    Attributes:
        instructions: The statement, or a question to be answered by yes or no.
        options: True, then False, with their descriptions.
        name: See `Question`.

    Raises:
        ValidationError: An argument is not a str.
    """

    kind = "predicate"

    def __init__(
        self, instructions: str, *, true: str = "", false: str = "", name: str = ""
    ) -> None:
        yes, no = check_str("true", true), check_str("false", false)
        self._set(instructions, (Option(True, yes), Option(False, no)), name)

    def answer(self, probabilities: Sequence[float], label_mass: float) -> PredicateAnswer:
        """See `Question.answer`."""
        return PredicateAnswer(self.name, label_mass, probabilities[0])


@dataclass(frozen=True, init=False)
class ChoiceQuestion(Question[ChoiceAnswer]):
    """A question about which option fits the input best.

    Attributes:
        instructions: The question.
        options: 2 to 255 different values, str or bool. They are given as a list of values or of
            `Option` objects, or as a mapping from values to descriptions.
        name: See `Question`.

    Raises:
        ValidationError: There are too few or too many options, or two are equal.
    """

    kind = "choice"

    def __init__(
        self,
        instructions: str,
        options: Iterable[str | bool | Option] | Mapping[str, str | None],
        *,
        name: str = "",
    ) -> None:
        self._set(instructions, _options("options", options), name)

    def answer(self, probabilities: Sequence[float], label_mass: float) -> ChoiceAnswer:
        """See `Question.answer`."""
        n, most = len(probabilities), max(probabilities)
        return ChoiceAnswer(
            self.name,
            label_mass,
            self.options[probabilities.index(most)].value,
            {o.value: p for o, p in zip(self.options, probabilities, strict=True)},
            max(0.0, (most - 1 / n) / (1 - 1 / n)),
        )


@dataclass(frozen=True, init=False)
class ScoreQuestion(Question[ScoreAnswer]):
    """A question about which of several ordered levels fits the input best.

    Attributes:
        instructions: The question.
        options: The levels: 2 to 255 different ones, the lowest first. The argument *levels* is a
            list of str or of `Option` objects, or a mapping from levels to descriptions.
        name: See `Question`.

    Raises:
        ValidationError: There are too few or too many levels, or two are equal.
    """

    kind = "score"

    def __init__(
        self,
        instructions: str,
        levels: Iterable[str | Option] | Mapping[str, str | None],
        *,
        name: str = "",
    ) -> None:
        options = _options("levels", levels)
        for option in options:
            check_str("a level", option.value)
        self._set(instructions, options, name)

    def answer(self, probabilities: Sequence[float], label_mass: float) -> ScoreAnswer:
        """See `Question.answer`."""
        n = len(probabilities)
        mode = probabilities.index(max(probabilities))
        distance = sum(p * abs(i - mode) for i, p in enumerate(probabilities))
        uniform = sum(abs(i - (n - 1) / 2) for i in range(n)) / n
        levels = [option.text for option in self.options]
        return ScoreAnswer(
            self.name,
            label_mass,
            sum(i * p for i, p in enumerate(probabilities)),
            levels[mode],
            dict(zip(levels, probabilities, strict=True)),
            max(0.0, 1 - distance / uniform),
        )


def _options(
    name: str, given: Iterable[str | bool | Option] | Mapping[str, str | None]
) -> tuple[Option, ...]:
    """Return the checked options of a question."""
    if isinstance(given, Mapping):
        described: Mapping[Any, str | None] = given
        options = [Option(value, about or "") for value, about in described.items()]
    else:
        kind = "a list, or a mapping to descriptions"
        items: list[str | bool | Option] = as_list(name, given, kind)
        options = [item if isinstance(item, Option) else Option(item) for item in items]
    if not 2 <= len(options) <= MAX_OPTIONS:
        raise ValidationError(
            f"{name}: a question needs 2 to {MAX_OPTIONS} of them, got {len(options)}"
        )
    seen: set[tuple[bool, str]] = set()
    for option in options:
        if not isinstance(option.value, bool):
            check_type(f"a value of {name}", option.value, str)
        check_str(f"the description of {option.value!r}", option.description)
        if not option.text.strip():
            raise ValidationError(f"{name}: {shown(option.value)} is empty; give each one a text")
        key = isinstance(option.value, bool), option.text
        if key in seen:
            raise ValidationError(
                f"{name}: {shown(option.value)} is there twice; each must be unique"
            )
        seen.add(key)
    return tuple(options)
