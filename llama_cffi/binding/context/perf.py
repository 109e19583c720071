"""The counters and times of a context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Perf"]

# The fields of llama_perf_context_data.
_FIELDS = {
    "t_load_ms": "load_ms",
    "t_p_eval_ms": "prompt_ms",
    "t_eval_ms": "generation_ms",
    "n_p_eval": "n_prompt",
    "n_eval": "n_generated",
}


@dataclass(frozen=True)
class Perf(Mapping[str, float]):
    """What a context computed; the times are 0 with `no_perf`, the default.

    C counts everything between two synchronizations (`synchronize`, reading an output) as one
    computation, and reports 1 instead of 0 tokens. It is a mapping, too, of llama.cpp's names
    (`t_load_ms`, `t_p_eval_ms`, `t_eval_ms`, `n_p_eval`, `n_eval`) to these values.

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

    def __getitem__(self, name: str) -> float:
        value: float = getattr(self, _FIELDS[name])
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(_FIELDS)

    def __len__(self) -> int:
        return len(_FIELDS)
