"""The log-probabilities of an echoed prompt, before those of its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..generation.logprobs import logprob

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..binding import Vocab

__all__ = ["prepend"]


def prepend(
    answer: Any, vocab: Vocab, prompt: str, tokens: Sequence[int], rows: NDArray[np.float32], n: int
) -> Any:
    """Put the prompt and its log-probabilities before those of each answer.

    Args:
        answer: From `create_completion`, without echo.
        vocab: The model's.
        prompt: The text.
        tokens: Its tokens; a BOS is left out. Nothing is known of the first one.
        rows: (len(tokens), n_vocab); row i is of what follows token i.
        n: So many of the most probable tokens in each place.
    """
    head = list(_scored(vocab, tokens, rows, n))
    offsets, texts, values, tops = [list(column) for column in zip(*head, strict=True)]
    for choice in answer["choices"]:
        found = choice["logprobs"]
        choice["text"] = prompt + choice["text"]
        choice["logprobs"] = {
            "text_offset": offsets + [len(prompt) + offset for offset in found["text_offset"]],
            "tokens": texts + found["tokens"],
            "token_logprobs": values + found["token_logprobs"],
            "top_logprobs": tops + found["top_logprobs"],
        }
    return answer


def _scored(
    vocab: Vocab, tokens: Sequence[int], rows: NDArray[np.float32], n: int
) -> Iterator[tuple[int, str, float | None, dict[str, float] | None]]:
    offset = 0
    for i, token in enumerate(tokens):
        if i == 0 and token == vocab.bos and len(tokens) > 1:
            continue
        text = vocab.detokenize([token], True)
        if i == 0:
            yield offset, text, None, None
        else:
            found = logprob(rows[i - 1], token, n)
            top = {vocab.detokenize([t], True): value for t, value in found.top}
            yield offset, text, found.logprob, {**top, text: found.logprob}
        offset += len(text)
