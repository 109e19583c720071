"""What happens when prompt and answer do not fit into the context: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ContextOverflowError
from .prompt import Prompt

__all__ = ["DROP_TURNS", "POLICIES", "SAFETY", "FittedPrompt", "fit_prompt", "fit_turns"]

POLICIES = ("error", "truncate_left", "truncate_middle", "shift")
DROP_TURNS = "drop_oldest_turns"  # of conversations
SAFETY = 16  # tokens that stay free, unless somebody says otherwise


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt that leaves room for an answer.

    Attributes:
        prompt: What is left of it.
        n_truncated: Number of cells that were left out.
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
    """Make room for the answer.

    `error` refuses a prompt that leaves no room; `truncate_left` drops its oldest tokens and
    `truncate_middle` those in its middle, so that *max_tokens* tokens fit after it, or half of the
    context if that is less; `shift` refuses like `error`, and the answer may then be longer than
    the context.

    Args:
        prompt: The prompt; media are left out whole.
        max_tokens: Most tokens to generate.
        n_ctx: Tokens that the context holds.
        safety: Tokens of it that stay free.
        policy: One of `POLICIES`.
        n_first: Tokens that `truncate_left` never drops, such as BOS.

    Raises:
        ContextOverflowError: There is no room, with the counts.
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
        advice = f"Shorten the prompt, or make the engine with n_ctx > {n + safety}"
        if capacity <= n_first + 1:
            advice = f"Make the engine with n_ctx > {n + safety}, or a smaller safety margin"
        elif not policy.startswith("truncate"):
            advice += ", or choose context_policy='truncate_middle'"
        raise ContextOverflowError(
            f"no room for an answer (room={room}): the prompt has {n} tokens, the context holds "
            f"{n_ctx}, and {safety} of them are a safety margin. {advice}."
        )
    most = max_tokens if policy == "shift" else min(max_tokens, room)
    return FittedPrompt(prompt, n - len(prompt), most)


def fit_turns(
    messages: Sequence[Mapping[str, Any]],
    length: Callable[[Sequence[Mapping[str, Any]]], int],
    max_tokens: int | None,
    n_ctx: int,
) -> Sequence[Mapping[str, Any]]:
    """Drop the oldest turns of a conversation, as few as make room for the answer.

    A turn is a message of the user and all up to the next one. System messages at the beginning
    and the last turn stay.

    Args:
        messages: OpenAI's shape.
        length: Returns the tokens of a conversation.
        max_tokens: Most tokens of the answer; None, and more than half of the context, is half.
        n_ctx: Tokens that the context holds.
    """
    capacity = n_ctx - SAFETY
    half = capacity // 2
    room = capacity - (half if max_tokens is None or max_tokens < 0 else min(max_tokens, half))
    n_system = 0
    while n_system < len(messages) and messages[n_system].get("role") in ("system", "developer"):
        n_system += 1
    users = [i for i, m in enumerate(messages) if m.get("role") == "user" and i > n_system]
    starts = [n_system, *users]
    # The fewest that have to go, by bisection: rendering a long conversation takes its time.
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if length([*messages[:n_system], *messages[starts[middle] :]]) <= room:
            high = middle
        else:
            low = middle + 1
    return [*messages[:n_system], *messages[starts[low] :]]
