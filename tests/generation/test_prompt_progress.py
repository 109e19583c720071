"""prompt_progress: how far the evaluation of a prompt is."""

from __future__ import annotations

from typing import Any

import pytest

from llama_cffi import Engine, InferenceEngine, PromptProgress, demo
from llama_cffi.generation.prompt_progress import PromptReport

PROMPT = [5, 6, 7, 8] * 30


@pytest.fixture(params=["one at a time", "scheduler"])
def engine(request: pytest.FixtureRequest) -> Any:
    """Each kind of engine, with batches of 32 tokens."""
    options: Any = {"n_ctx": 256, "n_threads": 1, "n_batch": 32}
    if request.param == "scheduler":
        with InferenceEngine(demo.model_path(), 2, **options) as shared:
            yield shared
    else:
        with Engine(demo.model_path(), **options) as alone:
            yield alone


def progress_of(engine: Any, tokens: list[int]) -> list[PromptProgress]:
    found: list[PromptProgress] = []
    for _ in engine.steps(tokens, 2, temperature=0, prompt_progress=found.append):
        assert found[-1].n_processed == len(tokens)  # before the first token
    return found


def test_every_batch_is_reported_from_the_cached_part_to_the_end(engine: Any) -> None:
    first = progress_of(engine, PROMPT)
    assert [p.n_processed for p in first] == [0, 32, 64, 96, 120]
    assert {(p.n_total, p.n_cached) for p in first} == {(120, 0)}
    assert [p.time_s for p in first] == sorted(p.time_s for p in first)
    again = progress_of(engine, [*PROMPT, *range(20, 60)])
    assert again[0].n_processed == again[0].n_cached >= 96
    assert again[-1].n_processed == again[-1].n_total == 160


def test_a_callback_that_raises_fails_its_request_alone(engine: Any) -> None:
    def fail(progress: PromptProgress) -> None:
        if progress.n_processed > 32:
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        list(engine.steps(PROMPT, 2, temperature=0, prompt_progress=fail))
    assert progress_of(engine, PROMPT)[-1].n_processed == 120


@pytest.mark.behaviour(
    "metrics: prompt progress starts at time 0 and never goes back",
)
def test_progress_never_goes_back() -> None:
    found: list[int] = []
    report = PromptReport(lambda p: found.append(p.n_processed), 10, 2)
    for n in (6, 2, 4, 6, 8, 12, 12):
        report(n)
    assert found == [2, 6, 8, 10]
    assert report.is_complete
