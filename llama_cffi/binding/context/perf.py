"""The counters and times of a context."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Perf"]


@dataclass(frozen=True)
class Perf:
    """What a context computed; the times are 0 with `no_perf`, the default.

    C counts everything between two synchronizations (`synchronize`, reading an output) as one
    computation, and reports 1 instead of 0 tokens.

    Attributes:
        load_ms: From loading the model to the first output.
        prompt_ms: Decoding batches of several tokens.
        generation_ms: Decoding single tokens.
        n_prompt: Tokens decoded in batches of several.
        n_generated: Tokens decoded one by one.
    """

    load_ms: float
    prompt_ms: float
    generation_ms: float
    n_prompt: int
    n_generated: int
