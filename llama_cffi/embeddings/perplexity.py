"""Perplexity in chunks, and the divergence from another model, as llama-perplexity computes them.

The text is cut into chunks of *n_ctx* tokens, each beginning with BOS where the model adds it. Only
the second half of a chunk is scored, so that every token has at least half a chunk of context.

The log-probabilities of a base model are kept in an `.npz` file, 16 bits each:

    tokens           int32 (n_chunks, n_ctx): the chunks
    logprobs_00000   uint16 (n_ctx - n_ctx // 2 - 1, n_vocab): those of chunk 0, and so on
    range_00000      float32 (rows, 2): low and step; a log-probability is low + step * value

As in llama.cpp's own file, those more than 16 below the largest of a row count as 16 below.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..atomic_files import replacing
from ..errors import ValidationError
from ..validation import check_int

if TYPE_CHECKING:
    from .scorer import Scorer

__all__ = [
    "Base",
    "BaseWriter",
    "Divergence",
    "DivergenceStatistics",
    "Estimate",
    "chunk_logprobs",
    "chunks_of",
    "estimate",
    "percentiles",
    "perplexity_of",
    "targets_of",
    "writing_base",
]

_RANGE = 16.0
_STEPS = 65535


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens.

    Attributes:
        value: The mean.
        error: Its standard error; 0 for one token.
    """

    value: float
    error: float


def chunks_of(scorer: Scorer, text: str, n_chunks: int | None = None) -> list[list[int]]:
    """Return the chunks of *text*, of `scorer.n_ctx` tokens each; a shorter rest is left out.

    Args:
        scorer: The scorer.
        text: The text.
        n_chunks: Most chunks; None: all.

    Raises:
        ValidationError: The text is shorter than a chunk.
    """
    vocab, n_ctx = scorer.model.vocab, check_int("n_ctx", scorer.n_ctx, 4)
    tokens = vocab.tokenize(text)
    if vocab.add_eos and tokens[-1:] == [vocab.eos]:
        tokens = tokens[:-1]
    found = [tokens[i : i + n_ctx] for i in range(0, len(tokens) - n_ctx + 1, n_ctx)][:n_chunks]
    if not found:
        raise ValidationError(
            f"the text has {len(tokens)} tokens, fewer than a chunk of {n_ctx}; give a longer "
            "text, or a smaller context size"
        )
    if vocab.add_bos and vocab.bos is not None:
        for chunk in found:
            chunk[0] = vocab.bos
    return found


def _first(n_ctx: int) -> int:
    """Return the index of the first position of a chunk whose prediction is scored."""
    return n_ctx // 2


def chunk_logprobs(scorer: Scorer, chunk: Sequence[int]) -> NDArray[np.float32]:
    """Return the log-probabilities of all tokens at each scored position of a chunk.

    Shapes: (n_ctx - n_ctx // 2 - 1, n_vocab) float32.
    """
    first = _first(len(chunk))
    found = np.empty((len(chunk) - first - 1, len(scorer.model.vocab)), np.float32)
    for i, logits in enumerate(scorer.logits(chunk[:-1], first)):
        top = float(logits.max())
        found[i] = logits - (top + math.log(np.exp(logits - top).sum(dtype=np.float64)))
    return found


def targets_of(chunk: Sequence[int]) -> NDArray[np.int64]:
    """Return the tokens of a chunk that are scored."""
    return np.array(chunk[_first(len(chunk)) + 1 :], np.int64)


def estimate(values: NDArray[np.float64]) -> Estimate:
    """Return the mean of *values* and its standard error."""
    n = len(values)
    variance = max(0.0, float(np.mean(values**2)) - float(np.mean(values)) ** 2)
    return Estimate(float(np.mean(values)), math.sqrt(variance / (n - 1)) if n > 1 else 0.0)


def perplexity_of(nll: NDArray[np.float64]) -> Estimate:
    """Return the perplexity of tokens with these negative log-probabilities."""
    mean = estimate(nll)
    return Estimate(math.exp(mean.value), math.exp(mean.value) * mean.error)


class BaseWriter:
    """Writes the log-probabilities of a base model, chunk by chunk."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive, self._n = archive, 0

    def add(self, logprobs: NDArray[np.float32]) -> None:
        """Add those of the next chunk."""
        high = logprobs.max(1)
        low = np.maximum(logprobs.min(1), high - _RANGE)
        step = np.maximum((high - low) / _STEPS, np.float32(1e-12))
        scaled = np.rint((logprobs - low[:, None]) / step[:, None])
        self.put(f"logprobs_{self._n:05d}", np.clip(scaled, 0, _STEPS).astype(np.uint16))
        self.put(f"range_{self._n:05d}", np.stack([low, step], 1).astype(np.float32))
        self._n += 1

    def put(self, name: str, array: NDArray[np.generic]) -> None:
        """Add an array."""
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


@contextmanager
def writing_base(path: Path, chunks: Sequence[Sequence[int]]) -> Iterator[BaseWriter]:
    """Provide a writer of a base file, which appears when the block ends without an error.

    Raises:
        ValidationError: The file cannot be written.
    """
    try:
        with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            writer = BaseWriter(archive)
            writer.put("tokens", np.array(chunks, np.int32))
            yield writer
    except OSError as e:
        raise ValidationError(f"cannot write {path}: {e.strerror or e}") from None


class Base:
    """The log-probabilities of a base model, read from its file chunk by chunk.

    Args:
        path: The file.

    Attributes:
        chunks: The tokens of the chunks: (n_chunks, n_ctx).
        n_vocab: Number of tokens of its vocabulary.

    Raises:
        ValidationError: It is missing, or no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = np.load(path, allow_pickle=False)
            self.chunks: list[list[int]] = self._file["tokens"].tolist()
            self.n_vocab = int(self._file["logprobs_00000"].shape[1])
        except OSError as e:
            raise ValidationError(
                f"cannot read {path}: {e.strerror or e}; write it first, without the option that "
                "compares with it"
            ) from None
        except (KeyError, IndexError, ValueError, AttributeError, zipfile.BadZipFile):
            raise ValidationError(
                f"{path} is not a file of log-probabilities; write one with a base model first"
            ) from None

    def logprobs(self, i: int) -> NDArray[np.float32]:
        """Return those of chunk *i*: (rows, n_vocab) float32."""
        try:
            values, span = self._file[f"logprobs_{i:05d}"], self._file[f"range_{i:05d}"]
        except (KeyError, ValueError, zipfile.BadZipFile):
            raise ValidationError(f"{self._path} is damaged at chunk {i}; write it again") from None
        return np.asarray(span[:, :1] + values * span[:, 1:], np.float32)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Divergence:
    """How a model's predictions differ from those of a base model, token by token."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.float64]] = []

    def add(
        self,
        logprobs: NDArray[np.float32],
        base: NDArray[np.float32],
        targets: NDArray[np.int64],
    ) -> None:
        """Add the positions of a chunk: (rows, n_vocab) of both models, and the tokens there."""
        rows = np.arange(len(targets))
        own, others = (x[rows, targets].astype(np.float64) for x in (logprobs, base))
        kld = (np.exp(base) * (base - logprobs)).sum(1, dtype=np.float64)
        same = logprobs.argmax(1) == base.argmax(1)
        self._parts.append(np.stack([kld, np.exp(own) - np.exp(others), -own, -others, same]))

    def statistics(self) -> DivergenceStatistics:
        """Return the values of all positions."""
        return DivergenceStatistics(*np.concatenate(self._parts, 1))


@dataclass(frozen=True)
class DivergenceStatistics:
    """One value for each position.

    Attributes:
        kld: Kullback-Leibler divergence: the sum of p_base ln(p_base / p).
        dp: p - p_base of the token that is there.
        nll: Negative log-probability of this token.
        nll_base: The same by the base model.
        same_top: 1 where both models find the same token the most probable, else 0.
    """

    kld: NDArray[np.float64]
    dp: NDArray[np.float64]
    nll: NDArray[np.float64]
    nll_base: NDArray[np.float64]
    same_top: NDArray[np.float64]


def percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    """Return maximum, percentiles and minimum of *values*, under llama-perplexity's names."""
    names = {
        "Maximum": 100, "99.9%": 99.9, "99.0%": 99, "95.0%": 95, "90.0%": 90, "Median": 50,
        "10.0%": 10, "5.0%": 5, "1.0%": 1, "0.1%": 0.1, "Minimum": 0,
    }  # fmt: skip
    return {name: float(np.percentile(values, at)) for name, at in names.items()}
