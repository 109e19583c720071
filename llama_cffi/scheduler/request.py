"""Request: one prompt that is answered in a batch with others, and its states."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Sequence
from enum import Enum

from ..errors import ValidationError
from ..generation.prompt import Prompt
from ..generation.sampling_params import SamplingParams
from ..generation.stats import GenerationStats
from .renamed import renamed_arguments

__all__ = ["Request", "RequestState"]

_numbers = itertools.count(1)


class RequestState(Enum):
    """The state of a request; the last three are final."""

    PENDING = "pending"
    ENCODING = "encoding"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether no other state can follow."""
        return not _NEXT[self]


_ENDS = {RequestState.FAILED, RequestState.CANCELLED}
# Preempted requests return to PENDING, and so do those whose pictures and sounds are encoded.
_NEXT: dict[RequestState, set[RequestState]] = {
    RequestState.PENDING: {RequestState.PREFILLING, RequestState.ENCODING, *_ENDS},
    RequestState.ENCODING: {RequestState.PENDING, *_ENDS},
    RequestState.PREFILLING: {RequestState.DECODING, RequestState.PENDING, *_ENDS},
    RequestState.DECODING: {RequestState.FINISHED, RequestState.PENDING, *_ENDS},
    RequestState.FINISHED: set(),
    RequestState.FAILED: set(),
    RequestState.CANCELLED: set(),
}


class Request:
    """A prompt, its options, and its progress.

    Args:
        prompt: At least one token id.
        max_tokens: Maximum number of tokens to generate.
        sampling: Sampling parameters; None = the defaults of `SamplingParams`.
        stop: Strings that end the answer.
        priority: Requests of higher priority run first; see `Scheduler`.
        timeout_s: Deadline in seconds from now; None = no deadline.
        callback: Called with each piece of text, in the engine's thread.
        lora_key: Identifies the LoRA adapters. Only requests with equal keys share a batch and
            cached prefixes. Formerly `group`.
        cache_prompt: Reuse what the KV cache holds of the prompt; False: decode all of it.
        n_draft: Maximum number of draft tokens per step in speculative decoding; 0 = none,
            None = chosen by the acceptance rate.
        id: Name of the request; None = a numbered one.
        client: For whom it runs: clients share the engine fairly; None counts as one.

    Attributes:
        tokens: The prompt and the tokens generated so far.
        num_computed_tokens: Number of tokens that the KV cache holds.
        checkpoints: After which tokens of the prompt its sequence is stored; see `KVCache`.
        draft: Draft tokens to verify in the next step.
        seq_id: The sequence in the KV cache; None while it waits.
        last_seq_id: The sequence that it has or had last.
        created_s: Creation time, `time.monotonic()`.
        deadline_s: The deadline, `time.monotonic()`, or None.
        stats: Counts and times so far.
        error: Why it failed.

    Raises:
        ValidationError: The prompt is empty, or max_tokens is below 1.
    """

    __slots__ = (
        "_state",
        "cache_prompt",
        "callback",
        "checkpoints",
        "client",
        "created_s",
        "deadline_s",
        "draft",
        "error",
        "id",
        "last_seq_id",
        "lora_key",
        "max_tokens",
        "n_draft",
        "num_computed_tokens",
        "number",
        "priority",
        "prompt",
        "sampling",
        "seq_id",
        "stats",
        "stop",
        "tokens",
    )

    @renamed_arguments(group="lora_key")
    def __init__(
        self,
        prompt: Sequence[int],
        max_tokens: int = 256,
        sampling: SamplingParams | None = None,
        *,
        stop: Sequence[str] = (),
        priority: int = 0,
        timeout_s: float | None = None,
        callback: Callable[[str], object] | None = None,
        lora_key: Hashable = None,
        cache_prompt: bool = True,
        n_draft: int | None = None,
        id: str | None = None,
        client: str | None = None,
    ) -> None:
        if not prompt:
            raise ValidationError("the prompt is empty: there is nothing to continue")
        if max_tokens < 1:
            raise ValidationError(f"max_tokens={max_tokens} is below 1")
        self.number = next(_numbers)
        self.id = id or f"request-{self.number}"
        self.prompt = Prompt(prompt)
        self.max_tokens = max_tokens
        self.sampling = sampling or SamplingParams()
        self.stop = tuple(stop)
        self.priority, self.client = priority, client
        self.callback = callback
        self.lora_key = lora_key
        self.cache_prompt = cache_prompt
        self.n_draft = n_draft
        self.tokens = Prompt(prompt)
        self.num_computed_tokens = 0
        self.checkpoints: list[int] = []
        self.draft: list[int] = []
        self.seq_id: int | None = None
        self.last_seq_id: int | None = None
        self.created_s = time.monotonic()
        self.deadline_s = None if timeout_s is None else self.created_s + timeout_s
        self.stats = GenerationStats(n_prompt=len(self.prompt))
        self.error: BaseException | None = None
        self._state = RequestState.PENDING

    @property
    def state(self) -> RequestState:
        """The current state."""
        return self._state

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """The cells of the prompt."""
        return tuple(self.prompt)

    @property
    def generated_tokens(self) -> list[int]:
        """The answer so far."""
        return self.tokens[len(self.prompt) :]

    @property
    def n_generated(self) -> int:
        """Number of tokens in the answer so far."""
        return len(self.tokens) - len(self.prompt)

    @property
    def finished(self) -> bool:
        """Whether its state is final."""
        return self._state.final

    def part(self, start: int, end: int) -> list[int]:
        """Return the cells from *start* to decode in one step: text, up to *end*, or one media."""
        if not self.tokens.media:
            return self.tokens[start:end]
        return self.tokens.run(start, end)

    def positions(self, start: int, end: int) -> Sequence[int]:
        """Return the positions in the sequence of tokens *start* to *end* - 1, draft tokens too.

        Without media these are the indices. All code that fills a batch asks here.
        """
        first = self.tokens.position(start)
        return range(first, first + end - start)

    def move(self, state: RequestState) -> None:
        """Change the state.

        Raises:
            ValidationError: The state cannot follow the current one.
        """
        if state not in _NEXT[self._state]:
            raise ValidationError(f"{self.id} is {self._state.value}; it cannot be {state.value}")
        self._state = state

    def __repr__(self) -> str:
        return (
            f"<Request {self.id} {self._state.value} {len(self.prompt)}+"
            f"{self.n_generated} tokens, {self.num_computed_tokens} computed>"
        )
