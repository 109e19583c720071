"""What looks at the logits of every token, and what ends an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = [
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "several",
]

LogitsProcessor = Callable[..., Any]
StoppingCriteria = Callable[..., bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Functions `(input_ids, scores)` that return new scores, one after the other."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return what the last of them makes of *scores*."""
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Functions `(input_ids, logits)`; generation ends where one of them returns True."""

    def __call__(self, input_ids: Any, logits: Any) -> bool:
        """Return whether one of them says so."""
        return any([criterion(input_ids, logits) for criterion in self])


class MinTokensLogitsProcessor:
    """Forbids the end until there are *min_tokens* tokens; make a new one for each answer."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens, self.token_eos = min_tokens, token_eos
        self.prompt_tokens: int | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return *scores* with the end at -inf while it is forbidden."""
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -float("inf")
        return scores


def several(given: Any) -> tuple[Any, ...]:
    """Return one function, a list of them, or None as a tuple."""
    if isinstance(given, (list, tuple)):
        return tuple(given)
    return () if given is None else (given,)
