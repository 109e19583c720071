"""Conversations: the mixture of kinds, system prompts and several turns, for training and tests."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .items import Item, Maker, draw, pick
from .kinds_basic import arithmetic, copy, count, dates, reverse, think
from .kinds_language import facts, json_action, small_talk, story
from .kinds_tools import call, offer, plain, tool_answer, tool_call, tool_choice, tool_plain
from .template import Message, Tool, render

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful, concise assistant.",
    "You are a friendly assistant.",
    "You are a helpful AI assistant.",
    "You are an assistant that answers briefly.",
    "Answer briefly.",
    "Be concise.",
    "You are a small language model.",
    "Reply in English.",
    "You are a test.",
)

#: Kind -> (maker, share of the training conversations).
KINDS: dict[str, tuple[Maker, float]] = {
    "arithmetic": (arithmetic, 0.26),
    "copy": (copy, 0.11),
    "reverse": (reverse, 0.12),
    "dates": (dates, 0.20),
    "facts": (facts, 0.15),
    "json_action": (json_action, 0.07),
    "small_talk": (small_talk, 0.03),
    "count": (count, 0.04),
    "story": (story, 0.03),
    "think": (think, 0.01),
}
TOOL_SHARE = 0.25
TOOL_KINDS: dict[str, Maker] = {
    "tool_call": tool_call,
    "tool_choice": tool_choice,
    "tool_answer": tool_answer,
    "tool_plain": tool_plain,
}
EVALUATED = (*KINDS, *TOOL_KINDS, "second_turn")


@dataclass(frozen=True)
class Conversation:
    """Messages up to an open question, and the answers that count as correct."""

    kind: str
    key: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    tools: tuple[Tool, ...] | None = None

    def prompt(self) -> str:
        """Render what the model is given."""
        return render(self.messages, self.tools)


def _system(rng: random.Random) -> tuple[Message, ...]:
    if rng.random() < 0.45:
        return ()
    return ({"role": "system", "content": pick(rng, *SYSTEM_PROMPTS)},)


def _answered(item: Item, rng: random.Random) -> tuple[Message, ...]:
    return (*item.messages, {"role": "assistant", "content": pick(rng, *item.answers)})


def _basic(rng: random.Random, heldout: bool = False) -> Item:
    weights = [weight for _, weight in KINDS.values()]
    maker = rng.choices([maker for maker, _ in KINDS.values()], weights)[0]
    return draw(maker, rng, heldout)


def training_text(rng: random.Random) -> str:
    """Draw one training conversation, rendered; nothing in it is held out."""
    messages: list[Message] = list(_system(rng))
    if rng.random() >= TOOL_SHARE:
        for _ in range(pick(rng, 1, 1, 1, 2, 3, 4)):
            messages += _answered(_basic(rng), rng)
        return render(messages, None, False)
    offered = offer(rng, pick(rng, 1, 2, 2, 3, 3))
    for _ in range(rng.randrange(1, 5)):
        if rng.random() < 0.25:
            messages += _answered(plain(rng, offered, False), rng)
            continue
        while True:
            asked, answered = call(rng, offered, "tool_call")
            if asked.is_training():
                break
        messages += _answered(answered if rng.random() < 0.7 else asked, rng)
    return render(messages, [o.tool for o in offered], False)


def heldout(kind: str, rng: random.Random) -> Conversation:
    """Draw a conversation whose open question is held out.

    Args:
        kind: One of ``EVALUATED``.
        rng: The source of randomness; a seed gives the same conversations everywhere.
    """
    system = _system(rng)
    if kind == "second_turn":
        first, item = _basic(rng, True), _basic(rng, True)
        while item.kind == "story":
            item = _basic(rng, True)
        messages = (*system, *_answered(first, rng), *item.messages)
        return Conversation(kind, item.key, messages, item.answers)
    maker = TOOL_KINDS[kind] if kind in TOOL_KINDS else KINDS[kind][0]
    item = draw(maker, rng, True)
    return Conversation(kind, item.key, (*system, *item.messages), item.answers, item.tools)


def is_correct(conversation: Conversation, answer: str) -> bool:
    """Judge a finished answer: equal to an accepted one; a story by its subject and its end."""
    if conversation.kind != "story":
        return answer in conversation.answers
    animal, name = conversation.key.split(":")[1:]
    return animal in answer and name in answer and answer.endswith("The end.")
