"""Fitting prompt and answer into the context: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ContextOverflowError
from .prompt import Prompt

__all__ = [
    "DROP_TURNS",
    "POLICIES",
    "FittedPrompt",
    "drop_oldest_turns",
    "fit_prompt",
]

POLICIES = ("error", "truncate_left", "truncate_middle", "shift")
DROP_TURNS = "drop_oldest_turns"  # for conversations


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt that leaves room for an answer.

    Attributes:
        prompt: The part that was kept.
        n_truncated: Number of cells that were dropped.
        max_tokens: Most tokens to generate.
    """

    prompt: Prompt
    n_truncated: int
    max_tokens: int


def fit_prompt(
    prompt: Prompt,
    max_tokens: int,
    n_ctx: int,
    safety: int,
    policy: str,
    *,
    n_first: int = 0,
) -> FittedPrompt:
    """Fit a prompt into the context, with room for the answer.

    `error` refuses a prompt that leaves no room. `truncate_left` drops the oldest tokens and
    `truncate_middle` those in the middle, until *max_tokens* tokens, or half of the context if that
    is less, are free for the answer. `shift` refuses like `error`, but the answer may be longer
    than the context.

    Args:
        prompt: The prompt; an image or clip is dropped as a whole.
        max_tokens: Most tokens to generate.
        n_ctx: Context size, tokens.
        safety: Tokens of the context that stay free.
        policy: One of `POLICIES`.
        n_first: Leading tokens that `truncate_left` never drops, such as BOS.

    Raises:
        ContextOverflowError: The prompt leaves no room; the message has the counts.
    """
    capacity = n_ctx - safety
    n = len(prompt)
    if policy.startswith("truncate") and capacity > n_first + 1:
        limit = capacity - min(max_tokens, capacity // 2)
        if n > limit:
            n_head = min(n_first, limit - 1) if policy == "truncate_left" else limit // 2
            prompt = prompt.without(n_head, n - (limit - n_head))
    room = capacity - len(prompt)
    if room <= 0:
        advice = f"Shorten the prompt, or create the engine with n_ctx > {n + safety}"
        if safety and capacity <= n_first + 1:
            advice = f"Create the engine with n_ctx > {n + safety}, or a smaller safety margin"
        elif not policy.startswith("truncate"):
            advice += ", or choose context_policy='truncate_middle'"
        margin = f", and {safety} of them are a safety margin" if safety else ""
        raise ContextOverflowError(
            f"no room for an answer: the prompt has {n} tokens, the context holds "
            f"{n_ctx}{margin}. {advice}.",
            n_tokens=n,
            n_ctx=n_ctx,
        )
    n_answer = max_tokens if policy == "shift" else min(max_tokens, room)
    return FittedPrompt(prompt, n - len(prompt), n_answer)


def drop_oldest_turns(
    messages: Sequence[Mapping[str, Any]],
    count_tokens: Callable[[Sequence[Mapping[str, Any]]], int],
    max_tokens: int | None,
    n_ctx: int,
) -> Sequence[Mapping[str, Any]]:
    """Drop as few of the oldest turns of a conversation as leave room for the answer.

    A turn is a user message with everything up to the next one. Leading system messages and the
    last turn are kept.

    Args:
        messages: In OpenAI's format.
        count_tokens: Returns the number of tokens of a conversation.
        max_tokens: Most tokens to generate, at most half of the context; None: half of it.
        n_ctx: Context size, tokens.
    """
    half = n_ctx // 2
    room = n_ctx - (half if max_tokens is None or max_tokens < 0 else min(max_tokens, half))
    n_system = 0
    while n_system < len(messages) and messages[n_system].get("role") in ("system", "developer"):
        n_system += 1
    users = [i for i, m in enumerate(messages) if m.get("role") == "user" and i > n_system]
    starts = [n_system, *users]
    # By bisection, because rendering a long conversation takes time.
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if count_tokens([*messages[:n_system], *messages[starts[middle] :]]) <= room:
            high = middle
        else:
            low = middle + 1
    return [*messages[:n_system], *messages[starts[low] :]]
