"""Draft models. They are accepted and not asked yet: the text is the same, only not faster."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LlamaDraftModel", "LlamaPromptLookupDecoding"]


class LlamaDraftModel(abc.ABC):
    """Guesses the next tokens."""

    @abc.abstractmethod
    def __call__(self, input_ids: NDArray[np.int32], /, **kwargs: Any) -> NDArray[np.int32]:
        """Return a guess of the tokens after *input_ids*: (n,) int32, n may be 0."""


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Guesses what followed the last tokens where they stood before.

    https://github.com/apoorvumang/prompt-lookup-decoding

    Args:
        max_ngram_size: Most tokens that are looked for; the longest that is found counts.
        num_pred_tokens: Most tokens to guess.
    """

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        self.max_ngram_size, self.num_pred_tokens = max_ngram_size, num_pred_tokens

    def __call__(self, input_ids: NDArray[np.int32], /, **kwargs: Any) -> NDArray[np.int32]:
        """Return what followed the first place with the same tokens."""
        import numpy as np

        n = len(input_ids)
        for size in range(min(self.max_ngram_size, n - 1), 0, -1):
            before = np.lib.stride_tricks.sliding_window_view(input_ids[:-1], size)
            (found,) = np.nonzero((before == input_ids[n - size :]).all(axis=1))
            if len(found):
                start = int(found[0]) + size
                return np.asarray(input_ids[start : start + self.num_pred_tokens], np.int32)
        return np.empty(0, np.int32)
