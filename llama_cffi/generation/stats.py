"""What a generation did and how long it took."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["GenerationStats"]


@dataclass(slots=True)
class GenerationStats:
    """Counts in tokens, times in seconds.

    Attributes:
        n_prompt: Tokens of the prompt as it was used.
        n_truncated: Tokens of the prompt that were left out.
        n_reused: Tokens of the prompt that the cache held already.
        n_generated: Tokens of the answer.
        n_forced: Those among them that nobody had to choose: they were the only way on.
        n_shifted: Tokens that a context shift dropped.
        n_drafted: Tokens that were guessed ahead (speculative decoding).
        n_accepted: Guesses that were right.
        n_preempted: How often a request gave up its room to another one.
        n_backoffs: How often the cache had no slot and the chunk was halved.
        n_retries: How often a decode was repeated after a signal.
        queue_s: Waiting for the engine.
        prefill_s: Evaluating the prompt.
        decode_s: From the end of the prefill to the last token.
        time_to_first_token_s: From the call to the first token, waiting included.
        finish_reason: `eog`, `stop`, `json`, `length` (n_predict), `context` (full), `cancel`,
            `deadline`; empty while it runs or when it failed.
        stop: The stop string that was found.
        seed: The seed of the draw; None when greedy.
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
        """Tokens of the prompt that were evaluated."""
        return self.n_prompt - self.n_reused

    @property
    def prefill_tokens_per_s(self) -> float:
        """Evaluated prompt tokens per second; 0.0 when nothing was measured."""
        return self.n_prefilled / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Generated tokens per second; 0.0 when nothing was measured."""
        return self.n_generated / self.decode_s if self.decode_s else 0.0

    def add(self, other: GenerationStats) -> None:
        """Add the counts and times of *other*."""
        for field in fields(self):
            value = getattr(other, field.name)
            if type(value) in (int, float) and field.name != "seed":
                setattr(self, field.name, getattr(self, field.name) + value)
