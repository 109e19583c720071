"""What a question is: its content key, the messages that ask it, and the answers that count."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from .split import is_heldout
from .template import Message, Tool

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One question with the answers that are correct.

    Attributes:
        kind: The kind that accuracy is reported for.
        key: The content that decides the split.
        messages: What comes before the answer, without a system prompt.
        answers: Every correct answer; training picks one at random.
        tools: Tool definitions that the question needs, or None.
        other_keys: Content that also appears (for example the facts that are not asked for); none
            of it may be held out in a training item.
    """

    kind: str
    key: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    tools: tuple[Tool, ...] | None = None
    other_keys: tuple[str, ...] = field(default=())

    def is_training(self) -> bool:
        """Tell whether nothing in this item is held out."""
        return not any(is_heldout(key) for key in (self.key, *self.other_keys))


Maker = Callable[[random.Random], Item]


def ask(kind: str, key: str, question: str, *answers: str, other_keys: Sequence[str] = ()) -> Item:
    """Build an item that is one user message."""
    message = {"role": "user", "content": question}
    return Item(kind, key, (message,), answers, other_keys=tuple(other_keys))


def pick(rng: random.Random, *choices: T) -> T:
    """Choose one of the arguments."""
    return choices[rng.randrange(len(choices))]


def draw(make: Maker, rng: random.Random, heldout: bool) -> Item:
    """Make items until one lies on the wanted side of the split."""
    while True:
        item = make(rng)
        if is_heldout(item.key) if heldout else item.is_training():
            return item
