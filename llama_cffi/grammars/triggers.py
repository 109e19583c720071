"""Triggers: words in the text at which a grammar starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..binding.model.vocab import encode
from ..errors import ValidationError
from .tokens import Tokens

__all__ = ["Trigger"]


@dataclass(frozen=True)
class Trigger:
    """Words that start a grammar; the first occurrence counts.

    Attributes:
        words: The words, UTF-8.
        included: Whether the grammar matches from the word on, or only the text after it.
    """

    words: tuple[bytes, ...]
    included: bool

    @classmethod
    def of(cls, words: Sequence[str], *, included: bool) -> Trigger:
        """Return a trigger for *words*.

        Raises:
            ValidationError: A word is empty, or not a str.
        """
        if isinstance(words, str):
            raise ValidationError(f"triggers={words!r} must be a list of str")
        encoded = tuple(encode(word) for word in words)
        if not all(encoded):
            raise ValidationError("a trigger must not be empty")
        return cls(encoded, included)

    def begins(self) -> Iterator[bytes]:
        """Return the texts that the grammar must be able to begin with."""
        return iter(self.words if self.included else ())

    def find(self, text: bytes) -> bytes | None:
        """Return the part of *text* that the grammar must match; None: it has no word."""
        found = [(at, word) for word in self.words if (at := text.find(word)) >= 0]
        if not found:
            return None
        at, word = min(found)
        return text[at if self.included else at + len(word) :]

    def begun(self, text: bytes) -> bytes:
        """Return the longest suffix of *text* that is a proper prefix of a word."""
        for n in range(max(map(len, self.words)) - 1, 0, -1):
            end = text[-n:]
            if any(word.startswith(end) for word in self.words):
                return end
        return b""

    def completed_by(self, recent: bytes, tokens: Tokens) -> Iterator[tuple[int, bytes]]:
        """Yield the tokens that complete a word after *recent*, with the result of `find`."""
        ids: set[int] = set()
        for word in self.words:
            ids.update(tokens.containing(word))
            for n in range(1, min(len(recent), len(word) - 1) + 1):
                if recent.endswith(word[:n]):
                    ids.update(tokens.beginning(word[n:]))
        for token in sorted(ids):
            begun = self.find(recent + tokens.pieces[token])
            if begun:
                yield token, begun
