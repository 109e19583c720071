"""Plan: what one step decodes, and what became of it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from .request import Request

__all__ = ["Chunk", "Plan", "Result"]


class Chunk(NamedTuple):
    """Tokens of one request to decode in one step.

    Attributes:
        request: Whose they are.
        seq_id: Their sequence.
        start: The position of the first.
        tokens: The tokens; the last n_draft are guesses.
        n_draft: How many are guesses.
        samples: Whether the last token that is no guess, and every guess, gets a successor.
    """

    request: Request
    seq_id: int
    start: int
    tokens: list[int]
    n_draft: int
    samples: bool


@dataclass
class Plan:
    """One step.

    Attributes:
        chunks: What to decode, by sequence.
        group: What all of them belong to.
        n_tokens: How many tokens that is.
        admitted: Requests whose turn has come.
        preempted: Requests that had to give up their room.
    """

    chunks: list[Chunk] = field(default_factory=list)
    group: Hashable = None
    n_tokens: int = 0
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    def add(self, chunk: Chunk) -> None:
        """Decode a chunk, too."""
        self.chunks.append(chunk)
        self.n_tokens += len(chunk.tokens)

    def drop(self, request: Request) -> None:
        """Take out what would be decoded of a request."""
        for chunk in self.chunks:
            if chunk.request is request:
                self.n_tokens -= len(chunk.tokens)
        self.chunks = [chunk for chunk in self.chunks if chunk.request is not request]


@dataclass(slots=True)
class Result:
    """What became of a chunk.

    Attributes:
        tokens: The new tokens, those that confirm guesses first.
        n_accepted: Guesses that were right.
        finish_reason: Why the answer ended with them; empty = it goes on.
        error: Why the request failed.
        lost: Whether the memory lost the sequence, so that it has to be computed again.
    """

    tokens: list[int] = field(default_factory=list)
    n_accepted: int = 0
    finish_reason: str = ""
    error: BaseException | None = None
    lost: bool = False
