"""WordPiece as BERT models were trained with it.

llama.cpp's own (`Vocab.tokenize`) reduces each Hangul syllable to its first letter and drops the
vowel signs of Indic scripts; builds before 2025 keep standalone accents.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..binding.model.vocab import encode

if TYPE_CHECKING:
    from ..binding.model.model import Model

__all__ = ["WordPiece"]

_WORD = "\u2581"  # prefix of words in llama.cpp's spelling
_LONGEST_WORD = 100  # characters; longer words become the unknown token
_UNKNOWN = 100  # llama.cpp's id of the unknown token if the file has none
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPiece:
    """The tokenizer of a model whose vocabulary is of type `wpm`.

    Args:
        model: The model; reading its vocabulary takes about 2 us per token.
    """

    def __init__(self, model: Model) -> None:
        values, vocab = model.gguf.values, model.vocab
        lowercase = values.get("tokenizer.ggml.normalizer.lowercase")
        accents = values.get("tokenizer.ggml.normalizer.strip_accents")
        self._lowercase = lowercase is not False
        self._strip_accents = self._lowercase if accents is None else bool(accents)
        unknown = values.get("tokenizer.ggml.unknown_token_id")
        self._unknown = unknown if isinstance(unknown, int) else _UNKNOWN
        self._ids = {vocab.text(token): token for token in reversed(range(vocab.n_tokens))}
        self._longest = max(map(len, self._ids))
        self._around = vocab.tokenize("")

    def tokenize(self, text: str | bytes, add_special: bool = True) -> list[int]:
        """Turn text into token ids; names of special tokens are not parsed.

        Args:
            text: UTF-8; a str with lone surrogates is refused.
            add_special: Add CLS at the start and SEP at the end.

        Raises:
            ValidationError: The text is invalid.
        """
        words = self._words(encode(text).decode("utf-8"))
        tokens = [token for word in words for token in self._pieces(word)]
        return [*self._around[:1], *tokens, *self._around[1:]] if add_special else tokens

    def _words(self, text: str) -> Iterator[str]:
        """Yield words; punctuation marks and ideographs are words of their own."""
        spaced = "".join(map(_clean, text))
        if self._strip_accents:
            spaced = unicodedata.normalize("NFD", spaced)
            spaced = "".join(c for c in spaced if unicodedata.category(c) != "Mn")
        if self._lowercase:  # character by character, so without the final sigma
            spaced = "".join(map(str.lower, spaced))
        for run in spaced.split():
            word = ""
            for c in run:
                if not _is_punctuation(c):
                    word += c
                    continue
                if word:
                    yield word
                yield c
                word = ""
            if word:
                yield word

    def _pieces(self, word: str) -> list[int]:
        """Return the longest known pieces from left to right, or the unknown token."""
        if len(word) > _LONGEST_WORD:
            return [self._unknown]
        tokens, rest = [], _WORD + word
        while rest:
            for n in range(min(len(rest), self._longest), 0, -1):
                token = self._ids.get(rest[:n])
                if token is not None:
                    break
            else:
                return [self._unknown]
            tokens.append(token)
            rest = rest[n:]
        return tokens


def _clean(c: str) -> str:
    """Return a character, an ideograph between spaces, or nothing for an invisible one."""
    category = unicodedata.category(c)
    if c in "\t\n\r" or (c.isspace() and category != "Cc"):
        return " "
    if c == "\ufffd" or category in ("Cc", "Cf", "Co"):
        return ""
    return f" {c} " if any(low <= ord(c) <= high for low, high in _IDEOGRAPHS) else c


def _is_punctuation(c: str) -> bool:
    if c.isascii():
        return c.isprintable() and not c.isalnum() and c != " "
    return unicodedata.category(c).startswith("P")
