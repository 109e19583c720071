"""The log-probabilities in an answer, whichever of OpenAI's shapes it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..errors import ValidationError

if TYPE_CHECKING:
    from ..api.types import (
        ChatCompletionResponseChoice,
        CompletionChoice,
        CreateChatCompletionResponse,
        CreateCompletionResponse,
    )

    AnswerWithLogprobs: TypeAlias = (
        CreateCompletionResponse
        | CreateChatCompletionResponse
        | CompletionChoice
        | ChatCompletionResponseChoice
    )

__all__ = ["TokenLogprob", "token_logprobs", "visible"]

_MARKS = {" ": "·", "\n": "⏎", "\t": "⇥"}


class TokenLogprob(NamedTuple):
    """A token of an answer, and the most probable ones in its place, with log-probabilities.

    The log-probability is None for the first token of an echoed prompt.
    """

    text: str
    logprob: float | None
    top: list[tuple[str, float]]


def token_logprobs(answer: AnswerWithLogprobs) -> list[TokenLogprob]:
    """Return the tokens of an answer.

    Args:
        answer: A response of a completion or a chat completion, or a choice of one.

    Raises:
        ValidationError: It has no log-probabilities, or is something else.
    """
    found: Any = answer
    if isinstance(found, Mapping) and found.get("choices"):
        found = found["choices"][0]
    if isinstance(found, Mapping):
        found = found.get("logprobs")
    if isinstance(found, Mapping) and isinstance(found.get("content"), Sequence):
        return [
            TokenLogprob(
                entry["token"],
                entry["logprob"],
                [(other["token"], other["logprob"]) for other in entry["top_logprobs"]],
            )
            for entry in found["content"]
        ]
    if isinstance(found, Mapping) and isinstance(found.get("tokens"), Sequence):
        rows = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
        return [TokenLogprob(text, own, [*(top or {}).items()]) for text, own, top in rows]
    raise ValidationError(
        f"this {type(answer).__name__} has no log-probabilities; ask for them with logprobs=5, or "
        "in a chat with logprobs=True, top_logprobs=5, and pass the response or one of its choices"
    )


def visible(text: str) -> str:
    """Return the text of a token with marks for white space and escaped control characters."""
    shown = "".join(_MARKS.get(char) or _escaped(char) for char in text)
    return shown or "∅"


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()
