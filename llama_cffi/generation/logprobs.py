"""Log-probabilities from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Logprob", "log_softmax", "logprob", "sampled_logprob"]


class Logprob(NamedTuple):
    """The log-probability of a token, and the most probable alternatives."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def log_softmax(logits: NDArray[np.float32], tokens: Sequence[int]) -> list[float]:
    """Return the log-probabilities of *tokens*, without copying all logits.

    Args:
        logits: Shape (n_vocab,) float32.
        tokens: Token ids.
    """
    import numpy as np

    top = float(logits.max())
    total = top + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
    return [float(logits[token]) - total for token in tokens]


def logprob(logits: NDArray[np.float32], token: int, n: int) -> Logprob:
    """Return the log-probability of *token* and of the *n* most probable tokens.

    Args:
        logits: Shape (n_vocab,) float32.
        token: Token id.
        n: Number of alternatives, 0 or more.
    """
    import numpy as np

    best: list[int] = []
    if n:
        found = np.argpartition(-logits, min(n, len(logits) - 1))[:n]
        best = found[np.argsort(-logits[found], kind="stable")].tolist()
    own, *others = log_softmax(logits, [token, *best])
    return Logprob(token, own, list(zip(best, others, strict=True)))


def sampled_logprob(candidates: NDArray[np.void] | None, token: int, n: int) -> Logprob:
    """Return the log-probabilities with which a token was drawn, without those of 0.

    Args:
        candidates: Those that the samplers left, with the fields `id` and `logit`; None: nothing
            was drawn, as the token was the only choice.
        token: The token that was drawn.
        n: Most alternatives, 0 or more.
    """
    if candidates is None:
        return Logprob(token, 0.0, [(token, 0.0)][:n])
    scores = log_softmax(candidates["logit"], range(len(candidates)))
    by_token = dict(zip(candidates["id"].tolist(), scores, strict=True))
    best = sorted(by_token.items(), key=lambda pair: -pair[1])[:n]
    return Logprob(token, by_token[token], [pair for pair in best if math.exp(pair[1]) > 0])
