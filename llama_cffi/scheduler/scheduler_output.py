"""SchedulerOutput: the tokens that one step decodes, and their results."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from .request import Request

__all__ = ["ScheduledTokens", "SchedulerOutput", "TokenResult"]


class ScheduledTokens(NamedTuple):
    """A chunk: tokens of one request to decode in one step.

    Attributes:
        request: The request.
        seq_id: Its sequence.
        start: Index of the first token in the request; see `Request.positions`.
        tokens: The tokens; the last n_draft are draft tokens.
        n_draft: Number of draft tokens.
        samples: Whether to sample after the last token that is not a draft token, and after each
            draft token.
    """

    request: Request
    seq_id: int
    start: int
    tokens: list[int]
    n_draft: int
    samples: bool


@dataclass
class SchedulerOutput:
    """One step.

    Attributes:
        chunks: The tokens to decode, ordered by sequence.
        lora_key: The LoRA key that all of them have.
        n_tokens: Number of tokens in all chunks.
        admitted: Requests that start to run with this step.
        preempted: Requests that were preempted to free KV cache for others.
    """

    chunks: list[ScheduledTokens] = field(default_factory=list)
    lora_key: Hashable = None
    n_tokens: int = 0
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    def add(self, chunk: ScheduledTokens) -> None:
        """Add a chunk."""
        self.chunks.append(chunk)
        self.n_tokens += len(chunk.tokens)

    def drop(self, request: Request) -> None:
        """Remove the chunk of a request."""
        for chunk in self.chunks:
            if chunk.request is request:
                self.n_tokens -= len(chunk.tokens)
        self.chunks = [chunk for chunk in self.chunks if chunk.request is not request]


@dataclass(slots=True)
class TokenResult:
    """The result of a chunk.

    Attributes:
        tokens: The new tokens, those that confirm draft tokens first.
        n_accepted: Number of accepted draft tokens.
        finish_reason: Why the answer ended with these tokens; empty while it continues.
        error: Why the request failed.
        lost: Whether the memory lost the sequence, so that it must be computed again.
    """

    tokens: list[int] = field(default_factory=list)
    n_accepted: int = 0
    finish_reason: str = ""
    error: BaseException | None = None
    lost: bool = False
