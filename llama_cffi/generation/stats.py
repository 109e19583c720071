"""Statistics of a generation."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["GenerationStats"]


@dataclass(slots=True)
class GenerationStats:
    """Counts in tokens and times in seconds of one generation, or totals of several.

    Attributes:
        n_prompt: Prompt tokens, after truncation.
        n_truncated: Prompt tokens dropped by the context policy.
        n_reused: Prompt tokens that were in the KV cache.
        n_generated: Generated tokens.
        n_forced: Generated tokens that were the only ones allowed, so nothing was sampled.
        n_shifted: Tokens dropped by context shifts.
        n_drafted: Draft tokens (speculative decoding).
        n_accepted: Accepted draft tokens.
        n_preempted: Number of times the request was preempted.
        n_backoffs: Number of times the KV cache had no slot and the batch was halved.
        n_retries: Number of decodes repeated, after a signal or after freeing cells.
        queue_s: Time spent waiting for the engine.
        prefill_s: Time of the prefill.
        decode_s: Time from the end of the prefill to the last token.
        time_to_first_token_s: Time from the call to the first token, waiting included.
        finish_reason: `eog`, `stop`, `json`, `length` (max_tokens), `context` (full), `cancel`,
            `deadline`; empty while it runs or after an error.
        stop: The stop string that ended the answer.
        seed: The seed that was used; None when greedy.
    """

    n_prompt: int = 0
    n_truncated: int = 0
    n_reused: int = 0
    n_generated: int = 0
    n_forced: int = 0
    n_shifted: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    n_preempted: int = 0
    n_backoffs: int = 0
    n_retries: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    time_to_first_token_s: float = 0.0
    finish_reason: str = ""
    stop: str = ""
    seed: int | None = None

    @property
    def n_prefilled(self) -> int:
        """Prompt tokens that were decoded."""
        return self.n_prompt - self.n_reused

    @property
    def prefill_tokens_per_s(self) -> float:
        """Decoded prompt tokens per second; 0.0 without a measurement."""
        return self.n_prefilled / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Generated tokens per second; 0.0 without a measurement."""
        return self.n_generated / self.decode_s if self.decode_s else 0.0

    def add(self, other: GenerationStats) -> None:
        """Add the counts and times of *other*."""
        for field in fields(self):
            value = getattr(other, field.name)
            if type(value) in (int, float) and field.name != "seed":
                setattr(self, field.name, getattr(self, field.name) + value)
