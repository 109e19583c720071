"""Request: one prompt that is answered in a batch with others, and the states it goes through."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Sequence
from enum import Enum

from ..errors import ValidationError
from ..generation.sampling_params import SamplingParams
from ..generation.stats import GenerationStats

__all__ = ["Request", "RequestState"]

_numbers = itertools.count(1)


class RequestState(Enum):
    """Where a request is; the last three are final."""

    PENDING = "pending"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return not _NEXT[self]


_ENDS = {RequestState.FAILED, RequestState.CANCELLED}
# Back to pending goes who was preempted.
_NEXT: dict[RequestState, set[RequestState]] = {
    RequestState.PENDING: {RequestState.PREFILLING, *_ENDS},
    RequestState.PREFILLING: {RequestState.DECODING, RequestState.PENDING, *_ENDS},
    RequestState.DECODING: {RequestState.FINISHED, RequestState.PENDING, *_ENDS},
    RequestState.FINISHED: set(),
    RequestState.FAILED: set(),
    RequestState.CANCELLED: set(),
}


class Request:
    """A prompt, what to do with it, and how far that is.

    Args:
        prompt_tokens: At least one.
        max_tokens: Most tokens to generate.
        sampling: How tokens are chosen; None = the defaults of `SamplingParams`.
        stop: Texts that end the answer.
        priority: Higher goes first. Who waits rises, see `Scheduler`.
        timeout_s: The answer has to be there in so many seconds from now; None = no limit.
        callback: Called with each piece of the answer, in the engine's thread.
        group: Requests of one group may share a batch and cached prefixes, such as those with the
            same adapters.
        n_draft: Most guesses at once in speculative decoding, 0 = none; None = what pays.
        id: None = a number is made up.

    Attributes:
        tokens: The prompt and what was generated so far.
        num_computed_tokens: How many of them the cache holds.
        draft: Guesses at the tokens that come next, verified by the next step.
        seq_id: The sequence in the cache; None while it waits.
        created_s: When it was made, `time.monotonic()`.
        deadline_s: When it has to be done, or None.
        stats: Counts and times so far.
        error: Why it failed.

    Raises:
        ValidationError: The prompt is empty, or max_tokens is below 1.
    """

    __slots__ = (
        "_state",
        "callback",
        "created_s",
        "deadline_s",
        "draft",
        "error",
        "group",
        "id",
        "max_tokens",
        "n_draft",
        "num_computed_tokens",
        "number",
        "priority",
        "prompt_tokens",
        "sampling",
        "seq_id",
        "stats",
        "stop",
        "tokens",
    )

    def __init__(
        self,
        prompt_tokens: Sequence[int],
        max_tokens: int = 256,
        sampling: SamplingParams | None = None,
        *,
        stop: Sequence[str] = (),
        priority: int = 0,
        timeout_s: float | None = None,
        callback: Callable[[str], object] | None = None,
        group: Hashable = None,
        n_draft: int | None = None,
        id: str | None = None,
    ) -> None:
        if not prompt_tokens:
            raise ValidationError("the prompt is empty: there is nothing to continue")
        if max_tokens < 1:
            raise ValidationError(f"max_tokens={max_tokens} is below 1")
        self.number = next(_numbers)
        self.id = id or f"request-{self.number}"
        self.prompt_tokens = tuple(prompt_tokens)
        self.max_tokens = max_tokens
        self.sampling = sampling or SamplingParams()
        self.stop = tuple(stop)
        self.priority = priority
        self.callback = callback
        self.group = group
        self.n_draft = n_draft
        self.tokens = list(prompt_tokens)
        self.num_computed_tokens = 0
        self.draft: list[int] = []
        self.seq_id: int | None = None
        self.created_s = time.monotonic()
        self.deadline_s = None if timeout_s is None else self.created_s + timeout_s
        self.stats = GenerationStats(n_prompt=len(self.prompt_tokens))
        self.error: BaseException | None = None
        self._state = RequestState.PENDING

    @property
    def state(self) -> RequestState:
        """Where it is."""
        return self._state

    @property
    def generated_tokens(self) -> list[int]:
        """The answer so far."""
        return self.tokens[len(self.prompt_tokens) :]

    @property
    def n_generated(self) -> int:
        """The length of the answer so far."""
        return len(self.tokens) - len(self.prompt_tokens)

    @property
    def finished(self) -> bool:
        """Whether its state is final."""
        return self._state.final

    def move(self, state: RequestState) -> None:
        """Go to another state.

        Raises:
            ValidationError: That one cannot follow.
        """
        if state not in _NEXT[self._state]:
            raise ValidationError(f"{self.id} is {self._state.value}; it cannot be {state.value}")
        self._state = state

    def __repr__(self) -> str:
        return (
            f"<Request {self.id} {self._state.value} {len(self.prompt_tokens)}+"
            f"{self.n_generated} tokens, {self.num_computed_tokens} computed>"
        )
