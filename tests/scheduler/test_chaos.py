"""A quick run of tools/chaos.py; `nox -s chaos` runs more."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.odd_models import write_hybrid, write_recurrent, write_windowed
from support.rounding import EXACT

from llama_cffi import Model
from llama_cffi.demo import model_path

PATH = Path(__file__).parents[2] / "tools" / "chaos.py"
spec = importlib.util.spec_from_file_location("chaos", PATH)
assert spec is not None
assert spec.loader is not None
chaos = sys.modules["chaos"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chaos)


@pytest.mark.parametrize("seed", range(len(chaos.LAYOUTS)))
def test_every_request_ends_as_expected(seed: int) -> None:
    with Model(model_path()) as model:
        run = chaos.Chaos(model, seed, 100, chaos.answers(model))
        counts = run.run()
    assert counts.total() + run.n_refused == 100
    assert {key.split(":")[0] for key in counts} == set(chaos.KINDS)


@pytest.mark.parametrize("write", [write_recurrent, write_windowed, write_hybrid])
def test_other_memories(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """Random models have nearly equal logits, so the arithmetic must be exact."""
    with Model(write(tmp_path / "odd.gguf")) as model:
        expected = chaos.answers(model, **EXACT)
        for seed in (1, 2):
            run = chaos.Chaos(model, seed, 60, expected, **EXACT)
            assert run.run().total() + run.n_refused == 60


def test_the_check_finds_wrong_outcomes() -> None:
    state, question = chaos.RequestState, chaos.QUESTIONS[0]
    wrong = [
        ("plain", state.FINISHED, None, "not this", question),
        ("plain", state.CANCELLED, None, "", question),
        ("plain", state.DECODING, None, "", question),
        ("callback raises", state.FINISHED, None, "", question),
        ("cancelled", state.CANCELLED, KeyError(), "", question),
    ]
    for outcome in wrong:
        with pytest.raises(AssertionError):
            chaos.check(chaos.Outcome(*outcome), {question: "right"})
