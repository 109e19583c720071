"""Triggers: words, tokens and patterns in the text at which a grammar starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..binding.model.vocab import encode
from ..binding.sampling.triggers import TriggerLike, check_triggers, pattern_start
from .tokens import Tokens

__all__ = ["Trigger"]


@dataclass(frozen=True)
class Trigger:
    """What starts a grammar; the first occurrence counts.

    Attributes:
        words: Words, UTF-8.
        included: Whether the grammar matches from the word on, or only the text after it.
        tokens: Token ids; the grammar matches from the token on.
        patterns: Patterns; the grammar matches from their first group on, or their match.
    """

    words: tuple[bytes, ...]
    included: bool
    tokens: frozenset[int] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def of(cls, triggers: Sequence[TriggerLike], *, included: bool) -> Trigger:
        """Return a trigger for words, token ids and compiled patterns.

        Raises:
            ValidationError: One is empty, or none of these.
        """
        known = check_triggers("triggers", triggers)
        return cls(
            tuple(encode(t) for t in known if isinstance(t, str)),
            included,
            frozenset(t for t in known if isinstance(t, int)),
            tuple(t for t in known if isinstance(t, re.Pattern)),
        )

    def begins(self) -> Iterator[bytes]:
        """Return the texts that the grammar must be able to begin with."""
        return iter(self.words if self.included else ())

    def find(self, text: bytes) -> bytes | None:
        """Return the part of *text* that the grammar must match; None: nothing starts it."""
        found = self._find_word(text)
        if self.patterns and (start := pattern_start(self.patterns, text)) is not None:
            matched = text[start:]
            return matched if found is None else max(found, matched, key=len)
        return found

    def kept(self, text: bytes) -> bytes:
        """Return the end of *text* in which a trigger may have begun; patterns need all of it."""
        return text if self.patterns else self.begun(text)

    def begun(self, text: bytes) -> bytes:
        """Return the longest suffix of *text* that is a proper prefix of a word."""
        for n in range(max(map(len, self.words), default=1) - 1, 0, -1):
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
            begun = self._find_word(recent + tokens.pieces[token])
            if begun:
                yield token, begun

    def _find_word(self, text: bytes) -> bytes | None:
        found = [(at, word) for word in self.words if (at := text.find(word)) >= 0]
        if not found:
            return None
        at, word = min(found)
        return text[at if self.included else at + len(word) :]
