"""Texts after which, or from which on, a grammar holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..binding.model.vocab import encode
from ..errors import ValidationError
from .tokens import Tokens

__all__ = ["Trigger"]


@dataclass(frozen=True)
class Trigger:
    """Words in a text; the first that comes counts.

    Attributes:
        words: UTF-8.
        included: Whether the grammar is about the word too, or only about what follows.
    """

    words: tuple[bytes, ...]
    included: bool

    @classmethod
    def of(cls, words: Sequence[str], *, included: bool) -> Trigger:
        """Make one.

        Raises:
            ValidationError: A word is empty or no text.
        """
        if isinstance(words, str):
            raise ValidationError(f"triggers are a list of texts: [{words!r}]")
        texts = tuple(encode(word) for word in words)
        if not all(texts):
            raise ValidationError("a trigger is empty")
        return cls(texts, included)

    def begins(self) -> Iterator[bytes]:
        """Give what the grammar must be able to begin with."""
        return iter(self.words if self.included else ())

    def find(self, text: bytes) -> bytes | None:
        """Return the part of *text* that the grammar is about; None = no word is in it."""
        found = [(at, word) for word in self.words if (at := text.find(word)) >= 0]
        if not found:
            return None
        at, word = min(found)
        return text[at if self.included else at + len(word) :]

    def begun(self, text: bytes) -> bytes:
        """Return the longest end of *text* with which a word begins."""
        for n in range(max(map(len, self.words)) - 1, 0, -1):
            end = text[-n:]
            if any(word.startswith(end) for word in self.words):
                return end
        return b""

    def completed_by(self, recent: bytes, tokens: Tokens) -> Iterator[tuple[int, bytes]]:
        """Give the tokens that complete a word after *recent*, with what `find` returns then."""
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
