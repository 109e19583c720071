from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llama_cffi.binding import Batch, Context, Model, SamplerChain
from llama_cffi.errors import ValidationError


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model) as model:
        yield model


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=256, n_threads=1) as context:
        batch = Batch(3)
        batch.fill([1, 2, 3], 0)
        context.decode(batch)
        yield context


@pytest.fixture
def chain(model: Model) -> Iterator[SamplerChain]:
    with SamplerChain(model) as chain:
        yield chain


def test_greedy_is_argmax(context: Context, chain: SamplerChain) -> None:
    chain.add_greedy()
    expected = int(context.logits().argmax())
    assert [chain.sample(context), chain.sample(context), chain.sample(context, 2)] == [
        expected
    ] * 3


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
        lambda c: c.add_penalties(64, BAD),
        lambda c: c.add_penalties(64, 1.1, float("inf")),
        lambda c: c.add_penalties(64, 1.1, 0.0, BAD),
        lambda c: c.accept(259),
        lambda c: c.accept(1.5),
    ],
)
def test_numbers_out_of_range(chain: SamplerChain, add: Callable[[SamplerChain], object]) -> None:
    with pytest.raises(ValidationError):
        add(chain)
    assert len(chain) == 0


def test_of_another_model(context: Context, tiny_model: Path) -> None:
    with Model(tiny_model) as other:
        chain = SamplerChain(other).add_greedy()
        with pytest.raises(ValidationError, match="another model"):
            chain.sample(context)


def test_closed(context: Context, model: Model) -> None:
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
        lambda: len(chain),
    ):
        with pytest.raises(ValidationError, match="closed"):
            call()
