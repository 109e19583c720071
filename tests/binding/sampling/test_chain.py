from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.wide_gguf import write_wide

from llama_cffi.binding import Candidates, Context, CustomSampler, Model, SamplerChain
from llama_cffi.binding.sampling.grammar import Grammar
from llama_cffi.binding.sampling.samplers import available
from llama_cffi.errors import GenerationError, ValidationError


class Watched(Grammar):
    """Counts how often it is applied to all tokens."""

    applied = 0

    def apply(self, candidates: Candidates) -> None:
        self.applied += 1
        super().apply(candidates)


class DeadEnd(Grammar):
    """Allows nothing, like a grammar with characters that the vocabulary cannot spell."""

    def allows(self, token: int) -> bool:
        return False

    def apply(self, candidates: Candidates) -> None:
        candidates.array["logit"] = -np.inf


def test_greedy_is_argmax(context: Context, chain: SamplerChain) -> None:
    chain.add_greedy()
    expected = int(context.logits().argmax())
    assert [chain.sample(context), chain.sample(context), chain.sample(context, 2)] == [
        expected
    ] * 3


def test_greedy_is_the_same_without_numpy(
    context: Context, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_numpy: list[int] = []
    without: list[int] = []
    for heard in (with_numpy, without):
        with SamplerChain(model).add_greedy() as chain:
            chain.add_custom(CustomSampler(model, accept=heard.append))
            assert [chain.sample(context, i) for i in (-1, 2)] == heard
            chain.accept(7)
        monkeypatch.delitem(sys.modules, "numpy", raising=False)
    assert with_numpy == without
    assert without[-1] == 7


def test_top_k_1_is_greedy_whatever_the_seed(context: Context, chain: SamplerChain) -> None:
    chain.add_top_k(1).add_temp(1.5).add_dist(7)
    assert {chain.sample(context) for _ in range(5)} == {int(context.logits().argmax())}


def test_same_seed_same_draws(context: Context, model: Model) -> None:
    def draw(seed: int) -> list[int]:
        with SamplerChain(model).add_temp(2.0).add_dist(seed) as chain:
            first = [chain.sample(context) for _ in range(20)]
            chain.reset()
            assert [chain.sample(context) for _ in range(20)] == first
            return first

    assert draw(1) == draw(1) != draw(2)


def test_draws_follow_the_distribution(context: Context, chain: SamplerChain) -> None:
    chain.add_top_k(3).add_temp(1.0).add_dist(5)
    logits = context.logits().astype(np.float64)
    top = np.argsort(-logits)[:3]
    p = np.exp(logits[top] - logits[top].max())
    p /= p.sum()
    drawn = [chain.sample(context) for _ in range(3000)]
    assert set(drawn) <= set(top.tolist())
    share = np.array([drawn.count(t) / len(drawn) for t in top])
    assert np.abs(share - p).max() < 0.05


@pytest.mark.parametrize("penalty", [{"repeat": 1000.0}, {"frequency": 500.0}, {"presence": 500.0}])
def test_penalties_push_the_token_down(
    context: Context, chain: SamplerChain, penalty: dict[str, float]
) -> None:
    order = np.argsort(-context.logits())
    best, second = int(order[0]), int(order[1])
    assert context.logits()[best] > 0
    chain.add_penalties(8, **penalty).add_greedy()
    assert chain.sample(context) == best  # nothing accepted yet
    assert chain.sample(context) == second
    chain.reset()
    chain.accept(best)
    assert chain.sample(context) == second


def test_a_chain_must_select(context: Context, chain: SamplerChain) -> None:
    for add in (lambda: chain, lambda: chain.add_temp(1.0), lambda: chain.add_top_k(5)):
        with pytest.raises(ValidationError, match="selects"):
            add().sample(context)
    chain.add_greedy()
    chain.sample(context)
    with pytest.raises(ValidationError, match="selects"):
        chain.add_min_p(0.1).sample(context)
    assert len(chain) == 4


BAD = float("nan")


@pytest.mark.parametrize(
    "add",
    [
        lambda c: c.add_temp(BAD),
        lambda c: c.add_temp(0),
        lambda c: c.add_temp(-1),
        lambda c: c.add_temp(1e-30),
        lambda c: c.add_temp(float("inf")),
        lambda c: c.add_temp("x"),
        lambda c: c.add_top_p(BAD),
        lambda c: c.add_top_p(1.5),
        lambda c: c.add_top_p(0.5, -1),
        lambda c: c.add_min_p(-0.1),
        lambda c: c.add_min_p(0.5, 2**40),
        lambda c: c.add_top_k(2**40),
        lambda c: c.add_top_k(1.5),
        lambda c: c.add_dist("x"),
        lambda c: c.add_penalties(-1),
        lambda c: c.add_penalties(2**31 - 1),
        lambda c: c.add_penalties(64, 0.0),
        lambda c: c.add_penalties(64, 1e-9),
        lambda c: c.add_penalties(64, BAD),
        lambda c: c.add_penalties(64, 1.1, float("inf")),
        lambda c: c.add_penalties(64, 1.1, 0.0, BAD),
        lambda c: c.add_dist(-2),
        lambda c: c.add_dist(2**32),
        lambda c: c.add_typical(BAD),
        lambda c: c.add_typical(-0.1),
        lambda c: c.add_typical(0.5, -1),
        lambda c: c.add_temp_ext(0, 0.5),
        lambda c: c.add_temp_ext(1, -0.5),
        lambda c: c.add_temp_ext(1, BAD),
        lambda c: c.add_temp_ext(1, 0.5, -1),
        lambda c: c.add_temp_ext(1, 0.5, BAD),
        lambda c: c.add_xtc(1.1, 0.1),
        lambda c: c.add_xtc(0.5, BAD),
        lambda c: c.add_xtc(0.5, 0.1, -1),
        lambda c: c.add_xtc(0.5, 0.1, 1, "x"),
        lambda c: c.add_top_n_sigma(0),
        lambda c: c.add_top_n_sigma(-1),
        lambda c: c.add_top_n_sigma(BAD),
        lambda c: c.add_mirostat(1, -1),
        lambda c: c.add_mirostat(1, BAD),
        lambda c: c.add_mirostat(1, 5, BAD),
        lambda c: c.add_mirostat(1, 5, 0.1, 1),
        lambda c: c.add_mirostat(1, 5, 0.1, 2**31),
        lambda c: c.add_mirostat_v2(1, float("inf")),
        lambda c: c.add_mirostat_v2("x"),
        lambda c: c.add_adaptive_p(1.1, 0.9, 1),
        lambda c: c.add_adaptive_p(0.5, 1.0, 1),
        lambda c: c.add_adaptive_p(BAD, 0.9, 1),
        lambda c: c.add_dry(-1),
        lambda c: c.add_dry(BAD),
        lambda c: c.add_dry(1, 0.5),
        lambda c: c.add_dry(1, 1.75, -1),
        lambda c: c.add_dry(1, 1.75, 2, -2),
        lambda c: c.add_dry(1, 1.75, 2, 2**20 + 1),
        lambda c: c.add_dry(1, seq_breakers="abc"),
        lambda c: c.add_dry(1, seq_breakers=[""]),
        lambda c: c.add_dry(1, seq_breakers=["a\0b"]),
        lambda c: c.add_dry(1, seq_breakers=["x" * 41]),
        lambda c: c.add_dry(1, seq_breakers=["\u3002"]),
        lambda c: c.add_dry(1, seq_breakers=[b"x"]),
        lambda c: c.add_dry(1, seq_breakers=["x"] * 65),
        lambda c: c.add_logit_bias({259: 1.0}),
        lambda c: c.add_logit_bias({-1: 1.0}),
        lambda c: c.add_logit_bias({1.5: 1.0}),
        lambda c: c.add_logit_bias({1: BAD}),
        lambda c: c.add_logit_bias({1: float("inf")}),
        lambda c: c.add_logit_bias({1: 1e7}),
        lambda c: c.add_logit_bias({1: "x"}),
        lambda c: c.accept(259),
        lambda c: c.accept(1.5),
    ],
)
def test_numbers_out_of_range(chain: SamplerChain, add: Callable[[SamplerChain], object]) -> None:
    with pytest.raises(ValidationError):
        add(chain)
    assert len(chain) == 0


def test_another_model(context: Context, tiny_model: Path) -> None:
    with Model(tiny_model) as other:
        chain = SamplerChain(other).add_greedy()
        with pytest.raises(ValidationError, match="another model"):
            chain.sample(context)


def test_closed(context: Context, model: Model) -> None:
    grammar = Grammar(model, "root ::= [a-f]+")
    filled = Candidates(model)
    filled.fill(context.logits())
    chain = SamplerChain(model).add_greedy()
    chain.close()
    chain.close()
    for call in (
        lambda: chain.sample(context),
        lambda: chain.accept(1),
        chain.reset,
        chain.add_greedy,
        lambda: chain.add_dist(1),
        lambda: chain.add_temp(1.0),
        lambda: chain.add_top_k(1),
        lambda: chain.add_top_p(0.5),
        lambda: chain.add_min_p(0.5),
        lambda: chain.add_penalties(64, 1.1),
        lambda: chain.add_typical(0.5),
        lambda: chain.add_temp_ext(1, 0.5),
        lambda: chain.add_xtc(0.5, 0.1),
        lambda: chain.add_top_n_sigma(1),
        lambda: chain.add_mirostat(1),
        lambda: chain.add_mirostat_v2(1),
        lambda: chain.add_adaptive_p(0.5, 0.9, 1),
        lambda: chain.add_dry(1),
        lambda: chain.add_logit_bias({1: 1.0}),
        lambda: chain.add_infill(),
        lambda: chain.add_grammar(grammar),
        lambda: chain.choose(filled),
        lambda: chain.names,
        lambda: chain.seed,
        lambda: len(chain),
    ):
        with pytest.raises(ValidationError, match="closed"):
            call()


def test_names_and_seed(model: Model, chain: SamplerChain) -> None:
    assert (chain.names, chain.seed) == ([], None)
    chain.add_penalties(64, 1.1).add_top_k(40).add_temp(0.5).add_greedy()
    assert chain.names == ["penalties", "top-k", "temp", "greedy"]
    assert chain.seed is None
    assert chain.add_mirostat(7).add_xtc(0.5, 0.1, seed=9).seed == 7
    assert chain.add_dist(2**32 - 2).seed == 2**32 - 2


def test_a_random_seed_changes_at_each_reset(chain: SamplerChain) -> None:
    for seed in (None, -1, 2**32 - 1):
        seeds = set()
        for _ in range(4):
            seeds.add(chain.add_dist(seed).seed)
            chain.reset()
            seeds.add(chain.seed)
        assert len(seeds) > 4
        assert None not in seeds


SAMPLERS = ["top_k", "top_p", "min_p", "typ_p", "temperature", "penalties"]
LATER = ["xtc", "dry", "infill"]


@pytest.mark.parametrize(
    ("build", "has", "lacks"),
    [
        (OLD, SAMPLERS, [*LATER, "top_n_sigma", "adaptive_p"]),
        (MIDDLE, [*SAMPLERS, *LATER, "top_n_sigma"], ["adaptive_p"]),
        (NEWEST, [*SAMPLERS, *LATER, "top_n_sigma", "adaptive_p"], []),
    ],
)
def test_samplers_that_a_build_does_not_have(
    build: str, has: list[str], lacks: list[str], child: Child, tiny_model: Path
) -> None:
    done = child(
        """
        import sys
        from llama_cffi.binding import Model, SamplerChain
        from llama_cffi.binding.sampling.samplers import available
        from llama_cffi.errors import ValidationError

        model = Model(sys.argv[1], vocab_only=True)
        print(*sorted(available(model.library)))
        adds = {"xtc": (0.5, 0.1), "dry": (1,), "infill": (), "top_n_sigma": (1,),
                "adaptive_p": (0.5, 0.9, 1)}
        for name, args in adds.items():
            chain = SamplerChain(model)
            try:
                getattr(chain, "add_" + name)(*args)
            except ValidationError as e:
                assert len(chain) == 0 and "LLAMA_CFFI_BUILD" in str(e), e
                print(name)
        """,
        tiny_model,
        LLAMA_CFFI_BUILD=build,
    )
    assert done.stderr == ""
    first, *refused = done.stdout.splitlines()
    assert set(first.split()) == set(has)
    assert set(refused) == set(lacks)


def test_available_samplers(model: Model) -> None:
    assert available(model.library) >= {"top_k", "adaptive_p"}


def test_logit_bias(context: Context, chain: SamplerChain, model: Model) -> None:
    order = np.argsort(-context.logits())
    chain.add_logit_bias({int(order[0]): -float("inf")}).add_greedy()
    assert chain.sample(context) == order[1]
    with SamplerChain(model).add_logit_bias({200: 1000}).add_dist(1) as other:
        assert {other.sample(context) for _ in range(10)} == {200}
    with SamplerChain(model).add_logit_bias({}).add_greedy() as other:
        assert other.sample(context) == order[0]


def test_every_token_forbidden(context: Context, model: Model) -> None:
    bias = dict.fromkeys(range(259), -float("inf"))
    with Model(model.path, vocab_only=True) as small:
        for add in ("add_greedy", "add_dist", "add_mirostat_v2", "add_mirostat"):
            for chosen, logits in ((model, context.logits()), (small, np.zeros(259, np.float32))):
                chain = getattr(
                    SamplerChain(chosen).add_logit_bias(bias).add_top_k(9).add_min_p(0.1), add
                )(*([1] if "greedy" not in add else []))
                candidates = Candidates(chosen)
                candidates.fill(logits)
                with pytest.raises(GenerationError, match=r"forbidden|NaN"):
                    chain.choose(candidates)
                if chosen is model:
                    with pytest.raises(GenerationError, match=r"forbidden|NaN"):
                        chain.sample(context)


BROKEN = """
    import sys
    import numpy as np
    from llama_cffi.binding import Batch, Context, Model, SamplerChain
    from llama_cffi.errors import GenerationError

    model = Model(sys.argv[1])
    context = Context(model, n_ctx=32, n_threads=1)
    batch = Batch(1)
    batch.fill([1], 0)
    context.decode(batch)
    row = context.logits(copy=False)  # C's own memory
    good = row.copy()
    chains = {
        "greedy": lambda c: c.add_greedy(),
        "dist": lambda c: c.add_dist(1),
        "top_k": lambda c: c.add_top_k(40).add_dist(1),
        "large k": lambda c: c.add_top_k(200).add_dist(1),
        "penalties": lambda c: c.add_penalties(64, 1.5).add_top_k(40).add_top_p(0.9).add_dist(1),
        "penalties greedy": lambda c: c.add_penalties(64, 1.5).add_greedy(),
        "typical": lambda c: c.add_typical(0.5).add_dist(1),
        "min_p": lambda c: c.add_min_p(0.1, 5).add_dist(1),
        "top_p": lambda c: c.add_temp(0.5).add_top_p(0.5).add_dist(1),
        "mirostat": lambda c: c.add_mirostat(1),
        "mirostat_v2": lambda c: c.add_mirostat_v2(1),
        "temp_ext": lambda c: c.add_temp_ext(1, 1).add_dist(1),
    }
    def cases():
        for value in (np.nan, np.inf):
            for where in (slice(None), slice(0, 1), slice(len(row) - 1, None), slice(0, None, 3)):
                row[:] = good
                row[where] = value
                yield
        row[:] = -np.inf
        yield
        row[:] = good
        row[7], row[8] = np.inf, -np.inf
        yield
    for name, add in chains.items():
        chain = add(SamplerChain(model))
        row[:] = good
        first = [chain.sample(context) for _ in range(5)]
        chain.reset()
        errors = 0
        for _ in cases():
            try:
                print("chose", chain.sample(context))
            except GenerationError as e:
                errors += any(word in str(e) for word in ("NaN", "+inf", "forbidden"))
        row[:] = good
        again = [chain.sample(context) for _ in range(5)]
        print(name, errors, first == again)
"""


@pytest.mark.parametrize("n_vocab", [259, 8229])
@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_broken_logits_are_an_error_and_change_nothing(
    build: str, n_vocab: int, child: Child, tmp_path: Path
) -> None:
    path = write_wide(tmp_path / "wide.gguf", n_vocab)
    done = child(BROKEN, path, LLAMA_CFFI_BUILD=build)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    assert [line for line in lines if not line.endswith(" 10 True")] == []


def test_dry_penalizes_the_continuation_of_a_repetition(model: Model, chain: SamplerChain) -> None:
    candidates = Candidates(model)
    newline = model.vocab.tokenize("\n")[0]

    def lowered(tokens: list[int], **options: object) -> dict[int, float]:
        with SamplerChain(model).add_dry(0.5, 2.0, **options) as chain:  # type: ignore[arg-type]
            for token in tokens:
                chain.accept(token)
            candidates.fill(np.zeros(259, np.float32))
            chain.apply(candidates)
            array = candidates.array
            return {int(t): float(v) for t, v, _ in array if v != 0}

    assert lowered([1, 2, 3, 9, 1, 2]) == {3: -0.5}
    assert lowered([1, 2, 3, 4, 9, 1, 2, 3]) == {4: -1.0}
    assert lowered([1, 2, 3, 4, 9, 1, 2, 3], allowed_length=3) == {4: -0.5}
    assert lowered([1, 2, 3, 4, 9, 1, 2, 3], allowed_length=4) == {}
    assert lowered([1, 2, 3, 4, 9, 1, 2, 3], penalty_last_n=4) == {}
    assert lowered([1, 2, 3, 4, 9, 1, 2, 3], penalty_last_n=0) == {}
    repeated = [1, newline, 2, 3, 4, 50, 1, newline, 2, 3]
    assert lowered(repeated) == {4: -0.5}
    assert lowered(repeated, seq_breakers=()) == {4: -2.0}
    assert lowered([1, 2] * 500) == {1: -(2.0**127)}  # C bounds the exponent


def test_infill_needs_few_candidates(model: Model, chain: SamplerChain, tmp_path: Path) -> None:
    assert len(chain.add_infill().add_dist(1)) == 2  # 259 tokens are few
    with Model(write_wide(tmp_path / "wide.gguf", 2000), vocab_only=True) as wide:
        with pytest.raises(ValidationError, match="2000 candidates"):
            SamplerChain(wide).add_infill()
        with pytest.raises(ValidationError, match="1500 candidates"):
            SamplerChain(wide).add_top_k(1500).add_infill()
        assert len(SamplerChain(wide).add_top_k(40).add_infill()) == 2


def test_sampling_is_applying(context: Context, model: Model) -> None:
    def make() -> SamplerChain:
        chain = SamplerChain(model).add_penalties(8, 1.2).add_top_p(0.9)
        return chain.add_min_p(0.01).add_temp(1.5).add_dist(3)

    with make() as one, make() as two:
        candidates = Candidates(model)
        for _ in range(200):
            candidates.fill(context.logits())
            token = two.choose(candidates)
            two.accept(token)
            assert one.sample(context) == token


def test_sampling_from_kept_logits_is_sampling(context: Context, model: Model) -> None:
    def chains() -> list[SamplerChain]:
        grammar = Watched(model, "root ::= [a-c]+")
        return [
            SamplerChain(model).add_greedy(),
            SamplerChain(model).add_penalties(8, 1.2).add_top_k(5).add_temp(1.5).add_dist(3),
            SamplerChain(model).add_temp(1.0).add_dist(3).add_grammar(grammar),
        ]

    kept = context.logits()
    for one, two in zip(chains(), chains(), strict=True):
        with one, two:
            assert [one.sample(context) for _ in range(20)] == [
                two.sample_logits(kept) for _ in range(20)
            ]
    with SamplerChain(model) as chain:
        with pytest.raises(ValidationError, match="selects"):
            chain.sample_logits(kept)
        chain.add_greedy()
        for wrong in (kept[:-1], kept[None], np.zeros(0, np.float32)):
            with pytest.raises(ValidationError, match=r"must have the shape \(259,\)"):
                chain.sample_logits(wrong)
        with pytest.raises(GenerationError):
            chain.sample_logits(np.full_like(kept, np.nan))


@pytest.mark.parametrize("gap", [20, 80, 100, 104, 500])
def test_temp_ext_never_divides_by_almost_nothing(model: Model, gap: float) -> None:
    candidates = Candidates(model)
    logits = np.zeros(259, np.float32)
    logits[50] = gap  # the entropy is tiny or 0, and so is C's lowest temperature
    for exponent in (1, 2):
        with SamplerChain(model).add_temp_ext(0.8, 2.0, exponent).add_dist(1) as chain:
            candidates.fill(logits)
            assert chain.choose(candidates) == 50


def test_a_grammar_is_applied_only_if_it_rejects_the_token(
    context: Context, chain: SamplerChain
) -> None:
    a, b, c = b"abc"  # byte tokens
    grammar = Watched(chain.model, 'root ::= "a" "b" [bc]+')
    chain.add_logit_bias({a: 100, c: 90}).add_greedy().add_grammar(grammar)
    assert (chain.sample(context), grammar.applied) == (a, 0)
    assert (chain.sample(context), grammar.applied) == (b, 1)
    assert (chain.sample(context), grammar.applied) == (c, 2)
    chain.accept(100)  # a token of the prompt, which the grammar does not see
    with pytest.raises(ValidationError):
        chain.accept(a, grammar=True)
    chain.accept(b, grammar=True)
    assert chain.sample(context) == c
    chain.reset()
    assert chain.sample(context) == a


def test_a_grammar_with_draws(context: Context, chain: SamplerChain) -> None:
    chain.add_penalties(8, 1.5).add_top_k(40).add_top_p(0.95).add_temp(2).add_dist(1)
    chain.add_grammar(Grammar(chain.model, "root ::= [a-f]+"))
    drawn = [chain.sample(context) for _ in range(50)]
    assert set(drawn) <= {*b"abcdef", 256, 258}  # and the ends
    chain.reset()
    assert [chain.sample(context) for _ in range(50)] == drawn


def test_a_grammar_that_allows_nothing(context: Context, chain: SamplerChain) -> None:
    grammar = DeadEnd(chain.model, "root ::= [a-f]+")
    chain.add_penalties(8, 1.5).add_dist(1).add_grammar(grammar)
    with pytest.raises(GenerationError, match="none of the 259 tokens"):
        chain.sample(context)
    with pytest.raises(ValidationError, match="already"):
        chain.add_grammar(grammar)


def test_a_grammar_of_another_model(chain: SamplerChain, tiny_model: Path) -> None:
    with Model(tiny_model, vocab_only=True) as other:
        grammar = Grammar(other, "root ::= [a-f]+")
        with pytest.raises(ValidationError, match="another model"):
            chain.add_grammar(grammar)


class Mask:
    def __init__(self, model: Model, allowed: NDArray[np.bool_] | None) -> None:
        self.model, self._allowed = model, allowed
        self.accepted: list[int] = []

    def allowed(self) -> NDArray[np.bool_] | None:
        return self._allowed

    def rejects(self, token: int) -> bool:
        return False

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def reset(self) -> None:
        self.accepted.clear()


def test_a_mask(context: Context, chain: SamplerChain, tiny_model: Path) -> None:
    model = chain.model
    some = np.arange(model.vocab.n_tokens) % 50 == 7
    for allowed in (some, ~some, ~some & (context.logits() < 0), None):
        for select in (SamplerChain.add_greedy, lambda chain: chain.add_top_k(1).add_dist(1)):
            mask = Mask(model, allowed)
            with SamplerChain(model) as masked:
                select(masked.add_mask(mask))
                assert not masked.takes_largest
                masked.accept(5)  # of a prompt
                token = masked.sample(context)
                whole = np.ones(len(model.vocab), np.bool_) if allowed is None else allowed
                assert token == np.where(whole, context.logits(), -np.inf).argmax()
                assert mask.accepted == [token]
                masked.reset()
                assert not mask.accepted
    chain.add_greedy().add_mask(Mask(model, some & False))
    with pytest.raises(GenerationError, match="allows no token"):
        chain.sample(context)
    with pytest.raises(ValidationError, match="already"):
        chain.add_mask(Mask(model, None))
    with (
        Model(tiny_model, vocab_only=True) as other,
        SamplerChain(model) as another,
        pytest.raises(ValidationError, match="another model"),
    ):
        another.add_mask(Mask(other, None))


class SecondThoughts(Mask):
    """Rejects every token but one, after it was chosen."""

    def __init__(self, model: Model, wanted: int) -> None:
        super().__init__(model, np.ones(model.vocab.n_tokens, np.bool_))
        self.wanted, self.rejected = wanted, 0

    def rejects(self, token: int) -> bool:
        if token == self.wanted:
            return False
        assert self._allowed is not None
        self._allowed[token] = False
        self.rejected += 1
        return True


@pytest.mark.parametrize("select", [SamplerChain.add_greedy, lambda chain: chain.add_dist(1)])
def test_a_mask_may_reject_what_was_chosen(
    context: Context, model: Model, select: Callable[[SamplerChain], SamplerChain]
) -> None:
    mask = SecondThoughts(model, int(context.logits().argmin()))
    with SamplerChain(model) as chain:
        select(chain.add_mask(mask))
        assert chain.sample(context) == mask.wanted
        assert mask.accepted == [mask.wanted]
        assert mask.rejected > 0


def test_a_grammar_against_a_bias(context: Context, chain: SamplerChain) -> None:
    chain.add_logit_bias({97: -float("inf")}).add_top_k(40).add_dist(1)
    chain.add_grammar(Grammar(chain.model, 'root ::= "a"'))
    with pytest.raises(GenerationError, match=r"forbidden|NaN"):
        chain.sample(context)


def test_small_vocabularies_are_sampled_without_numpy(child: Child, tiny_model: Path) -> None:
    done = child(
        """
        import sys
        from llama_cffi.binding import Batch, Context, CustomSampler, Model, SamplerChain
        with Model(sys.argv[1]) as model, Context(model, n_ctx=32, n_threads=1) as context:
            batch = Batch(1)
            batch.fill([1], 0)
            context.decode(batch)
            seen = []
            chain = SamplerChain(model).add_logit_bias({1: 2.0}).add_dry(1).add_top_k(5)
            chain.add_dist(1).add_custom(CustomSampler(model, accept=seen.append))
            sys.modules["numpy"] = None  # importing it fails
            print(chain.sample(context) == seen[0])
        """,
        tiny_model,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
