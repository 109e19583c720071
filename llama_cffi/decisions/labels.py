"""Labels of options: texts that are one token each where the model's reply begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from string import ascii_lowercase, ascii_uppercase, digits
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ValidationError

if TYPE_CHECKING:
    from ..binding import Vocab

__all__ = ["LETTERS", "Labels", "find_labels"]

LETTERS = tuple(ascii_uppercase)
_MAX_TAIL = 256  # characters


class Labels(NamedTuple):
    """The labels of the options of a question.

    Attributes:
        texts: As they are written in the prompt.
        tokens: Their tokens in the reply.
    """

    texts: tuple[str, ...]
    tokens: tuple[int, ...]


def find_labels(
    vocab: Vocab,
    prompt: str,
    n: int,
    preferred: Sequence[tuple[str, ...]] = (),
    *,
    special: Iterable[str],
    spaced: bool = False,
) -> Labels:
    """Return *n* labels, each of which adds exactly one token to a prompt.

    `A` to `Z` come first, then pairs of letters, small letters, numbers and pairs of small
    letters, as far as the vocabulary has them.

    Args:
        vocab: The model's vocabulary.
        prompt: The text before the reply.
        n: Number of labels.
        preferred: Groups of *n* labels to try first.
        special: The texts of the control tokens.
        spaced: Whether a reply begins with a space; the other form is tried next.

    Raises:
        ValidationError: The vocabulary has fewer labels of one token.
    """
    tail = _tail(prompt, special)
    before = vocab.tokenize(tail, False, True)
    most = 0
    for texts in (*preferred, None):
        for space in (" ", "") if spaced else ("", " "):
            found: dict[int, str] = {}
            for text in _candidates() if texts is None else texts:
                token = _added_token(vocab, tail, before, space + text)
                if token is not None:
                    found.setdefault(token, text)
                if len(found) == n:
                    return Labels(tuple(found.values()), tuple(found))
            most = max(most, len(found))
    raise ValidationError(
        f"the question has {n} options, and this vocabulary has only {most} labels that are one "
        "token where the reply begins; ask with fewer options, or in several questions"
    )


def _candidates() -> Iterator[str]:
    yield from LETTERS
    yield from (a + b for a in ascii_uppercase for b in ascii_uppercase)
    yield from ascii_lowercase
    yield from digits
    yield from (a + b for a in digits[1:] for b in digits)
    yield from (a + b for a in ascii_lowercase for b in ascii_lowercase)


def _added_token(vocab: Vocab, tail: str, before: Sequence[int], label: str) -> int | None:
    """Return the token that *label* adds after *tail*; None: it adds several, or changes others."""
    tokens = vocab.tokenize(tail + label, False, True)
    if len(tokens) != len(before) + 1 or tokens[:-1] != before:
        return None
    token = tokens[-1]
    spelled = vocab.detokenize([token], keep_space=True).strip() == label.strip()
    return token if spelled and not vocab.is_control(token) else None


def _tail(prompt: str, special: Iterable[str]) -> str:
    """Return the end of a prompt, from its last control token or line on.

    No token reaches across either, so it is tokenized as in the whole prompt.
    """
    end = prompt[-_MAX_TAIL:]
    start = end.rstrip("\n").rfind("\n") + 1
    return end[max([start, *(end.rfind(text) for text in special)]) :]
