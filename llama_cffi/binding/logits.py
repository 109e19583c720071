"""Checks of logits before a token is chosen from them."""

from __future__ import annotations

import math

from ..errors import GenerationError

__all__ = ["check_logits"]


def check_logits(largest: float) -> None:
    """Check the largest logit, which numpy reports as NaN if any is NaN.

    With NaN or +inf, C sorts beyond the end of the array and draws an arbitrary token.

    Raises:
        GenerationError: It is NaN or +inf, or -inf, which leaves no token.
    """
    if math.isfinite(largest):
        return
    if largest < 0:
        raise GenerationError("every token is forbidden: all remaining logits are -inf")
    raise GenerationError(
        f"the logits contain {'NaN' if math.isnan(largest) else '+inf'}, so no token can be "
        "chosen; the model file or its computation on this device is broken"
    )
