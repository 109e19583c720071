"""Draft models. They are accepted but not used yet: the output is the same, only not faster."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LlamaDraftModel", "LlamaPromptLookupDecoding"]


class LlamaDraftModel(abc.ABC):
    """Drafts the next tokens."""

    @abc.abstractmethod
    def __call__(self, input_ids: NDArray[np.int32], /, **kwargs: object) -> NDArray[np.int32]:
        """Return draft tokens after *input_ids*, both (n,) int32; n may be 0."""


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Drafts the tokens that followed an earlier occurrence of the last ones.

    https://github.com/apoorvumang/prompt-lookup-decoding

    Args:
        max_ngram_size: Maximum number of last tokens to search for; the longest match is used.
        num_pred_tokens: Maximum number of draft tokens.
    """

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        self.max_ngram_size, self.num_pred_tokens = max_ngram_size, num_pred_tokens

    @staticmethod
    def find_candidate_pred_tokens(
        input_ids: NDArray[np.int32], max_ngram_size: int, num_pred_tokens: int
    ) -> NDArray[np.int32]:
        """Return the tokens after the first match: (n,) int32; the arguments are the class's."""
        import numpy as np

        n = len(input_ids)
        for size in range(min(max_ngram_size, n - 1), 0, -1):
            before = np.lib.stride_tricks.sliding_window_view(input_ids[:-1], size)
            (found,) = np.nonzero((before == input_ids[n - size :]).all(axis=1))
            if len(found):
                start = int(found[0]) + size
                return np.asarray(input_ids[start : start + num_pred_tokens], np.int32)
        return np.empty(0, np.int32)

    def __call__(self, input_ids: NDArray[np.int32], /, **kwargs: object) -> NDArray[np.int32]:
        """Return the tokens after the first match: (n,) int32."""
        return self.find_candidate_pred_tokens(input_ids, self.max_ngram_size, self.num_pred_tokens)
