"""Draws from fixed logits against numpy's own arithmetic, on three builds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

Floats = NDArray[np.float64]

N_DRAWS, N_VOCAB = 20_000, 259
ACCEPTED = [200, 7, 7, 3, 9, 7, 3]  # the first is out of the penalties' window of 6
LOGITS: Floats = np.random.default_rng(0).normal(0, 2, N_VOCAB).astype(np.float32).astype(float)
LOGITS[[7, 3, 200]] = 5.5, -0.5, 5
BEST = int(LOGITS.argmax())


def softmax(logits: Floats) -> Floats:
    p = np.exp(logits - logits.max())
    return p / p.sum()


def keep(logits: Floats, ids: Sequence[int] | NDArray[Any]) -> Floats:
    kept = np.full_like(logits, -np.inf)
    kept[ids] = logits[ids]
    return kept


def top_k(logits: Floats, k: int) -> Floats:
    return keep(logits, np.argsort(-logits)[:k])


def top_p(logits: Floats, p: float) -> Floats:
    order = np.argsort(-logits)
    return keep(logits, order[: np.searchsorted(np.cumsum(softmax(logits)[order]), p) + 1])


def min_p(logits: Floats, p: float) -> Floats:
    return keep(logits, np.flatnonzero(softmax(logits) >= p * softmax(logits).max()))


def typical(logits: Floats, p: float) -> Floats:
    surprise = -np.log(softmax(logits))
    order = np.argsort(abs(surprise - (softmax(logits) * surprise).sum()))
    mass = np.cumsum(softmax(logits)[order])
    return keep(logits, order[: np.searchsorted(mass, p, side="right") + 1])


def top_n_sigma(logits: Floats, n: float) -> Floats:
    return keep(logits, np.flatnonzero(logits >= logits.max() - n * logits.std()))


def penalties(logits: Floats, last_n: int, repeat: float, freq: float, present: float) -> Floats:
    out = logits.copy()
    for token in set(ACCEPTED[-last_n:]):
        scaled = out[token] * repeat if out[token] <= 0 else out[token] / repeat
        out[token] = scaled - ACCEPTED[-last_n:].count(token) * freq - present
    return out


def temp_ext(logits: Floats, temperature: float, delta: float, exponent: float) -> Floats:
    p = softmax(logits)
    entropy = -(p * np.log(p)).sum() / np.log(len(p))
    low, high = max(0, temperature - delta), temperature + delta
    return logits / (low + (high - low) * entropy**exponent)


def bias(logits: Floats, values: dict[int, float]) -> Floats:
    out = logits.copy()
    for token, value in values.items():
        out[token] += value
    return out


def xtc(logits: Floats, probability: float, threshold: float) -> Floats:
    p = softmax(logits)
    above = np.flatnonzero(p >= threshold)
    left = logits.copy()
    left[above[above != above[p[above].argmin()]]] = -np.inf
    return probability * softmax(left) + (1 - probability) * p


Reference = Callable[[Floats], Floats]
BIASES = {7: -float("inf"), 100: 6.0, 3: 4.0}
# The samplers before dist -> the probabilities of all tokens.
CASES: dict[str, tuple[list[list[Any]], Reference]] = {
    "none": ([], softmax),
    "top_k": ([["top_k", 10]], lambda x: softmax(top_k(x, 10))),
    "top_p": ([["top_p", 0.8]], lambda x: softmax(top_p(x, 0.8))),
    "min_p": ([["min_p", 0.1]], lambda x: softmax(min_p(x, 0.1))),
    "min_keep": ([["top_p", 0.01, 4]], lambda x: softmax(top_k(x, 4))),
    "temp": ([["temp", 0.7]], lambda x: softmax(x / 0.7)),
    "top_p, temp": ([["top_p", 0.8], ["temp", 1.5]], lambda x: softmax(top_p(x, 0.8) / 1.5)),
    "penalties": (
        [["penalties", 6, 1.5, 0.3, 0.2]],
        lambda x: softmax(penalties(x, 6, 1.5, 0.3, 0.2)),
    ),
    "typical": ([["typical", 0.6]], lambda x: softmax(typical(x, 0.6))),
    "temp_ext": ([["temp_ext", 0.8, 0.5, 1.2]], lambda x: softmax(temp_ext(x, 0.8, 0.5, 1.2))),
    "temp_ext to 0": ([["temp_ext", 0.8, 2.0]], lambda x: softmax(temp_ext(x, 0.8, 2.0, 1))),
    "logit_bias": ([["logit_bias", BIASES]], lambda x: softmax(bias(x, BIASES))),
    "top_n_sigma": ([["top_n_sigma", 1.5]], lambda x: softmax(top_n_sigma(x, 1.5))),
    "xtc": ([["xtc", 0.4, 0.04, 1, 77]], lambda x: xtc(x, 0.4, 0.04)),
    "llama-cli": (
        [["penalties", 6, 1.1], ["top_k", 40], ["top_p", 0.9], ["min_p", 0.05], ["temp", 0.8]],
        lambda x: softmax(min_p(top_p(top_k(penalties(x, 6, 1.1, 0, 0), 40), 0.9), 0.05) / 0.8),
    ),
}
LACKING = {OLD: {"top_n_sigma", "xtc"}, MIDDLE: set(), NEWEST: set()}


def agrees(counts: NDArray[Any], p: Floats) -> bool:
    """Pearson's chi-square; rare tokens are one bin. True draws fail once in 30,000 times."""
    if counts[p == 0].any():
        return False
    expected = p * counts.sum()
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    df = len(expected) - 1
    # Wilson and Hilferty's quantile at 4 sigma.
    limit = df * (1 - 2 / (9 * df) + 4 * np.sqrt(2 / (9 * df))) ** 3
    return bool(((observed - expected) ** 2 / expected).sum() < limit)


DRAW = """
    import json, sys
    import numpy as np
    from llama_cffi.binding import Candidates, Model, SamplerChain

    model = Model(sys.argv[1], vocab_only=True)
    logits = np.array(json.loads(sys.argv[2]), np.float32)
    accepted = json.loads(sys.argv[3])
    candidates = Candidates(model)
    for name, samplers, n in json.load(open(sys.argv[4])):
        chain = SamplerChain(model)
        for kind, *args in samplers:
            if kind == "logit_bias":
                args = [{int(token): value for token, value in args[0].items()}]
            getattr(chain, "add_" + kind)(*args)
        for token in accepted:
            chain.accept(token)
        drawn = []
        for _ in range(n):
            candidates.fill(logits)
            drawn.append(chain.choose(candidates))
        print(json.dumps([name, np.bincount(drawn, minlength=len(logits)).tolist()]))
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_draws_agree_with_numpy(build: str, child: Child, tiny_model: Any, tmp_path: Any) -> None:
    cases = [name for name in CASES if name not in LACKING[build]]
    todo = [(name, [*CASES[name][0], ["dist", 11]], N_DRAWS) for name in cases]
    (tmp_path / "todo.json").write_text(json.dumps(todo), encoding="utf-8")
    done = child(
        DRAW,
        tiny_model,
        json.dumps(LOGITS.tolist()),
        json.dumps(ACCEPTED),
        tmp_path / "todo.json",
        LLAMA_CFFI_BUILD=build,
    )
    assert done.stderr == ""
    counts = {name: np.array(c) for name, c in map(json.loads, done.stdout.splitlines())}
    assert list(counts) == cases
    wrong = [name for name in cases if not agrees(counts[name], CASES[name][1](LOGITS))]
    assert wrong == []
    # The test sees small differences.
    for name, other in (
        ("none", softmax(LOGITS / 1.1)),
        ("temp", softmax(LOGITS / 0.77)),
        ("top_k", softmax(top_k(LOGITS, 11))),
        ("top_k", softmax(top_k(LOGITS, 9))),
        ("penalties", softmax(penalties(LOGITS, 7, 1.5, 0.3, 0.2))),
        ("penalties", softmax(penalties(LOGITS, 6, 1.1, 0.3, 0.2))),
        ("typical", softmax(typical(LOGITS, 0.5))),
        ("temp_ext", softmax(temp_ext(LOGITS, 0.8, 0.5, 1.5))),
    ):
        assert not agrees(counts[name], other), name


SELECTING = """
    import json, sys
    from concurrent.futures import ThreadPoolExecutor
    import numpy as np
    from llama_cffi.binding import Candidates, Model, SamplerChain

    model = Model(sys.argv[1], vocab_only=True)
    logits = np.array(json.loads(sys.argv[2]), np.float32)

    def draw(chain, candidates=None):
        candidates = candidates or Candidates(model)
        drawn = []
        for _ in range(200):
            candidates.fill(logits)
            drawn.append(chain.choose(candidates))
            chain.accept(drawn[-1])
        return drawn

    def make(kind, args, seed):
        chain = SamplerChain(model).add_penalties(8, 1.2)
        if kind == "xtc":
            chain.add_xtc(0.5, 0.05, seed=seed)
            kind, args = "dist", []
        chain.add_top_k(20).add_temp(1.3)
        seed_last = kind == "adaptive_p"
        return getattr(chain, "add_" + kind)(*([*args, seed] if seed_last else [seed, *args]))

    for kind, *args in json.loads(sys.argv[3]):
        chain = make(kind, args, 5)
        first = draw(chain)
        chain.reset()
        with ThreadPoolExecutor(4) as pool:
            threads = list(pool.map(lambda s: draw(make(kind, args, s)), [5, 5, 5, 6]))
        print(json.dumps([first, draw(chain), *threads]))
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_the_same_seed_draws_the_same(build: str, child: Child, tiny_model: Any) -> None:
    kinds: list[list[Any]] = [["dist"], ["mirostat", 3.0, 0.2, 50], ["mirostat_v2", 3.0, 0.2]]
    if build != OLD:
        kinds.append(["xtc"])
    if build == NEWEST:
        kinds.append(["adaptive_p", 0.2, 0.9])
    logits = json.dumps(LOGITS.tolist())
    done = child(SELECTING, tiny_model, logits, json.dumps(kinds), LLAMA_CFFI_BUILD=build)
    assert done.stderr == ""
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(kinds)
    for first, after_reset, *same, other_seed in results:
        assert all(drawn == first for drawn in [after_reset, *same])
        assert other_seed != first
        # The 8 penalised tokens may let others in.
        assert set(first) <= set(np.argsort(-LOGITS)[:28].tolist())
        assert len(set(first)) > 3


def test_mirostat_and_adaptive_p_reach_their_target(tiny_model: Any) -> None:
    from llama_cffi.binding import Candidates, Model, SamplerChain

    logits = LOGITS.astype(np.float32)
    p = softmax(LOGITS)
    with Model(tiny_model, vocab_only=True) as model:
        candidates = Candidates(model)

        def mean(chain: SamplerChain, values: Floats) -> float:
            total = 0.0
            for _ in range(2000):
                candidates.fill(logits)
                token = chain.choose(candidates)
                chain.accept(token)
                total += values[token]
            return total / 2000

        chains = [SamplerChain(model).add_adaptive_p(target, 0.9, 1) for target in (0.05, 0.15)]
        assert 2 * mean(chains[0], p) < mean(chains[1], p)
        for kind in ("add_mirostat", "add_mirostat_v2"):
            low, high = (getattr(SamplerChain(model), kind)(1, tau) for tau in (1.5, 4.0))
            assert mean(low, -np.log2(p)) < mean(high, -np.log2(p)) - 1
