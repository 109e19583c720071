"""NgramCache: which tokens followed which n-grams in earlier answers."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError
from ..validation import INT32_MAX, as_path, check_int

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NgramCache"]

_FORMAT = 1
_Followers = dict[int, int]  # token -> how often it followed


class NgramCache:
    """Counts which token followed which n-gram, to draft tokens for `PromptLookup`.

    It outlives engines and processes: `save` and `load` it, and `merge` those of several. Several
    engines may share one. Token ids mean something only with one vocabulary, so keep a cache for
    each family of models.

    Args:
        n_gram: Longest n-gram; a longer match wins.
        n_gram_min: Shortest n-gram.
        max_ngrams: Most n-grams to keep; the oldest are dropped.

    Raises:
        ValidationError: A number is out of range.
    Source: lookup decoding, https://arxiv.org/abs/2304.04487 and llama.cpp's `lookup` example.
    """

    def __init__(self, n_gram: int = 4, n_gram_min: int = 2, max_ngrams: int = 1_000_000) -> None:
        self.n_gram_min = check_int("n_gram_min", n_gram_min, 1, 16)
        self.n_gram = check_int("n_gram", n_gram, self.n_gram_min, 16)
        self.max_ngrams = check_int("max_ngrams", max_ngrams, 1)
        self._followers: dict[tuple[int, ...], _Followers] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of n-grams."""
        return len(self._followers)

    def update(self, tokens: Sequence[int], n_new: int | None = None) -> None:
        """Count what followed the n-grams of a text.

        Args:
            tokens: Token ids; n-grams with a negative one, such as a part of an image, are left
                out.
            n_new: Only the last tokens are new; None: all are.

        Raises:
            ValidationError: A token is not an integer, or n_new is out of range.
        """
        known = [check_int("a token", token, -INT32_MAX) for token in tokens]
        n_new = len(known) if n_new is None else check_int("n_new", n_new, 0)
        first = max(len(known) - n_new, self.n_gram_min)
        with self._lock:
            for at in range(first, len(known)):
                for size in range(self.n_gram_min, min(self.n_gram, at) + 1):
                    ngram = tuple(known[at - size : at])
                    if known[at] >= 0 and min(ngram) >= 0:
                        self._count(ngram, known[at], 1)
            self._shrink()

    def draft(self, tokens: Sequence[int], n_draft: int) -> list[int]:
        """Return up to *n_draft* tokens that probably follow *tokens*.

        Each followed the longest known n-gram more often than all others together.

        Raises:
            ValidationError: n_draft is negative.
        """
        n_draft = check_int("n_draft", n_draft, 0)
        recent, drafted = [*tokens[-self.n_gram :]], list[int]()
        with self._lock:
            while len(drafted) < n_draft:
                token = self._next(recent)
                if token is None:
                    break
                drafted.append(token)
                recent = [*recent, token][-self.n_gram :]
        return drafted

    def merge(self, other: NgramCache) -> None:
        """Add the counts of another cache.

        Raises:
            ValidationError: It is not an `NgramCache`.
        """
        if not isinstance(other, NgramCache):
            raise ValidationError(f"merge needs another NgramCache, got {other!r}")
        entries = other._entries()
        with self._lock:
            for ngram, token, count in entries:
                if self.n_gram_min <= len(ngram) <= self.n_gram:
                    self._count(ngram, token, count)
            self._shrink()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cache to a file, in one piece: a reader sees the old one or the new one.

        Raises:
            OSError: The file cannot be written.
            ValidationError: *path* is not a path.
        """
        import numpy as np

        entries = self._entries()
        ngrams = np.full((len(entries), self.n_gram), -1, np.int32)
        for row, (ngram, _, _) in zip(ngrams, entries, strict=True):
            row[: len(ngram)] = ngram
        target = as_path("path", path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                np.savez_compressed(
                    file,
                    format=np.int64(_FORMAT),
                    limits=np.array([self.n_gram_min, self.n_gram, self.max_ngrams], np.int64),
                    ngrams=ngrams,
                    tokens=np.array([token for _, token, _ in entries], np.int32),
                    counts=np.array([count for _, _, count in entries], np.int64),
                )
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a cache that `save` wrote.

        Raises:
            OSError: The file cannot be read.
            ValidationError: It is not such a file, or damaged.
        """
        source = as_path("path", path)
        limits, ngrams, tokens, counts = _read(source)
        cache = cls(int(limits[1]), int(limits[0]), int(limits[2]))
        for row, token, count in zip(
            ngrams.tolist(), tokens.tolist(), counts.tolist(), strict=True
        ):
            ngram = tuple(t for t in row if t >= 0)
            if len(ngram) < cache.n_gram_min or token < 0 or count < 1:
                raise _damaged(source)
            cache._count(ngram, token, count)
        cache._shrink()
        return cache

    def _entries(self) -> list[tuple[tuple[int, ...], int, int]]:
        with self._lock:
            return [
                (ngram, token, count)
                for ngram, followers in self._followers.items()
                for token, count in followers.items()
            ]

    def _count(self, ngram: tuple[int, ...], token: int, count: int) -> None:
        followers = self._followers.setdefault(ngram, {})
        followers[token] = followers.get(token, 0) + count

    def _next(self, recent: Sequence[int]) -> int | None:
        for size in range(min(self.n_gram, len(recent)), self.n_gram_min - 1, -1):
            followers = self._followers.get(tuple(recent[-size:]))
            if followers:
                token = max(followers, key=followers.__getitem__)
                if 2 * followers[token] > sum(followers.values()):
                    return token
        return None

    def _shrink(self) -> None:
        while len(self._followers) > self.max_ngrams:
            del self._followers[next(iter(self._followers))]

    def __repr__(self) -> str:
        return f"<NgramCache of {len(self)} n-grams>"


def _read(source: Path) -> tuple[Any, Any, Any, Any]:
    """Return the arrays of a file, of the right shapes and types."""
    import numpy as np

    content = io.BytesIO(source.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as data:
            number = int(data["format"])
            limits, ngrams, tokens, counts = (
                data[name] for name in ("limits", "ngrams", "tokens", "counts")
            )
        n = len(tokens)
        shapes = (3,), (n, int(limits[1])), (n,), (n,)
        fits = all(
            array.dtype.kind == "i" and array.shape == shape
            for array, shape in zip((limits, ngrams, tokens, counts), shapes, strict=True)
        )
    except Exception as e:  # numpy and zipfile raise many kinds
        raise _damaged(source) from e
    if number != _FORMAT:
        raise ValidationError(f"{source} has format {number}; this version reads {_FORMAT}")
    if not fits:
        raise _damaged(source)
    return limits, ngrams, tokens, counts


def _damaged(source: Path) -> ValidationError:
    return ValidationError(f"{source} is not a cache that NgramCache.save wrote, or is damaged")
