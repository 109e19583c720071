from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

from llama_cffi import LlamaGrammar, SamplingParams
from llama_cffi.binding import Candidates, Context, Model
from llama_cffi.errors import GrammarError, ValidationError
from llama_cffi.generation.sampler_chains import ChainCache, build_chain

ANY = st.one_of(
    st.floats(), st.integers(-(2**40), 2**40), st.none(), st.text(max_size=2), st.booleans()
)
NUMBERS = sorted(
    set(SamplingParams.__dataclass_fields__)
    - {"grammar", "grammar_root", "grammar_triggers", "logits_processor"}
)


class Recorder:
    """An output that records accepted tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.accept = self.tokens.append


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NUMBERS), ANY, max_size=6))
def test_valid_parameters_make_a_working_chain(
    model: Model, context: Context, options: dict[str, object]
) -> None:
    """Every value that SamplingParams accepts is accepted by the samplers in C."""
    try:
        params = SamplingParams(**options)  # type: ignore[arg-type]
    except (ValidationError, TypeError):
        return
    with build_chain(model, params) as chain:
        assert len(chain) >= 1
        assert 0 <= chain.sample(context) < model.vocab.n_tokens


def test_samplers_and_their_order(model: Model) -> None:
    def names(**options: Any) -> list[str]:
        with build_chain(model, SamplingParams(**options)) as chain:
            return [name.lstrip("?+") for name in chain.names]

    assert names() == ["top-k", "top-p", "min-p", "temp", "dist"]
    assert names(temperature=0) == ["greedy"]
    assert names(temperature=0, repeat_penalty=1.1, top_k=3) == ["penalties", "greedy"]
    assert names(samplers="temperature;top_p;top_k") == ["temp", "top-p", "top-k", "dist"]
    assert names(mirostat_mode=1, repeat_penalty=1.1) == ["temp", "mirostat"]
    assert names(mirostat_mode=2) == ["temp", "mirostat-v2"]
    assert names(samplers="adaptive_p", adaptive_target=0.5) == ["adaptive-p"]
    infill = {"samplers": "top_k;infill;temperature"}
    assert names(**infill) == ["top-k", "infill", "temp", "dist"]
    assert names(**infill, temperature=0) == ["top-k", "infill", "greedy"]
    everything = names(
        logit_bias={1: 0.5}, logits_processor=[lambda ids, scores: None], repeat_penalty=1.1,
        dry_multiplier=0.8, top_n_sigma=1.5, typical_p=0.9, xtc_probability=0.1,
        dynatemp_range=0.3,
    )  # fmt: skip
    assert everything == [
        "logit-bias", "logits-processors", "penalties", "dry", "top-n-sigma", "top-k", "typical",
        "top-p", "min-p", "xtc", "temp-ext", "dist",
    ]  # fmt: skip


def test_ignore_eos_forbids_every_token_that_ends_an_answer(model: Model) -> None:
    ends = model.vocab.eog_tokens
    assert ends
    with build_chain(model, SamplingParams(ignore_eos=True, seed=1)) as chain:
        candidates = Candidates(model)
        scores = np.zeros(model.vocab.n_tokens, np.float32)
        scores[[*ends]] = 100
        for _ in range(20):
            candidates.fill(scores)
            assert chain.choose(candidates) not in ends
    for grammar in ({"grammar": 'root ::= "a"'}, {"structured": LlamaGrammar.from_regex("a")}):
        with pytest.raises(ValidationError, match="ignore_eos"):
            SamplingParams(ignore_eos=True, **grammar)  # type: ignore[arg-type]


def test_chains_are_reused(model: Model, context: Context) -> None:
    cache, recorder = ChainCache(model), Recorder()
    params = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=5)
    chain = cache.acquire(params)
    chain.tap.output = recorder  # type: ignore[assignment]
    first = [chain.sample(context) for _ in range(20)]
    assert recorder.tokens == first
    assert len(set(first)) > 5
    cache.release(params, chain)
    same = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=5)
    again = cache.acquire(same)
    assert again is chain
    assert [again.sample(context) for _ in range(20)] == first  # it was reset
    assert recorder.tokens == first  # it was released
    twin = cache.acquire(same)
    assert twin is not chain  # that one is in use
    assert [twin.sample(context) for _ in range(20)] == first
    others = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=6)
    other = cache.acquire(others)
    assert [other.sample(context) for _ in range(20)] != first
    cache.release(params, chain)
    for k in range(1, 17):
        cache.release(SamplingParams(top_k=k), cache.acquire(SamplingParams(top_k=k)))
    assert chain.closed
    cache.release(others, other)
    cache.close()
    assert other.closed


def test_random_seeds_differ(model: Model, context: Context) -> None:
    cache = ChainCache(model)
    params = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0)
    draws, seeds = [], []
    for _ in range(3):
        chain = cache.acquire(params)
        draws.append([chain.sample(context) for _ in range(20)])
        seeds.append(chain.seed)
        cache.release(params, chain)
    assert len({tuple(d) for d in draws}) == len(set(seeds)) == 3
    # The reported seed reproduces the draws.
    assert seeds[1] is not None
    again = build_chain(model, SamplingParams(2.0, top_k=0, top_p=1.0, min_p=0.0, seed=seeds[1]))
    assert [again.sample(context) for _ in range(20)] == draws[1]
    cache.close()


def test_logits_processors(model: Model, context: Context) -> None:
    seen: list[list[int]] = []

    def only(ids: NDArray[np.int32], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(ids.tolist())
        assert scores.shape == (259,)
        assert scores.dtype == np.float32
        return np.where(np.arange(259) == 7 + len(ids), scores, -np.inf)

    def forbid(_ids: NDArray[np.int32], scores: NDArray[np.float32]) -> None:
        scores[10] = -np.inf

    with build_chain(model, SamplingParams(logits_processor=[only], seed=1)) as chain:
        chain.accept(200)
        assert [chain.sample(context) for _ in range(3)] == [8, 9, 10]
        assert seen == [[200], [200, 8], [200, 8, 9]]
        chain.reset()
        assert chain.sample(context) == 7
    both = SamplingParams(temperature=0, logits_processor=[lambda _i, s: s * 0, forbid])
    with build_chain(model, both) as chain:
        assert chain.sample(context) == 0
    plain = SamplingParams(temperature=0, logits_processor=[lambda _i, s: None])
    with build_chain(model, plain) as chain:
        assert chain.sample(context) == int(context.logits().argmax())


def test_errors_of_logits_processors_reach_the_caller(model: Model, context: Context) -> None:
    def broken(_ids: object, _scores: object) -> None:
        raise LookupError("mine")

    cases: list[tuple[Any, type[Exception], str]] = [
        (broken, LookupError, "mine"),
        (lambda _i, s: s[:5], ValidationError, r"shape \(5,\)"),
    ]
    for processor, error, match in cases:
        with build_chain(model, SamplingParams(logits_processor=[processor])) as chain:
            for _ in range(2):
                with pytest.raises(error, match=match):
                    chain.sample(context)


def test_errors_close_the_chain(model: Model) -> None:
    with pytest.raises(ValidationError, match="259"):
        build_chain(model, SamplingParams(logit_bias={259: 1.0}))
    with pytest.raises(GrammarError):
        build_chain(model, SamplingParams(grammar="root ::= ("))


def test_grammar(model: Model, context: Context) -> None:
    params = SamplingParams(grammar='root ::= "ab" [c-e]+', temperature=3.0, top_k=0, seed=3)
    with build_chain(model, params) as chain:
        for _ in range(2):
            text = bytes(chain.sample(context) for _ in range(2))
            tail = [chain.sample(context) for _ in range(5)]
            assert text == b"ab" or model.vocab.detokenize(list(text)) == "ab"
            word = model.vocab.detokenize([t for t in tail if not model.vocab.is_eog(t)])
            assert set(word) <= set("cde")
            chain.reset()


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_every_build_samples_with_the_samplers_it_has(
    child: Child, tiny_model: Path, build: str
) -> None:
    code = """
        import sys
        from llama_cffi import SamplingParams
        from llama_cffi.binding import Batch, Context, Model
        from llama_cffi.generation.sampler_chains import build_chain
        from llama_cffi.errors import ValidationError
        model = Model(sys.argv[1])
        context, batch = Context(model, n_ctx=64, n_threads=1), Batch(4)
        batch.fill([1, 2, 3], 0)
        context.decode(batch)
        for options in (
            {}, {"temperature": 0}, {"mirostat_mode": 1}, {"mirostat_mode": 2},
            {"dry_multiplier": 1.0},
            {"xtc_probability": 0.5}, {"top_n_sigma": 1.0}, {"typical_p": 0.5},
            {"dynatemp_range": 0.5}, {"repeat_penalty": 1.3, "frequency_penalty": 0.1},
            {"logit_bias": {65: 100.0}}, {"samplers": "adaptive_p", "adaptive_target": 0.3},
            {"samplers": "infill"}, {"grammar": 'root ::= "a"+'},
        ):
            try:
                with build_chain(model, SamplingParams(seed=1, **options)) as chain:
                    tokens = [chain.sample(context) for _ in range(5)]
                    assert all(0 <= t < 259 for t in tokens), tokens
                    assert "logit_bias" not in options or set(tokens) == {65}
            except ValidationError as e:
                print(next(iter(options)))
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    lacking = set(result.stdout.split())
    if build == NEWEST:
        assert not lacking
    assert lacking <= {"dry_multiplier", "top_n_sigma", "samplers", "xtc_probability"}
