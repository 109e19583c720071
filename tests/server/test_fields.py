"""The table of fields that generate covers the options of Python."""

from __future__ import annotations

from llama_cffi.generation.sampling_params import SamplingOptions
from llama_cffi.server.fields import _ALIASES, _SAMPLING, GENERATION

# Python objects, and what only they can say.
NOT_OVER_HTTP = {"logits_processor", "structured", "structured_after", "grammar_triggers"}


def test_every_sampling_option_is_a_field() -> None:
    assert set(_SAMPLING) == set(SamplingOptions.__annotations__) - NOT_OVER_HTTP


def test_every_other_name_is_of_a_field() -> None:
    known = {*GENERATION, "thinking_budget"}
    assert {*_ALIASES.values()} <= known
    assert not {*_ALIASES} & {*_SAMPLING}
