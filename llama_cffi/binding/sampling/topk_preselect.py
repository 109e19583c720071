"""Which few tokens a sampler chain can choose, found by numpy before C sorts the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from .candidates import check_logits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Preselection"]

_BLOCK = 64  # measured: 16 to 128 cost the same within a fifth
_MAX_BIASED = 256  # C searches all biased tokens for each candidate


class _Reach(Enum):
    OPEN = auto()  # all samplers so far lower logits, or change known ones
    CUT = auto()  # then came top-k: the rest sees its k tokens only
    BEST = auto()  # then came greedy, at the end
    WHOLE = auto()  # some sampler looks at the whole vocabulary


class Preselection:
    """Decides as samplers are added whether the chain needs the whole vocabulary.

    Say the chain begins with samplers that can only lower logits, or set those of known tokens,
    and then keeps the k largest. When *m* tokens were lowered or set, the k largest afterwards
    are among the k + m largest before, and the tokens that were set. This holds for ties too, as
    all tokens that equal the smallest of those are taken; which of equal ones C keeps or puts
    first is as undefined as it is for the whole vocabulary.

    Attributes:
        is_argmax: Whether the chain takes the largest logit and changes none.
    """

    def __init__(self, n_vocab: int) -> None:
        self._n_blocks = n_vocab // _BLOCK
        self._n_vocab = n_vocab
        self._reach = _Reach.OPEN
        self._window = 0  # tokens that may have been lowered at most
        self._biased: set[int] = set()
        self._cut = 0  # how many the sampler after those keeps
        self._left = n_vocab
        self.is_argmax = False
        self._room: list[NDArray[Any]] = []

    @property
    def n_left(self) -> int:
        """Candidates that are left after the samplers so far, at most."""
        return self._left

    def lowers(self, window: int) -> None:
        """Add a sampler that lowers tokens among the last *window* accepted."""
        if self._is_open():
            self._window += window

    def biases(self, tokens: Iterable[int]) -> None:
        """Add a sampler that changes the logits of *tokens*."""
        if self._is_open():
            self._biased.update(tokens)

    def keeps(self, k: int) -> None:
        """Add a sampler that keeps the k largest logits."""
        if self._is_open():
            self._reach, self._cut = _Reach.CUT, k
        self._left = min(self._left, k)

    def takes_best(self) -> None:
        """Add a sampler that selects the largest logit, the first of equal ones."""
        if self._is_open():
            self._reach, self._cut = _Reach.BEST, 1
            self.is_argmax = not self._window and not self._biased

    def changes(self) -> None:
        """Add any other sampler."""
        if self._is_open():
            self._reach = _Reach.WHOLE

    def ids(self, logits: NDArray[np.float32], n_accepted: int) -> NDArray[Any] | None:
        """Return the tokens that the chain can choose, ascending; None = hand C all of them.

        Args:
            logits: Shape (n_vocab,).
            n_accepted: Tokens that the chain has accepted since it was reset.

        Raises:
            GenerationError: The logits contain NaN or +inf, or all are -inf.
        """
        import numpy as np

        k = self._cut + len(self._biased) + min(n_accepted, self._window)
        n = self._n_blocks
        whole = self._reach in (_Reach.OPEN, _Reach.WHOLE)
        if whole or k > n // 2 or len(self._biased) > _MAX_BIASED:
            check_logits(float(logits.max()))
            return None
        if not self._room:
            self._room = [np.empty(n, np.float32), np.empty(self._n_vocab, np.bool_)]
        maxima, mask = self._room
        # Of each block the largest; the k-th of them is no larger than the k-th logit.
        logits[: n * _BLOCK].reshape(_BLOCK, n).max(axis=0, out=maxima)
        maxima.partition((n - k, n - 1))
        largest = float(maxima[-1])  # of NaN, where there is one
        if n * _BLOCK < self._n_vocab:
            rest = float(logits[n * _BLOCK :].max())
            if rest > largest or rest != rest:
                largest = rest
        check_logits(largest)
        np.greater_equal(logits, maxima[n - k], out=mask)
        if self._biased:
            mask[list(self._biased)] = True
        return mask.nonzero()[0]

    def _is_open(self) -> bool:
        """Whether the next sampler sees the vocabulary; greedy before it would let it."""
        if self._reach is _Reach.BEST:
            self._reach, self.is_argmax = _Reach.WHOLE, False
        return self._reach is _Reach.OPEN
