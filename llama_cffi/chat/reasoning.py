"""Reasoning that a model writes before its answer, told from it by markers."""

from __future__ import annotations

from typing import Literal, NamedTuple

from ..errors import ValidationError
from .reader import Reader, Steps

__all__ = ["Piece", "ReasoningSplitter", "opens_thinking"]


class Piece(NamedTuple):
    """A part of the text, and what it belongs to."""

    kind: Literal["reasoning", "content"]
    text: str


def opens_thinking(prompt: str, start: str) -> bool:
    """Say whether the rendered *prompt* ends inside a thought, as some templates force it.

    Args:
        prompt: What the model is given.
        start: The marker that begins a thought.
    """
    return prompt.rstrip().endswith(start.rstrip())


class ReasoningSplitter:
    """Splits a text that arrives in pieces into a thought at its beginning and the content.

    Only a thought at the beginning counts (after white space): a marker that an answer speaks
    about stays content. White space around a thought belongs to its markers; else the content
    stays as it is. The result does not depend on how the text is split.

    Args:
        start: The marker that begins a thought, e.g. ``<think>``.
        end: The marker that ends it.
        starts_open: The prompt ended inside a thought (`opens_thinking`).
        budget: Most tokens that a thought may take; None is no limit.

    Attributes:
        is_open: Whether the text so far ends inside a thought.
        spent: Tokens that went into the thought.

    Raises:
        ValidationError: A marker is empty, or the budget negative.
    """

    def __init__(
        self, start: str, end: str, starts_open: bool = False, budget: int | None = None
    ) -> None:
        if not start.strip() or not end.strip():
            raise ValidationError(f"reasoning markers may not be empty: {start!r}, {end!r}")
        if budget is not None and budget < 0:
            raise ValidationError(f"the reasoning budget has to be 0 or more tokens, not {budget}")
        self.start = start
        self.end = end
        self.is_open = starts_open
        self.spent = 0
        self._budget = budget
        self._pieces: list[Piece] = []
        self._space = ""
        self._reader = Reader()
        self._steps = self._read()
        next(self._steps)

    @property
    def budget_is_spent(self) -> bool:
        """Whether the thought took all its tokens: the caller now makes the model write `end`."""
        return self._budget is not None and self.is_open and self.spent >= self._budget

    def push(self, text: str, n_tokens: int = 1) -> list[Piece]:
        """Take the text of *n_tokens* tokens and return what it settles.

        Text that may begin a marker, and white space that may precede one, is held back.
        """
        self.spent += n_tokens if self.is_open else 0
        self._reader.feed(text)
        return self._advance()

    def finish(self) -> list[Piece]:
        """Return what was held back; an open thought ends with the text."""
        self._reader.is_final = True
        return self._advance()

    def _advance(self) -> list[Piece]:
        next(self._steps)
        pieces, self._pieces = self._pieces, []
        return pieces

    def _read(self) -> Steps[None]:
        reader = self._reader
        if not self.is_open:
            space = yield from reader.space()
            start = self.start.lstrip()
            self.is_open = bool((yield from reader.literal(start, start.rstrip())))
            if not self.is_open and space:
                self._pieces.append(Piece("content", space))
        if self.is_open:
            yield from reader.space()
            # Some models open again the thought that the template had opened.
            if (yield from reader.literal(self.start, self.start.rstrip())):
                yield from reader.space()
            self.is_open = (yield from reader.until([self.end], self._think)) is None
            yield from reader.space()
        while True:
            yield from reader.until((), self._say)
            yield

    def _say(self, text: str) -> None:
        self._pieces.append(Piece("content", text))

    def _think(self, text: str) -> None:
        """Hand out a thought but for the white space at its end."""
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if kept:
            self._pieces.append(Piece("reasoning", kept))
