"""Python types as questions, and answers as their values."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from ..errors import ValidationError
from ..html_repr import shown_by
from ..schema.annotations import is_enum, name_of, unwrapped
from ..schema.fields import description_of, fields_of
from ..validation import shown
from .questions import (
    Answer,
    ChoiceAnswer,
    ChoiceQuestion,
    Option,
    PredicateQuestion,
    Question,
)

__all__ = ["Decision", "Form", "form_of"]

T = TypeVar("T")


@dataclass(frozen=True)
class Decision(Generic[T]):
    """A decided value with the answers behind it.

    Use it as the type to decide, `Decision[Ticket]`, or as that of a field.

    Attributes:
        value: The value.
        answers: The answer to each question, by name of the field; that of a type without fields
            by the name of the type.
    """

    value: T
    answers: Mapping[str, Answer]

    @property
    def answer(self) -> Answer:
        """The answer behind a value that has only one.

        Raises:
            ValidationError: There are several.
        """
        if len(self.answers) != 1:
            raise ValidationError(
                f"there are {len(self.answers)} answers; use answers[name] with one of "
                f"{', '.join(self.answers)}"
            )
        return next(iter(self.answers.values()))

    _repr_html_ = shown_by("decision")


@dataclass(frozen=True)
class Form(Generic[T]):
    """The questions of one call, and how their answers become its result.

    Attributes:
        questions: The questions.
        build: Makes the result of the answers, which are in the order of the questions.
    """

    questions: tuple[Question[Answer], ...]
    build: Callable[[Sequence[Answer]], T]


def form_of(asked: Any) -> Form[Any]:
    """Return the form of a question, a list of questions, or a type.

    Raises:
        ValidationError: It is none of these, the list is empty, or the type cannot be decided.
    """
    if isinstance(asked, Question):
        return Form((asked,), _only)
    if not isinstance(asked, (list, tuple)):
        return _form(asked)
    for i, question in enumerate(asked):
        if not isinstance(question, Question):
            raise ValidationError(
                f"questions[{i}] must be a question, such as PredicateQuestion('...'), got "
                f"{shown(question)}"
            )
    if not asked:
        raise ValidationError("questions is empty; ask at least one")
    return Form(tuple(asked), list)


def _form(type_: Any, field: str = "", about: str = "") -> Form[Any]:
    """Return the form of a type, or of the type hint of a *field* described by *about*."""
    given = [note for note in getattr(type_, "__metadata__", ()) if isinstance(note, Question)]
    type_, noted = unwrapped(type_)
    about = noted or about
    if type_ is Decision:
        raise ValidationError("Decision needs the type to decide, such as Decision[bool]")
    if get_origin(type_) is Decision:
        (inner,) = get_args(type_)
        return _explained(_form(inner, field, about))
    name = field or name_of(type_)
    if given:
        return _form_of_question(given[0], type_, name)
    if dataclasses.is_dataclass(type_) and not field:
        return _record(type_)
    if type_ is bool:
        return Form((PredicateQuestion(about or _words(field), name=name),), _value)
    choices: Any = type_  # an Enum or a Literal, or neither
    members = list(choices) if is_enum(type_) else get_args(type_)
    if not is_enum(type_) and get_origin(type_) is not Literal:
        raise ValidationError(
            f"{name}: {name_of(type_)} cannot be decided; use bool, an Enum, a Literal, a "
            "dataclass of these, or Annotated[float, ScoreQuestion(...)]"
        )
    about = about or (description_of(choices) if is_enum(type_) else "") or _words(field)
    question = ChoiceQuestion(about, [_option(name, member) for member in members], name=name)
    values = [option.value for option in question.options]
    return Form((question,), lambda answers: members[values.index(_value(answers))])


def _record(cls: Any) -> Form[Any]:
    """Return the form of a dataclass."""
    fields = fields_of(cls) or {}
    if not fields:
        raise ValidationError(f"{cls.__name__} has no field to decide")
    parts = {name: _form(f.type, name, f.description) for name, f in fields.items()}

    def build(answers: Sequence[Answer]) -> object:
        values = zip(parts, answers, strict=True)  # each field has one question
        return cls(**{name: parts[name].build([answer]) for name, answer in values})

    return Form(tuple(q for part in parts.values() for q in part.questions), build)


def _form_of_question(question: Question[Answer], type_: Any, name: str) -> Form[Any]:
    """Return the form of a question given by Annotated."""
    builders = {
        (bool, "predicate"): _value,
        (float, "predicate"): lambda answers: _only(answers).probability,
        (float, "score"): lambda answers: _only(answers).score,
        (str, "score"): lambda answers: _only(answers).level,
        (str, "choice"): _value,
    }
    if (build := builders.get((type_, question.kind))) is None:
        raise ValidationError(
            f"{name}: a {type(question).__name__} does not give {name_of(type_)}; a predicate "
            "gives bool or its probability as float, a choice str, a score float or its level as "
            "str"
        )
    has_bool = any(isinstance(option.value, bool) for option in question.options)
    if type_ is str and question.kind == "choice" and has_bool:
        raise ValidationError(f"{name}: the options of a str must be str, not True or False")
    return Form((question.named(name),), build)


def _explained(form: Form[Any]) -> Form[Any]:
    """Return the form whose result has the answers, too."""
    names = [question.name for question in form.questions]
    for name in names:
        if names.count(name) > 1:
            raise ValidationError(f"two questions are named {name!r}; give each a name of its own")

    def build(answers: Sequence[Answer]) -> Decision[Any]:
        return Decision(form.build(answers), {answer.name: answer for answer in answers})

    return Form(form.questions, build)


def _option(name: str, member: object) -> Option:
    """Return the option that stands for a member of an Enum or a Literal.

    Raises:
        ValidationError: It is neither a str, bool, int nor a member of an Enum.
    """
    if isinstance(member, enum.Enum):
        return Option(member.value if isinstance(member.value, (str, bool)) else member.name)
    if not isinstance(member, (str, int)):
        raise ValidationError(f"{name}: {member!r} cannot be an option; use str, bool or int")
    return Option(member if isinstance(member, (str, bool)) else str(member))


def _words(field: str) -> str:
    return field.replace("_", " ")


def _only(answers: Sequence[Answer]) -> Any:
    (answer,) = answers
    return answer


def _value(answers: Sequence[Answer]) -> Any:
    answer = _only(answers)
    return answer.choice if isinstance(answer, ChoiceAnswer) else answer.value
