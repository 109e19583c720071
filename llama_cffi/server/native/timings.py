"""llama-server's timings of an answer."""

from __future__ import annotations

from ...generation.stats import GenerationStats

__all__ = ["timings"]


def timings(stats: GenerationStats, n: int) -> dict[str, int | float]:
    """Return llama-server's timings of an answer with *n* tokens so far.

    The first token comes with the prompt, so the times per token are those of the others.
    """
    prompt_ms, n_prompt = stats.prefill_s * 1e3, stats.n_prefilled
    predicted_ms, n_steps = stats.decode_s * 1e3 if n else 0.0, max(0, n - 1)
    found: dict[str, int | float] = {
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
