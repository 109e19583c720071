"""`LLAMA_CFFI_STAGE`: run a generation up to one stage and report on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING

from ..errors import ValidationError
from . import environment

if TYPE_CHECKING:
    from ..generation.chat_renderer import RenderedChat
    from .engine import Engine

__all__ = ["STAGES", "report", "requested"]

STAGES = ("prompt", "tokenize", "prefill", "sample", "piece", "push")


def requested() -> str:
    """Return the stage that the environment requests, or an empty str.

    Raises:
        ValidationError: The stage does not exist.
    """
    variable, stage = environment.text("STAGE")
    if stage and stage not in STAGES:
        raise ValidationError(f"{variable}={stage!r} must be one of {', '.join(STAGES)}")
    return stage


def report(
    engine: Engine,
    stage: str,
    prompt: RenderedChat,
    start: Callable[[list[int]], Generator[int, None, None]],
) -> str:
    """Run up to *stage*; return the report, and print it to stderr.

    The report of `prompt` is the rendered prompt.

    Args:
        engine: The engine, for its statistics.
        stage: One of `STAGES`.
        prompt: The rendered prompt.
        start: Starts the generation after a prompt and yields its tokens.
    """
    line = prompt.text if stage == "prompt" else f"[OK] {_report(engine, stage, prompt, start)}"
    print(line, file=sys.stderr)
    return line


def _report(
    engine: Engine,
    stage: str,
    prompt: RenderedChat,
    start: Callable[[list[int]], Generator[int, None, None]],
) -> str:
    if stage == "tokenize":
        return f"tokenize: {len(prompt.tokens)} toks"
    with closing(start(prompt.tokens)) as generated:
        token = next(generated, None)
    if stage == "prefill":
        return f"prefill in {engine.stats.prefill_s:.3f}s"
    if token is None:
        return f"{stage}: end of generation"
    if stage == "sample":
        return f"sample: token {token} after {engine.stats.time_to_first_token_s:.3f}s"
    piece = engine.model.vocab.token_to_piece(token)
    return f"piece: {piece!r}" if stage == "piece" else f"push: {len(piece)} bytes"
