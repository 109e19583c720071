"""Find the few tokens that a sampler chain can choose, before C sorts the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from ..logits import check_logits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Preselection"]

_BLOCK = 64  # measured: 16 to 128 take the same time within a fifth
_MAX_BIASED = 256  # C searches all biased tokens for each candidate


class _Scope(Enum):
    OPEN = auto()  # all samplers so far lower logits, or change those of known tokens
    TOP_K = auto()  # then came top-k: the rest sees only its k tokens
    GREEDY = auto()  # then came greedy, at the end
    WHOLE = auto()  # some sampler needs the whole vocabulary


class Preselection:
    """Tracks, as samplers are added, whether the chain needs the whole vocabulary.

    Suppose the chain starts with samplers that can only lower logits, or set those of known
    tokens, and then keeps the k largest. If *m* tokens were lowered or set, the k largest
    afterwards are among the k + m largest before and the tokens that were set. This also holds
    for ties, because all tokens equal to the smallest of those are included. Which of equal
    tokens C keeps or puts first is as undefined as for the whole vocabulary.

    Attributes:
        is_argmax: Whether the chain takes the largest logit and changes none.
    """

    def __init__(self, n_vocab: int) -> None:
        self._n_blocks = n_vocab // _BLOCK
        self._n_vocab = n_vocab
        self._scope = _Scope.OPEN
        self._window = 0  # most tokens that may have been lowered
        self._biased: set[int] = set()
        self._k = 0  # tokens that the sampler after those keeps
        self._left = n_vocab
        self.is_argmax = False
        self._buffers: list[NDArray[Any]] = []

    @property
    def n_left(self) -> int:
        """Most candidates that are left after the samplers so far."""
        return self._left

    def add_penalty(self, window: int) -> None:
        """Add a sampler that lowers tokens among the last *window* accepted."""
        if self._is_open():
            self._window += window

    def add_bias(self, tokens: Iterable[int]) -> None:
        """Add a sampler that changes the logits of *tokens*."""
        if self._is_open():
            self._biased.update(tokens)

    def add_top_k(self, k: int) -> None:
        """Add a sampler that keeps the k largest logits."""
        if self._is_open():
            self._scope, self._k = _Scope.TOP_K, k
        self._left = min(self._left, k)

    def add_greedy(self) -> None:
        """Add a sampler that selects the largest logit, the first of equal ones."""
        if self._is_open():
            self._scope, self._k = _Scope.GREEDY, 1
            self.is_argmax = not self._window and not self._biased

    def add_other(self) -> None:
        """Add any other sampler."""
        if self._is_open():
            self._scope = _Scope.WHOLE

    def ids(self, logits: NDArray[np.float32], n_accepted: int) -> NDArray[np.intp] | None:
        """Return the tokens that the chain can choose, ascending; None = pass all of them to C.

        Args:
            logits: Shape (n_vocab,).
            n_accepted: Tokens that the chain has accepted since its reset.

        Raises:
            GenerationError: The logits contain NaN or +inf, or all are -inf.
        """
        import numpy as np

        k = self._k + len(self._biased) + min(n_accepted, self._window)
        n = self._n_blocks
        whole = self._scope in (_Scope.OPEN, _Scope.WHOLE)
        if whole or k > n // 2 or len(self._biased) > _MAX_BIASED:
            check_logits(float(logits.max()))
            return None
        if not self._buffers:
            self._buffers = [np.empty(n, np.float32), np.empty(self._n_vocab, np.bool_)]
        maxima, mask = self._buffers
        # The maximum of each block. The k-th largest of them is at most the k-th largest logit.
        logits[: n * _BLOCK].reshape(_BLOCK, n).max(axis=0, out=maxima)
        maxima.partition((n - k, n - 1))
        largest = float(maxima[-1])  # NaN if there is one
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
        """Whether the next sampler sees the whole vocabulary, which greedy leaves as it is."""
        if self._scope is _Scope.GREEDY:
            self._scope, self.is_argmax = _Scope.WHOLE, False
        return self._scope is _Scope.OPEN
