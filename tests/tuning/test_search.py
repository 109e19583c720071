"""The search, on machines that are made up: it finds what is fastest, and is never slower."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cffi import LlamaError
from llama_cffi.binding.tuned import TunedSettings
from llama_cffi.tuning.search import GAIN, Search, SearchSpace
from llama_cffi.tuning.timing import Request, Sample

SPACE = SearchSpace(
    cpu_variants=["haswell", "icelake"],
    flash_attn=[True],
    n_threads=[1, 4, 8],
    n_ubatch=[128, 256],
    default_threads=(2, 2),
)
TYPICAL = Request(512, 128)
Cost = Callable[[TunedSettings], tuple[float, float]]  # seconds of a token: of a prompt, an answer


class Machine:
    """Measures without a clock; other programs may slow each measurement down."""

    def __init__(self, cost: Cost, noise: Callable[[], float] = lambda: 1.0) -> None:
        self.cost, self.noise = cost, noise
        self.asked: list[tuple[TunedSettings, Request]] = []

    def __call__(self, settings: TunedSettings, request: Request, /) -> Sample:
        self.asked.append((settings, request))
        prefill_s, decode_s = self.cost(settings)
        busy = self.noise()
        return Sample(prefill_s * request.n_prompt * busy, decode_s * request.n_gen * busy)


def search(machine: Machine, space: SearchSpace = SPACE) -> Search:
    return Search(machine, space, lambda *_: TYPICAL)


def demo_cost(settings: TunedSettings) -> tuple[float, float]:
    """Like the demo model on Zen 4: AVX-512 with flash attention is slow, two threads are best."""
    prefill, decode = 1.0, 2.0
    if settings.cpu_variant == "haswell":
        decode *= 0.6
    elif settings.flash_attn:
        decode *= 3
    threads = settings.n_threads or 2
    decode *= {1: 1.5, 2: 1.0, 4: 0.8, 8: 3.0}[threads]
    prefill *= {1: 2.0, 2: 1.0, 4: 0.9, 8: 0.5}[settings.n_threads_batch or threads]
    return prefill * (0.8 if settings.n_ubatch == 128 else 1.0), decode


def test_it_finds_the_best_of_each_kind_and_the_threads_of_each_phase() -> None:
    best, ratios = search(Machine(demo_cost)).run()
    assert best.cpu_variant == "haswell"
    assert (best.n_threads, best.n_threads_batch, best.n_ubatch) == (4, 8, 128)
    assert len(set(ratios)) == 1
    assert ratios[0] < 0.6


def test_what_is_measured_is_told_with_its_ratios() -> None:
    found = search(Machine(demo_cost))
    found.run()
    assert {step.name for step in found.steps} == {"threads", "kernels", "n_ubatch", "check"}
    kernels = {step.settings.cpu_variant: step for step in found.steps if step.name == "kernels"}
    assert kernels.keys() == {None, "haswell", "icelake"}
    slow = kernels[None]
    assert slow.settings.flash_attn is True
    assert (slow.prefill_ratio, slow.n_rounds) == (1.0, 2)  # it left early
    assert slow.decode_ratio == pytest.approx(3.0)
    (check,) = [step for step in found.steps if step.name == "check"]
    assert check.n_rounds == 7
    assert found.request == TYPICAL


def test_the_order_turns_and_the_reference_runs_in_every_round() -> None:
    machine = Machine(lambda _: (1.0, 1.0))
    search(machine, SearchSpace([], [True], [], [], (1, 1))).run()
    order = [settings.flash_attn for settings, _ in machine.asked]
    assert order == [None, True, True, None, None, True]


def test_where_nothing_is_faster_the_defaults_stay() -> None:
    for factor in (1.0, 0.98, 1.3):
        cost: Cost = lambda s, factor=factor: (factor, factor) if s else (1.0, 1.0)  # noqa: E731
        best, ratios = search(Machine(cost)).run()
        assert (best, ratios) == (TunedSettings(), [])


def test_what_was_luck_is_found_out_by_the_last_comparison() -> None:
    """A candidate that is fast only while it is a candidate."""
    machine = Machine(lambda _: (1.0, 1.0))
    machine.noise = lambda: 0.5 if len(machine.asked) in (2, 3, 6) else 1.0
    found = search(machine, SearchSpace([], [True], [], [], (1, 1)))
    best, ratios = found.run()
    assert [step.name for step in found.steps] == ["kernels", "check"]
    assert found.steps[0].ratio == 0.5
    assert not best
    assert ratios == [1.0] * 7


@given(st.integers(0, 10**6), st.floats(0.5, 1.5), st.floats(0.0, 1.5))
def test_it_never_ends_slower_than_the_defaults(seed: int, factor: float, spikes: float) -> None:
    """Other programs slow a third of the measurements down, by any factor."""
    rng = random.Random(seed)
    factors = {settings: rng.uniform(factor, 1.5) for settings in SPACE.kernels()}

    def cost(settings: TunedSettings) -> tuple[float, float]:
        kernel = TunedSettings(settings.cpu_variant, flash_attn=settings.flash_attn)
        value = factors.get(kernel, 1.0) * (1 if settings.n_threads is None else factor)
        return value, value

    noise = lambda: 1 + spikes * rng.random() * (rng.random() < 0.1)  # noqa: E731
    best, _ = search(Machine(cost, noise)).run()
    assert sum(cost(best)) <= 2.0 or not best
    if not best:
        return
    assert cost(best)[0] < 1.05


def test_settings_that_do_not_work_are_told_and_left_out() -> None:
    def cost(settings: TunedSettings) -> tuple[float, float]:
        if settings.cpu_variant == "haswell":
            raise LlamaError("it died")
        return demo_cost(settings)

    found = search(Machine(cost))
    best, _ = found.run()
    assert best.cpu_variant is None
    failed = [step for step in found.steps if step.error]
    assert [step.settings.cpu_variant for step in failed] == ["haswell", "haswell"]
    assert {step.error for step in failed} == {"it died"}


def test_defaults_that_do_not_work_are_an_error() -> None:
    def cost(settings: TunedSettings) -> tuple[float, float]:
        raise LlamaError("no memory")

    with pytest.raises(LlamaError, match="no memory"):
        search(Machine(cost)).run()


def test_when_the_time_is_over_only_the_last_comparison_is_made() -> None:
    machine = Machine(demo_cost)
    late = Search(machine, SPACE, lambda *_: TYPICAL, is_late=lambda: True)
    assert late.run() == (TunedSettings(), [])
    assert machine.asked == []
    machine = Machine(demo_cost)
    found = Search(machine, SPACE, lambda *_: TYPICAL, is_late=lambda: len(machine.asked) > 20)
    best, ratios = found.run()
    assert best
    assert len(ratios) == 3


def test_a_ratio_near_one_is_noise() -> None:
    for factor, chosen in ((GAIN + 0.005, False), (GAIN - 0.005, True)):
        cost: Cost = lambda s, f=factor: (f, f) if s.flash_attn else (1.0, 1.0)  # noqa: E731
        best, _ = search(Machine(cost), SearchSpace([], [True], [], [], (1, 1))).run()
        assert bool(best) is chosen
