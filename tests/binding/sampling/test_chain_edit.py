"""Insert, remove, replace and clone the samplers of a chain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

from llama_cffi.binding import Candidates, Context, CustomSampler, Model, SamplerChain
from llama_cffi.binding.sampling.grammar import Grammar
from llama_cffi.errors import ClosedError, ValidationError


def names(chain: SamplerChain) -> list[str]:
    return [name.lstrip("?+") for name in chain.names]


def built(model: Model, *kinds: str) -> SamplerChain:
    """Return a chain of samplers by their C names."""
    chain = SamplerChain(model)
    add: dict[str, Callable[[], object]] = {
        "top-k": lambda: chain.add_top_k(40),
        "top-p": lambda: chain.add_top_p(0.9),
        "temp": lambda: chain.add_temp(2.0),
        "penalties": lambda: chain.add_penalties(64, 1.5),
        "logit-bias": lambda: chain.add_logit_bias({5: 3.0}),
        "infill": chain.add_infill,
        "greedy": chain.add_greedy,
        "dist": lambda: chain.add_dist(7),
    }
    for kind in kinds:
        add[kind]()
    return chain


@pytest.mark.parametrize(
    ("before", "edit", "after"),
    [
        (["top-k", "dist"], lambda c, x: c.insert(1, x("temp")), ["top-k", "temp", "dist"]),
        (["top-k", "dist"], lambda c, x: c.insert(0, x("temp")), ["temp", "top-k", "dist"]),
        (["top-k"], lambda c, x: c.insert(1, x("temp", "dist")), ["top-k", "temp", "dist"]),
        (["top-k", "dist"], lambda c, x: c.insert(-1, x("temp")), ["top-k", "temp", "dist"]),
        ([], lambda c, x: c.insert(0, x("greedy")), ["greedy"]),
        (["top-k", "dist"], lambda c, x: c.insert(1, x()), ["top-k", "dist"]),
        (["top-k", "temp", "dist"], lambda c, x: c.remove(1), ["top-k", "dist"]),
        (["top-k", "temp", "dist"], lambda c, x: c.remove(-1), ["top-k", "temp"]),
        (["top-k"], lambda c, x: c.remove(0), []),
        (["top-k", "dist"], lambda c, x: c.replace(-1, x("greedy")), ["top-k", "greedy"]),
        (["temp"], lambda c, x: c.replace(0, x("top-p", "dist")), ["top-p", "dist"]),
        (["temp", "dist"], lambda c, x: c.replace(0, x()), ["dist"]),
    ],
)  # fmt: skip
def test_an_edited_chain_is_the_chain_built_that_way(
    model: Model,
    context: Context,
    before: list[str],
    edit: Callable[[SamplerChain, Callable[..., SamplerChain]], object],
    after: list[str],
) -> None:
    with built(model, *before) as chain, built(model, *after) as plain:
        edit(chain, lambda *kinds: built(model, *kinds))
        assert names(chain) == names(plain) == after
        assert len(chain) == len(after)
        if after and after[-1] in ("dist", "greedy"):
            assert [chain.sample(context) for _ in range(20)] == [
                plain.sample(context) for _ in range(20)
            ]
            assert chain.takes_largest == plain.takes_largest
        else:
            with pytest.raises(ValidationError, match="does not end with a sampler that selects"):
                chain.sample(context)


def test_a_removed_sampler_keeps_its_state(model: Model, context: Context) -> None:
    with built(model, "temp", "dist") as chain, built(model, "temp", "dist") as plain:
        draws = [plain.sample(context) for _ in range(20)]
        found = [chain.sample(context) for _ in range(10)]
        dist = chain.remove(-1)
        assert names(dist) == ["dist"]
        chain.insert(1, dist)
        assert len(dist) == 0  # moved, not shared
        assert found + [chain.sample(context) for _ in range(10)] == draws
    with built(model, "penalties", "greedy") as chain, SamplerChain(model) as other:
        scores = np.zeros(model.vocab.n_tokens, np.float32)
        scores[[3, 4]] = 10.0, 9.0
        chain.accept(3)
        other.insert(0, chain.remove(0)).add_greedy()
        candidates = Candidates(model)
        candidates.fill(scores)
        assert other.choose(candidates) == 4  # 3 is still penalized
        assert chain.takes_largest  # only greedy is left


@pytest.mark.parametrize(
    "kinds", [["temp", "dist"], ["penalties", "top-k", "dist"], ["logit-bias", "greedy"], []]
)
def test_a_clone_starts_over_and_goes_its_own_way(
    model: Model, context: Context, kinds: list[str]
) -> None:
    with built(model, *kinds) as chain:
        if not kinds:
            with chain.clone() as twin:
                assert len(twin) == 0
            return
        draws = [chain.sample(context) for _ in range(30)]
        with chain.clone() as twin:
            assert names(twin) == names(chain) == kinds
            assert [twin.sample(context) for _ in range(15)] == draws[:15]
            chain.remove(0)
            assert len(twin) == len(kinds)
            assert [twin.sample(context) for _ in range(15)] == draws[15:]


def test_what_c_cannot_clone_is_refused(model: Model) -> None:
    with built(model, "dist") as chain:
        chain.add_custom(CustomSampler(model, accept=lambda token: None))
        with pytest.raises(ValidationError, match="cannot be cloned"):
            chain.clone()
    with built(model, "dist") as chain:
        chain.add_grammar(Grammar(model, 'root ::= "a"'))
        with pytest.raises(ValidationError, match="cannot be cloned"):
            chain.clone()
        with pytest.raises(ValidationError, match="has a grammar"):
            built(model, "dist").insert(0, chain)


def test_python_samplers_move_with_their_chain(model: Model, context: Context) -> None:
    seen: list[int] = []

    def forbid_most(candidates: Any) -> None:
        candidates["logit"][candidates["id"] != 9] = -np.inf

    custom = SamplerChain(model).add_custom(CustomSampler(model, apply=forbid_most))
    watch = SamplerChain(model).add_custom(CustomSampler(model, accept=seen.append))
    with built(model, "dist") as chain:
        chain.insert(0, custom).insert(2, watch)
        assert chain.sample(context) == 9
        assert seen == [9]
        custom.close()
        removed = chain.remove(0)
        del custom
        chain.remove(-1)
        chain.sample(context)
        assert seen == [9]
        removed.insert(1, built(model, "dist"))
        assert removed.sample(context) == 9


def test_edits_that_cannot_work_change_nothing(model: Model, tiny_model: Path) -> None:
    with built(model, "top-k", "infill", "dist") as chain:
        for index in (3, -4, 2**40, -(2**40)):
            for edit in (chain.remove, lambda i: chain.replace(i, built(model, "temp"))):
                with pytest.raises(ValidationError, match="the chain has 3 samplers"):
                    edit(index)
        with pytest.raises(ValidationError, match="the chain has 3 samplers"):
            chain.insert(4, built(model, "temp"))
        with pytest.raises(TypeError):
            chain.remove("dist")  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="another chain"):
            chain.insert(0, chain)
        with Model(tiny_model) as other, pytest.raises(ValidationError, match="same model"):
            chain.insert(0, built(other, "temp"))
        closed = built(model, "temp")
        closed.close()
        with pytest.raises(ClosedError):
            chain.insert(0, closed)
        assert names(chain) == ["top-k", "infill", "dist"]
    with pytest.raises(ClosedError):
        chain.remove(0)


def test_a_chain_is_not_edited_while_it_runs(model: Model, context: Context) -> None:
    errors: list[str] = []

    def edit(token: int) -> None:
        for change in (
            lambda: chain.remove(0),
            lambda: chain.insert(0, SamplerChain(model)),
            lambda: SamplerChain(model).insert(0, chain),
        ):
            try:
                change()
            except ValidationError as e:
                errors.append(str(e))

    with built(model, "top-k", "dist") as chain:
        chain.add_custom(CustomSampler(model, accept=edit))
        chain.sample(context)
        assert len(errors) == 3
        assert all("while one of its samplers is running" in error for error in errors)
        assert len(chain) == 3


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_every_sampler_of_every_build_can_be_cloned_and_moved(
    build: str, child: Child, tiny_model: Path
) -> None:
    code = """
        import sys
        import numpy as np
        from llama_cffi.binding import Batch, Context, Model, SamplerChain
        from llama_cffi.binding.sampling.samplers import available

        model = Model(sys.argv[1])
        context = Context(model, n_ctx=64, n_threads=1)
        batch = Batch(3)
        batch.fill([1, 2, 3], 0)
        context.decode(batch)
        adds = {
            "penalties": lambda c: c.add_penalties(64, 1.3, 0.5, 0.5),
            "dry": lambda c: c.add_dry(0.8, 1.75, 1, -1),
            "top_n_sigma": lambda c: c.add_top_n_sigma(1.0),
            "top_k": lambda c: c.add_top_k(40),
            "typ_p": lambda c: c.add_typical(0.9),
            "top_p": lambda c: c.add_top_p(0.9),
            "min_p": lambda c: c.add_min_p(0.01),
            "xtc": lambda c: c.add_xtc(0.5, 0.1, seed=3),
            "temperature": lambda c: c.add_temp_ext(1.0, 0.5),
            "infill": lambda c: c.add_top_k(40).add_infill(),
        }
        ends = {
            "dist": lambda c: c.add_dist(5),
            "mirostat": lambda c: c.add_mirostat(5),
            "mirostat_v2": lambda c: c.add_mirostat_v2(5),
        }
        if "adaptive_p" in available(model.library):
            ends["adaptive_p"] = lambda c: c.add_adaptive_p(0.5, 0.9, 5)
        made = 0
        for name, add in adds.items():
            if name not in available(model.library):
                continue
            for end in ends.values():
                chain, plain = SamplerChain(model), SamplerChain(model)
                for c in (chain, plain):
                    add(c)
                    end(c)
                first = [plain.sample(context) for _ in range(16)]
                assert [chain.sample(context) for _ in range(8)] == first[:8], name
                twin = chain.clone()
                assert [twin.sample(context) for _ in range(16)] == first, name
                twin.close()
                last = chain.remove(-1)
                moved = SamplerChain(model).insert(0, chain).insert(len(plain) - 1, last)
                assert [moved.sample(context) for _ in range(8)] == first[8:], name
                made += 1
        print(made)
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 15
