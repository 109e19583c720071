"""The table of fields that generate covers the options of Python."""

from __future__ import annotations

from llama_cffi.generation.sampling_params import SamplingOptions
from llama_cffi.server.fields import _ALIASES, _SAMPLING, GENERATION, generation_options

# Python objects, and what only they can say.
NOT_OVER_HTTP = {"logits_processor", "structured", "structured_after", "grammar_triggers"}


def test_every_sampling_option_is_a_field() -> None:
    assert set(_SAMPLING) == set(SamplingOptions.__annotations__) - NOT_OVER_HTTP


def test_every_other_name_is_of_a_field() -> None:
    known = {*GENERATION, "thinking_budget"}
    assert {*_ALIASES.values()} <= known
    assert not {*_ALIASES} & {*_SAMPLING}


def test_a_budget_of_minus_1_is_no_limit_as_in_llama_server() -> None:
    for name in ("thinking_budget", "thinking_budget_tokens", "reasoning_budget_tokens"):
        assert generation_options({name: -1}, 10) == {}
        assert generation_options({name: 7}, 10) == {"thinking_budget": 7}
