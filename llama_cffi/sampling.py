"""How the next token is chosen: the parameters, and the sampler chain they become."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypedDict

from .binding import Model, SamplerChain
from .binding.sampler import MAX_LAST_N, MIN_TEMPERATURE
from .errors import ValidationError

__all__ = ["SamplingOptions", "SamplingParams", "build_chain"]


class SamplingOptions(TypedDict, total=False):
    """`SamplingParams` as keyword arguments."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float | None
    penalty_freq: float
    penalty_present: float
    penalty_last_n: int
    seed: int


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of one request.

    Attributes:
        temperature: 0 = greedy, the most probable token each time.
        top_k: Keep the k most probable tokens; 0 = all.
        top_p: Keep the most probable tokens up to this total probability; 1.0 = all.
        min_p: Keep tokens with at least this share of the best one's probability; 0.0 = all.
        repeat_penalty: Above 1.0 repeats become less probable; None = 1.1 when sampling and off
            when greedy, where a penalty would corrupt copied text and numbers.
        penalty_freq: Subtracted from a token's logit per occurrence; 0.0 = off.
        penalty_present: Subtracted once for a token that occurred; 0.0 = off.
        penalty_last_n: How many tokens back the penalties look; 0 = off.
        seed: -1 draws one; the same seed gives the same text.

    Raises:
        ValidationError: A value is out of range.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.05
    repeat_penalty: float | None = None
    penalty_freq: float = 0.0
    penalty_present: float = 0.0
    penalty_last_n: int = 64
    seed: int = -1

    def __post_init__(self) -> None:
        def check(
            name: str, low: float, high: float, *, open_low: bool = False, whole: bool = False
        ) -> None:
            value = getattr(self, name)
            if value is None and name == "repeat_penalty":
                return
            # numpy's numbers register with these; a Decimal or a text does not.
            number = float(value) if isinstance(value, Integral if whole else Real) else math.nan
            # Comparisons with NaN are false.
            if not low <= number <= high or (open_low and number == low):
                raise ValidationError(
                    f"{name}={value!r} is outside {'(' if open_low else '['}{low:g}, {high:g}]"
                )

        check("temperature", 0, 1000)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValidationError(
                f"temperature={self.temperature!r} is neither 0 (greedy) nor at least "
                f"{MIN_TEMPERATURE}"
            )
        check("top_k", 0, 2**31 - 1, whole=True)
        check("top_p", 0, 1, open_low=True)
        check("min_p", 0, 1)
        check("repeat_penalty", 0, 1000, open_low=True)
        check("penalty_freq", -1000, 1000)
        check("penalty_present", -1000, 1000)
        check("penalty_last_n", 0, MAX_LAST_N, whole=True)
        check("seed", -1, 2**32 - 1, whole=True)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    @property
    def effective_repeat_penalty(self) -> float:
        """The repeat penalty that applies; 1.0 = off."""
        if self.repeat_penalty is None:
            return 1.0 if self.greedy else 1.1
        return self.repeat_penalty

    @property
    def penalises(self) -> bool:
        """Whether any penalty applies, so that the chain must see the prompt."""
        neutral = self.effective_repeat_penalty == 1.0 and not (
            self.penalty_freq or self.penalty_present
        )
        return self.penalty_last_n > 0 and not neutral


def build_chain(model: Model, params: SamplingParams) -> SamplerChain:
    """Build the chain in llama-cli's order: penalties, top-k, top-p, min-p, temperature, draw."""
    chain = SamplerChain(model)
    if params.penalises:
        chain.add_penalties(
            params.penalty_last_n,
            params.effective_repeat_penalty,
            params.penalty_freq,
            params.penalty_present,
        )
    if params.greedy:
        return chain.add_greedy()
    seed = secrets.randbits(32) if params.seed == -1 else params.seed
    if params.top_k:
        chain.add_top_k(params.top_k)
    if params.top_p < 1:
        chain.add_top_p(params.top_p)
    if params.min_p > 0:
        chain.add_min_p(params.min_p)
    return chain.add_temp(params.temperature).add_dist(seed)
