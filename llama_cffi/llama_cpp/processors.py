"""Functions that change the logits of the next token, and functions that end the generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "several",
]

# (token ids so far, logits of the next token) -> new logits; None: they were changed in place.
LogitsProcessor = Callable[
    ["NDArray[np.int32]", "NDArray[np.float32]"], "NDArray[np.float32] | None"
]
# (token ids so far, logits of the next token) -> whether to stop.
StoppingCriteria = Callable[["NDArray[np.int32]", "NDArray[np.float32]"], bool]
F = TypeVar("F")


class LogitsProcessorList(list[LogitsProcessor]):
    """Logits processors, applied in order."""

    def __call__(
        self, input_ids: NDArray[np.int32], scores: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return *scores*, (n_vocab,) float32, after the last processor."""
        for processor in self:
            changed = processor(input_ids, scores)
            scores = scores if changed is None else changed
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Stopping criteria; generation ends when one of them returns True."""

    def __call__(self, input_ids: NDArray[np.int32], logits: NDArray[np.float32]) -> bool:
        """Return whether any criterion is met; all of them are called."""
        return any([criterion(input_ids, logits) for criterion in self])


class MinTokensLogitsProcessor:
    """Forbids the end-of-sequence token until *min_tokens* are generated.

    It counts from its first call, so each generation needs a new one.
    """

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens, self.token_eos = min_tokens, token_eos
        self.prompt_tokens: int | None = None

    def __call__(
        self, input_ids: NDArray[np.int32], scores: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return *scores*, (n_vocab,) float32, with the end at -inf while it is forbidden."""
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -float("inf")
        return scores


def several(given: F | Sequence[F] | None) -> tuple[F, ...]:
    """Return one function, a list of them, or None as a tuple."""
    if given is None:
        return ()
    return tuple(given) if isinstance(given, Sequence) else (given,)
