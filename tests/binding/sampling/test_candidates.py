from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llama_cffi.binding import Candidates, Model, SamplerChain
from llama_cffi.errors import GenerationError, ValidationError


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model, vocab_only=True) as model:
        yield model


@pytest.fixture
def candidates(model: Model) -> Candidates:
    candidates = Candidates(model)
    candidates.fill(np.linspace(3, -3, candidates.n_vocab, dtype=np.float32))
    return candidates


def test_the_layout_is_c_s(model: Model, candidates: Candidates) -> None:
    ffi, array = model.library.ffi, candidates.array
    assert array.itemsize == ffi.sizeof("llama_token_data")
    for field in ("id", "logit", "p"):
        assert array.dtype.fields is not None
        assert array.dtype.fields[field][1] == ffi.offsetof("llama_token_data", field)
    array["logit"][7], array["p"][7] = 42, 0.5
    assert candidates.struct.data[7].id == 7
    assert (candidates.struct.data[7].logit, candidates.struct.data[7].p) == (42, 0.5)


def test_fill_starts_again_in_the_same_memory(model: Model, candidates: Candidates) -> None:
    logits = np.random.default_rng(0).normal(size=259).astype(np.float32)
    with SamplerChain(model).add_top_k(5).add_dist(1) as chain:
        address = candidates.struct.data
        for _ in range(3):
            candidates.fill(logits)
            assert (len(candidates), candidates.selected, candidates.sorted) == (259, -1, False)
            assert candidates.array["id"].tolist() == list(range(259))
            assert (candidates.array["logit"] == logits).all()
            assert not candidates.array["p"].any()
            chain.apply(candidates)
            assert (len(candidates), candidates.sorted) == (5, True)
            assert candidates.array["id"].tolist() == np.argsort(-logits)[:5].tolist()
            assert candidates.array["id"][candidates.selected] == candidates.token()
            assert candidates.array["p"].sum() == pytest.approx(1)
            assert candidates.struct.data == address


def test_array_follows_a_sampler_that_drops_the_first(model: Model, candidates: Candidates) -> None:
    logits = np.full(259, -20, np.float32)
    logits[[10, 20, 30]] = 5, 4.9, 4.8
    candidates.fill(logits)
    with SamplerChain(model).add_top_k(3).add_xtc(1, 0.1, seed=1).add_greedy() as chain:
        assert chain.choose(candidates) == 30
    assert candidates.array["id"].tolist() == [30]
    candidates.fill(logits)
    assert len(candidates.array) == 259


@pytest.mark.parametrize("shape", [(258,), (260,), (1, 259), (0,)])
def test_other_shapes(candidates: Candidates, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=r"\(259,\)"):
        candidates.fill(np.zeros(shape, np.float32))


def test_invalid_candidates(model: Model, candidates: Candidates) -> None:
    with SamplerChain(model).add_greedy() as chain:
        for value, message in ((np.nan, "NaN"), (np.inf, r"\+inf")):
            candidates.fill(np.zeros(259, np.float32))
            candidates.array["logit"][100] = value
            with pytest.raises(GenerationError, match=message):
                chain.apply(candidates)
        candidates.fill(np.full(259, -np.inf, np.float32))
        with pytest.raises(GenerationError, match="forbidden"):
            chain.apply(candidates)
        for id in (-1, 259, 2**31 - 1):
            candidates.fill(np.zeros(259, np.float32))
            candidates.array["id"][3] = id
            with pytest.raises(ValidationError, match=r"0\.\.258"):
                chain.apply(candidates)
        with pytest.raises(ValidationError, match="fill"):
            chain.apply(Candidates(model))


def test_token_must_be_selected_and_possible(candidates: Candidates) -> None:
    with pytest.raises(GenerationError, match="no sampler selected"):
        candidates.token()
    candidates.struct.selected = 259
    with pytest.raises(GenerationError, match="no sampler selected"):
        candidates.token()
    candidates.struct.selected = 4
    assert candidates.token() == 4
    candidates.array["p"][4] = np.nan
    with pytest.raises(GenerationError, match="probability of the chosen token 4"):
        candidates.token()
    candidates.array["logit"][4] = -np.inf
    with pytest.raises(GenerationError, match="forbidden"):
        candidates.token()


def test_another_model(candidates: Candidates, tiny_model: Path) -> None:
    with (
        Model(tiny_model, vocab_only=True) as other,
        SamplerChain(other).add_greedy() as chain,
        pytest.raises(ValidationError, match="another model"),
    ):
        chain.choose(candidates)


def test_a_chain_that_selects_nothing(model: Model, candidates: Candidates) -> None:
    with SamplerChain(model).add_top_k(5) as chain:
        chain.apply(candidates)
        assert (len(candidates), candidates.selected) == (5, -1)
        with pytest.raises(ValidationError, match="selects"):
            chain.choose(candidates)
