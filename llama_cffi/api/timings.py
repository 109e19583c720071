"""llama-server's `timings` of an answer, when it has ended and while it is generated."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..generation.stats import GenerationStats

if TYPE_CHECKING:
    from ..generation.prompt_progress import PromptProgress
    from ..generation.sequence import Step

__all__ = ["RunningTimings", "prompt_progress", "timings"]


def timings(stats: GenerationStats, n: int) -> dict[str, float]:
    """Return llama-server's timings of an answer with *n* tokens.

    The first token comes with the prompt, so the times per token are those of the others.
    """
    prompt_ms, n_prompt = stats.prefill_s * 1e3, stats.n_prefilled
    predicted_ms, n_steps = stats.decode_s * 1e3 if n else 0.0, max(0, n - 1)
    found: dict[str, float] = {
        "cache_n": stats.n_reused,
        "prompt_n": n_prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / n_prompt if n_prompt else 0.0,
        "prompt_per_second": stats.prefill_tokens_per_s,
        "predicted_n": n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / n_steps if n_steps else 0.0,
        "predicted_per_second": n_steps / predicted_ms * 1e3 if predicted_ms else 0.0,
    }
    if stats.n_drafted:
        found |= {"draft_n": stats.n_drafted, "draft_n_accepted": stats.n_accepted}
    return found


def prompt_progress(progress: PromptProgress) -> dict[str, float]:
    """Return llama-server's `prompt_progress`."""
    return {
        "total": progress.n_total,
        "cache": progress.n_cached,
        "processed": progress.n_processed,
        "time_ms": progress.time_s * 1e3,
    }


class RunningTimings:
    """The timings of an answer so far."""

    def __init__(self) -> None:
        self._stats = GenerationStats()
        self._first_s = 0.0  # the time of the first token

    def add_prompt(self, progress: PromptProgress) -> None:
        """Add progress of the prompt; called in the engine's thread, before any token."""
        stats = self._stats
        stats.n_prompt, stats.n_reused = progress.n_total, progress.n_cached
        stats.prefill_s = progress.time_s

    def add(self, step: Step) -> dict[str, float]:
        """Add a step of the answer; return the timings."""
        stats = self._stats
        if step.token is not None:
            stats.n_generated += 1
            if stats.n_generated == 1:
                self._first_s = time.monotonic()
        stats.decode_s = time.monotonic() - self._first_s
        return timings(stats, stats.n_generated)
