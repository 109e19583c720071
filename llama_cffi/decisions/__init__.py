"""Typed decisions: the probability of each answer to a closed question, read from one position."""

from .decider import (
    Decided,
    DecisionOptions,
    PreparedDecisions,
    decide_batch,
    decide_batch_async,
    prepare,
    run,
    run_async,
)
from .inputs import DecisionInput
from .questions import (
    Answer,
    ChoiceAnswer,
    ChoiceQuestion,
    Option,
    PredicateAnswer,
    PredicateQuestion,
    Question,
    ScoreAnswer,
    ScoreQuestion,
)
from .typed import Decision

__all__ = [
    "Answer",
    "ChoiceAnswer",
    "ChoiceQuestion",
    "Decided",
    "Decision",
    "DecisionInput",
    "DecisionOptions",
    "Option",
    "PredicateAnswer",
    "PredicateQuestion",
    "PreparedDecisions",
    "Question",
    "ScoreAnswer",
    "ScoreQuestion",
    "decide_batch",
    "decide_batch_async",
    "prepare",
    "run",
    "run_async",
]
