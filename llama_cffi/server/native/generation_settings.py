"""The settings of a generation under llama-server's names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ...generation.sampling_params import SamplingParams

__all__ = ["generation_settings"]

# llama-server's name of each setting that has another one here.
_RENAMED = {"penalty_last_n": "repeat_last_n", "mirostat_mode": "mirostat"}
_NAMES = (
    "temperature", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p", "top_n_sigma",
    "xtc_probability", "xtc_threshold", "typical_p", "penalty_last_n", "repeat_penalty",
    "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length",
    "dry_penalty_last_n", "mirostat_mode", "mirostat_tau", "mirostat_eta", "adaptive_target",
    "adaptive_decay", "min_keep", "ignore_eos",
)  # fmt: skip


def generation_settings(
    params: SamplingParams, seed: int, end_tokens: Iterable[int] = (), **others: object
) -> Mapping[str, object]:
    """Return sampling parameters as llama-server tells them.

    Args:
        params: The parameters.
        seed: The seed that was used.
        end_tokens: The tokens that end an answer.
        **others: Further settings.
    """
    bias = dict(params.logit_bias)
    if params.ignore_eos:
        bias |= dict.fromkeys(end_tokens, -math.inf)
    samplers = params.samplers
    return {
        "seed": seed,
        **{_RENAMED.get(name, name): getattr(params, name) for name in _NAMES},
        "dry_sequence_breakers": [*params.dry_sequence_breakers],
        "logit_bias": [
            {"token": token, "bias": None if value == -math.inf else value}
            for token, value in bias.items()
        ],
        "samplers": samplers.split(";") if isinstance(samplers, str) else [*samplers],
        **others,
    }
