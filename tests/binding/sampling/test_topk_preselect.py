"""The preselected candidates include every token that C could choose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.wide_gguf import write_wide

from llama_cffi.binding import Candidates, Model, SamplerChain
from llama_cffi.binding.sampling.topk_preselect import Preselection
from llama_cffi.errors import GenerationError

N_VOCAB = 8229  # not a multiple of the block size


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide(tmp_path_factory.mktemp("wide") / "wide.gguf", N_VOCAB)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_vocab=st.integers(640, 3000),
    k=st.integers(1, 8),
    window=st.integers(0, 6),
    n_accepted=st.integers(0, 8),
    n_biased=st.integers(0, 3),
    digits=st.integers(0, 6),
)
def test_nothing_else_can_be_among_the_largest(
    seed: int, n_vocab: int, k: int, window: int, n_accepted: int, n_biased: int, digits: int
) -> None:
    rng = np.random.default_rng(seed)
    # Few digits make ties. Lowering the largest logits is the hardest case.
    logits = rng.normal(0, 3, n_vocab).round(digits).astype(np.float32)
    biased = rng.choice(n_vocab, n_biased, replace=False).tolist()
    lowered = np.argsort(-logits)[: min(window, n_accepted)]
    preselection = Preselection(n_vocab)
    preselection.add_penalty(window)
    preselection.add_bias(biased)
    preselection.add_top_k(k)
    ids = preselection.ids(logits, n_accepted)
    if ids is None:  # more than half of the blocks
        assert k + window + n_biased > n_vocab // 64 // 2
        return
    assert (np.diff(ids) > 0).all()
    after = logits.copy()
    after[lowered] -= rng.exponential(5, len(lowered)).astype(np.float32)
    after[biased] += rng.normal(0, 10, n_biased).astype(np.float32)
    outside = np.setdiff1d(np.arange(n_vocab), ids)
    assert after[outside].max(initial=-np.inf) < np.sort(after)[-k]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 63, 64, 1000, 8191, 8192, 8228])
@pytest.mark.parametrize("cut", [True, False])
def test_nan_is_found_anywhere(value: float, where: int, cut: bool) -> None:
    logits = np.random.default_rng(0).normal(size=N_VOCAB).astype(np.float32)
    logits[where] = value
    preselection = Preselection(N_VOCAB)
    if cut:
        preselection.add_top_k(40)
    else:
        preselection.add_other()
    with pytest.raises(GenerationError, match=r"NaN|\+inf"):
        preselection.ids(logits, 0)
    logits[where] = -np.inf
    assert (preselection.ids(logits, 0) is not None) == cut
    logits[:] = -np.inf
    with pytest.raises(GenerationError, match="forbidden"):
        preselection.ids(logits, 0)


LOGITS = np.random.default_rng(0).normal(size=N_VOCAB).astype(np.float32)


@pytest.mark.parametrize(
    ("add", "at_most"),
    [
        (lambda p: p.add_top_k(40), 60),
        (lambda p: (p.add_top_k(40), p.add_other(), p.add_penalty(10**6), p.add_top_k(5)), 60),
        (lambda p: (p.add_penalty(10), p.add_top_k(10)), 30),
        (lambda p: (p.add_penalty(10**6), p.add_greedy()), 120),
        (lambda p: p.add_greedy(), 5),
        (lambda p: (p.add_top_k(5), p.add_greedy()), 10),
    ],
)
def test_number_of_preselected_tokens(add: Callable[[Preselection], object], at_most: int) -> None:
    preselection = Preselection(N_VOCAB)
    add(preselection)
    ids = preselection.ids(LOGITS, 50)
    assert ids is not None
    assert len(ids) <= at_most


@pytest.mark.parametrize(
    "add",
    [
        lambda p: None,
        lambda p: p.add_other(),
        lambda p: (p.add_other(), p.add_top_k(40)),
        lambda p: (p.add_penalty(10), p.add_other(), p.add_greedy()),
        lambda p: (p.add_greedy(), p.add_other()),
        lambda p: (p.add_greedy(), p.add_top_k(5)),
        lambda p: p.add_top_k(100),
        lambda p: (p.add_penalty(10**6), p.add_top_k(40)),
        lambda p: (p.add_bias(range(300)), p.add_top_k(1)),
    ],
)
def test_c_gets_the_whole_vocabulary(add: Callable[[Preselection], object]) -> None:
    preselection = Preselection(N_VOCAB)
    add(preselection)
    assert preselection.ids(LOGITS, 50) is None
    assert not preselection.is_argmax


def test_reset_clears_the_penalty_window(wide_model: Path) -> None:
    with Model(wide_model, vocab_only=True) as model:
        chain = SamplerChain(model).add_penalties(1000, 1.5).add_top_k(10)
        for token in range(100):
            chain.accept(token)
        candidates = Candidates(model)
        assert chain._preselection.ids(LOGITS, chain._n_accepted) is None
        chain.reset()
        ids = chain._preselection.ids(LOGITS, chain._n_accepted)
        assert ids is not None
        candidates.fill_some(LOGITS, ids)
        chain.apply(candidates)
        assert candidates.array["id"].tolist() == np.argsort(-LOGITS)[:10].tolist()


# Two chains with the same seed: one samples as usual, one in C alone.
TWINS = """
    import json, sys
    import numpy as np
    from llama_cffi.binding import Batch, Context, Model, SamplerChain
    from llama_cffi.binding.sampling.samplers import available

    model = Model(sys.argv[1])
    context = Context(model, n_ctx=32, n_threads=1)
    batch = Batch(1)
    batch.fill([1], 0)
    context.decode(batch)
    row = context.logits()  # C's own memory
    sample = model.library.lib.llama_sampler_sample
    rng = np.random.default_rng(3)
    # A few rows repeatedly, so that penalties have an effect.
    rows = [rng.normal(0, 3, len(row)).astype(np.float32) for _ in range(5)]
    for r in rows:
        r[rng.choice(len(row), 50)] = -np.inf
    tied = [r.round(1) for r in rows]
    ids = lambda chain: chain._preselection.ids(rows[0], chain._n_accepted)
    for name, *samplers in json.load(open(sys.argv[2])):
        if not {kind for kind, *_ in samplers} <= available(model.library) | {
            "dist", "greedy", "mirostat_v2", "logit_bias", "typical", "temp", "temp_ext"
        }:
            continue
        chains = [SamplerChain(model) for _ in range(2)]
        for chain in chains:
            for kind, *args in samplers:
                if kind == "logit_bias":
                    args = [{int(token): value for token, value in args[0].items()}]
                getattr(chain, "add_" + kind)(*args)
        fast, slow = chains
        out, few = [], 0
        for step in range(600):
            row[:] = rows[step % 5] if step < 500 else tied[step % 5]
            few += fast._preselection.is_argmax or ids(fast) is not None
            mine, c = fast.sample(context), sample(slow.ptr, context.ptr, -1)
            out.append("same" if mine == c else "tied" if row[mine] == row[c] else "other")
        print(json.dumps([name, few, out]))
"""
BEFORE = [["penalties", 16, 1.3, 0.2, 0.1]]
BIAS = ["logit_bias", {"5": 4.0, "70": 9.0, "8228": float("-inf")}]
DRY = ["dry", 2.0, 1.75, 1, 16]
DIST = ["dist", 9]
RECIPES = [
    ["greedy", ["greedy"]],
    ["penalties greedy", *BEFORE, ["greedy"]],
    ["bias greedy", BIAS, ["greedy"]],
    ["top_k 1", ["top_k", 1], DIST],
    ["llama-cli", ["top_k", 40], ["top_p", 0.9], ["min_p", 0.05], ["temp", 0.8], DIST],
    ["penalties", *BEFORE, ["top_k", 20], ["temp", 0.5], DIST],
    ["all", BIAS, *BEFORE, DRY, ["top_k", 20], ["typical", 0.9], ["temp_ext", 0.8, 0.3], DIST],
    ["xtc", DRY, ["top_k", 20], ["xtc", 0.5, 0.05, 1, 4], DIST],
    ["mirostat", ["top_k", 30], ["mirostat_v2", 3]],
    ["cut twice", ["top_k", 30], *BEFORE, ["top_k", 4], DIST],
]
WHOLE = [
    ["raising", ["penalties", 16, 0.8], ["top_k", 20], DIST],
    ["sigma", ["top_n_sigma", 1.0], ["top_k", 20], DIST],
    ["min_p", ["min_p", 0.1], ["top_k", 20], DIST],
    ["temp", ["temp", 0.5], DIST],
    ["large k", ["top_k", 500], DIST],
]


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_same_draws_as_c_alone(build: str, child: Child, wide_model: Path, tmp_path: Path) -> None:
    (tmp_path / "recipes.json").write_text(json.dumps(RECIPES + WHOLE), encoding="utf-8")
    done = child(TWINS, wide_model, tmp_path / "recipes.json", LLAMA_CFFI_BUILD=build)
    assert done.stderr == ""
    results = {name: (few, out) for name, few, out in map(json.loads, done.stdout.splitlines())}
    assert len(results) == len(RECIPES + WHOLE) - (3 if build == OLD else 0)
    for recipe in RECIPES + WHOLE:
        if recipe[0] not in results:
            continue
        few, out = results[str(recipe[0])]
        assert few == (0 if recipe in WHOLE else 600), recipe
        assert set(out[:500]) == {"same"}, recipe
        # Which of equal logits comes first is as undefined as in C; greedy takes the first.
        if recipe[-1] == ["greedy"]:
            assert set(out) == {"same"}, recipe
        if recipe[0] in ("top_k 1", "llama-cli"):
            assert set(out) <= {"same", "tied"}, recipe
