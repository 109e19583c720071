"""`LLAMA_CFFI_STAGE`: run a generation up to one stage and say how it went."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import environment
from .errors import ValidationError

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["STAGES", "report", "wanted"]

STAGES = ("prompt", "tokenize", "prefill", "sample", "piece", "push")


def wanted() -> str:
    """Return the stage that the environment asks for, or an empty text.

    Raises:
        ValidationError: It is none.
    """
    variable, stage = environment.text("STAGE")
    if stage and stage not in STAGES:
        raise ValidationError(f"{variable}={stage!r} is none of {', '.join(STAGES)}")
    return stage


def report(
    stage: str,
    prompt: str,
    tokenize: Callable[[], list[int]],
    first_token: Callable[[list[int]], int | None],
    engine: Engine,
) -> str:
    """Run up to *stage* and return the line that says how it went.

    Args:
        stage: One of `STAGES`.
        prompt: The text with the chat template applied.
        tokenize: Turns it into tokens.
        first_token: Evaluates them and samples one; None = the answer ended at once.
        engine: Whose statistics say how long it took.
    """
    if stage == "prompt":
        return f"[OK] prompt: {len(prompt)} chars"
    tokens = tokenize()
    if stage == "tokenize":
        return f"[OK] tokenize: {len(tokens)} toks"
    token = first_token(tokens)
    if stage == "prefill":
        return f"[OK] prefill in {engine.stats.prefill_s:.3f}s"
    if token is None:
        return f"[OK] {stage}: end of generation at once"
    if stage == "sample":
        return f"[OK] sample: token {token} after {engine.stats.time_to_first_token_s:.3f}s"
    piece = engine.model.vocab.token_to_piece(token)
    return f"[OK] piece: {piece!r}" if stage == "piece" else f"[OK] push: {len(piece)} bytes"
