"""What happens when prompt and answer do not fit into the context: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ContextOverflowError

__all__ = ["POLICIES", "Fit", "fit_prompt"]

POLICIES = ("error", "truncate_left", "truncate_middle", "shift")


@dataclass(frozen=True)
class Fit:
    """A prompt that fits.

    Attributes:
        tokens: What is left of it.
        n_truncated: How many tokens were left out.
        n_predict: Most tokens to generate.
    """

    tokens: list[int]
    n_truncated: int
    n_predict: int


def fit_prompt(
    tokens: Sequence[int],
    n_predict: int,
    n_ctx: int,
    safety: int,
    policy: str,
    *,
    n_first: int = 0,
) -> Fit:
    """Make room for the answer.

    `error` refuses a prompt that leaves no room; `truncate_left` drops its oldest tokens and
    `truncate_middle` those in its middle, so that *n_predict* tokens fit after it, or half of the
    context if that is less; `shift` refuses like `error`, and the answer may then be longer than
    the context.

    Args:
        tokens: The prompt.
        n_predict: Most tokens to generate.
        n_ctx: Tokens that the context holds.
        safety: Tokens of it that stay free.
        policy: One of `POLICIES`.
        n_first: Tokens that `truncate_left` never drops, such as BOS.

    Raises:
        ContextOverflowError: There is no room, with the counts.
    """
    capacity = n_ctx - safety
    tokens = list(tokens)
    n = len(tokens)
    if policy.startswith("truncate") and capacity > n_first + 1:
        limit = capacity - min(n_predict, capacity // 2)
        if n > limit:
            n_head = min(n_first, limit - 1) if policy == "truncate_left" else limit // 2
            tokens = tokens[:n_head] + tokens[n - (limit - n_head) :]
    room = capacity - len(tokens)
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
    return Fit(tokens, n - len(tokens), n_predict if policy == "shift" else min(n_predict, room))
