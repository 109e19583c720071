"""Aliases of the options: names from other libraries and from earlier releases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ValidationError

__all__ = ["ALIASES", "canonical"]

ALIASES: Mapping[str, str] = {
    "max_completion_tokens": "max_tokens",  # OpenAI
    "max_new_tokens": "max_tokens",  # transformers
    "n_predict": "max_tokens",  # llama.cpp
    "temp": "temperature",
    "typical": "typical_p",
    "typ_p": "typical_p",
    "repetition_penalty": "repeat_penalty",  # transformers, vLLM
    "penalty_repeat": "repeat_penalty",
    "penalty_freq": "frequency_penalty",
    "freq_penalty": "frequency_penalty",
    "penalty_present": "presence_penalty",
    "repeat_last_n": "penalty_last_n",
    "mirostat": "mirostat_mode",
    "mirostat_ent": "mirostat_tau",
    "mirostat_lr": "mirostat_eta",
    "logits_processors": "logits_processor",
    "stop_sequences": "stop",  # Anthropic
    "reset_kv": "reset_kv_cache",
}


def canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return *options* under their canonical names, without those that are None.

    Raises:
        ValidationError: An option is given under two names.
    """
    found: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for given, value in options.items():
        name = ALIASES.get(given, given)
        if value is None:
            continue
        if name in spelt:
            raise ValidationError(f"{spelt[name]} and {given} are the same option; give one")
        spelt[name] = given
        found[name] = value
    return found
