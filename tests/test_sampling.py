from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cffi import SamplingParams
from llama_cffi.binding import Model
from llama_cffi.errors import ValidationError
from llama_cffi.sampling import build_chain

ANY = st.one_of(
    st.floats(), st.integers(-(2**40), 2**40), st.none(), st.text(max_size=2), st.booleans()
)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model, vocab_only=True) as model:
        yield model


@given(st.dictionaries(st.sampled_from(sorted(SamplingParams.__dataclass_fields__)), ANY))
def test_valid_parameters_make_a_chain(model: Model, options: dict[str, object]) -> None:
    """Whatever SamplingParams accepts, every sampler in C accepts too."""
    try:
        params = SamplingParams(**options)  # type: ignore[arg-type]
    except ValidationError:
        return
    with build_chain(model, params) as chain:
        assert len(chain) >= 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": 1e-9},
        {"temperature": "0"},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": 1.01},
        {"min_p": -1},
        {"repeat_penalty": 0},
        {"penalty_freq": math.inf},
        {"penalty_last_n": 2**31},
        {"seed": 2**32},
        {"seed": -2},
        {"seed": 0.5},
    ],
)
def test_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        SamplingParams(**options)  # type: ignore[arg-type]


def test_numpy_numbers() -> None:
    params = SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint32(7))
    assert params.top_k == 3


def test_repeat_penalty_is_off_when_greedy() -> None:
    assert SamplingParams(temperature=0).effective_repeat_penalty == 1.0
    assert SamplingParams(temperature=0.7).effective_repeat_penalty == 1.1
    assert not SamplingParams(temperature=0).penalises
    assert SamplingParams(temperature=0, penalty_freq=0.1).penalises
    assert not SamplingParams(penalty_last_n=0).penalises
