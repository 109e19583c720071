"""Completions that echo the prompt with its log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..generation.text import CharacterOffsets

if TYPE_CHECKING:
    from ..binding import Vocab
    from ..generation.logprobs import Logprob
    from .types import CompletionLogprobs, CreateCompletionResponse

__all__ = ["prepend", "prompt_logprobs"]


def prompt_logprobs(
    vocab: Vocab, tokens: Sequence[int], scores: Sequence[Logprob]
) -> CompletionLogprobs:
    """Return the log-probabilities of a prompt as OpenAI's.

    Args:
        vocab: The model's.
        tokens: The tokens of the prompt; BOS is left out.
        scores: Those of each token but the first.
    """
    scored = list(_scored(vocab, tokens, scores))
    return {
        "text_offset": [s[0] for s in scored],
        "tokens": [s[1] for s in scored],
        "token_logprobs": [s[2] for s in scored],
        "top_logprobs": [s[3] for s in scored],
    }


def prepend(answer: CreateCompletionResponse, prompt: str, echo: CompletionLogprobs) -> None:
    """Put the prompt and its log-probabilities before each choice.

    Args:
        answer: Made without echo, with log-probabilities; it is changed.
        prompt: The prompt.
        echo: Its log-probabilities.
    """
    for choice in answer["choices"]:
        choice["text"] = prompt + choice["text"]
        if (found := choice["logprobs"]) is not None:
            offsets = found["text_offset"]  # they begin with the length of the detokenized prompt
            shift = len(prompt) - min(offsets, default=0)
            choice["logprobs"] = {
                "text_offset": [*echo["text_offset"], *(n + shift for n in offsets)],
                "tokens": [*echo["tokens"], *found["tokens"]],
                "token_logprobs": [*echo["token_logprobs"], *found["token_logprobs"]],
                "top_logprobs": [*echo["top_logprobs"], *found["top_logprobs"]],
            }


def _scored(
    vocab: Vocab, tokens: Sequence[int], scores: Sequence[Logprob]
) -> Iterator[tuple[int, str, float | None, dict[str, float] | None]]:
    """Yield offset, token, log-probability and the most probable tokens, as OpenAI names them."""
    first = int(len(tokens) > 1 and tokens[0] == vocab.bos)
    has_space = vocab.adds_space and vocab.token_to_piece(tokens[first]).startswith(b" ")
    offsets = CharacterOffsets(-1 if has_space else 0)  # the tokenizer's space is not in the prompt
    for i, token in enumerate(tokens[first:], first):
        piece = vocab.token_to_piece(token, True)
        offset, text = max(0, offsets.push(piece)), piece.decode("utf-8", "replace")
        if i == 0:
            yield offset, text, None, None
        else:
            found = scores[i - 1]
            top = {vocab.detokenize([t], True, keep_space=True): value for t, value in found.top}
            yield offset, text, found.logprob, {**top, text: found.logprob}
