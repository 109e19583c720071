from __future__ import annotations

import math

import numpy as np
import pytest

from llama_cffi import SamplingParams
from llama_cffi.errors import ValidationError


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": 1e-9},
        {"temperature": "0"},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": 1.01},
        {"min_p": -1},
        {"typical_p": 0},
        {"top_n_sigma": math.inf},
        {"xtc_probability": 1.1},
        {"xtc_threshold": -0.1},
        {"dynatemp_range": -1},
        {"mirostat_mode": 3},
        {"mirostat_mode": 1.0},
        {"adaptive_decay": 1.0},
        {"repeat_penalty": 0},
        {"frequency_penalty": math.inf},
        {"penalty_last_n": 2**31},
        {"dry_multiplier": -1},
        {"dry_penalty_last_n": -2},
        {"dry_sequence_breakers": "ab"},
        {"dry_sequence_breakers": [1]},
        {"min_keep": -1},
        {"dry_base": 0.5},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {1: math.inf}},
        {"logit_bias": {"x": 2.0}},
        *(
            {"logit_bias": {key: 2.0}}
            for key in (1.5, "1.5", True, None, "", "-1", "1_0", " 1", "²")
        ),
        {"logits_processor": [3]},
        {"grammar": b"root ::= 1"},
        {"grammar_triggers": "word"},
        {"grammar_triggers": [b"word"]},
        {"grammar_triggers": [True]},
        {"samplers": "top_k;top_q"},
        {"samplers": [3]},
        {"seed": 2**32},
        {"seed": 2**32 - 1},  # C's value for a random seed
        {"seed": -2},
        {"seed": 0.5},
    ],
    ids=str,
)
def test_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        SamplingParams(**options)  # type: ignore[arg-type]


def test_numpy_numbers() -> None:
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint32(7))
    assert params.top_k == 3


def test_equal_parameters_have_equal_hashes() -> None:
    def processor(ids: object, scores: object) -> None: ...

    first, second = (
        SamplingParams(
            logit_bias={3: -1.0, 4: -math.inf},
            dry_sequence_breakers=breakers,
            logits_processor=[processor],
            samplers=samplers,
        )
        for breakers, samplers in ((["a"], "temp; top-k"), (("a",), ["temperature", "top_k"]))
    )
    assert first == second
    assert hash(first) == hash(second)
    assert first.samplers == ("temperature", "top_k")
    assert first != SamplingParams()


def test_n_history() -> None:
    assert SamplingParams().n_history == 0
    assert SamplingParams(repeat_penalty=1.1).n_history == 64
    assert SamplingParams(repeat_penalty=1.1, penalty_last_n=0).n_history == 0
    assert SamplingParams(repeat_penalty=1.1, samplers="top_k").n_history == 0
    assert SamplingParams(frequency_penalty=0.1, temperature=0).n_history == 64
    assert SamplingParams(dry_multiplier=1.0, dry_penalty_last_n=200).n_history == 200
    assert SamplingParams(dry_multiplier=1.0, dry_penalty_last_n=-1).n_history is None
    assert SamplingParams(logits_processor=[lambda ids, scores: None]).n_history is None
