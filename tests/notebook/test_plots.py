"""Plots: what is drawn, where, and that it can be read on light and dark pages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_cffi import Llama, LlamaPool, RequestState, RequestStep, StepStats, ValidationError
from llama_cffi.demo import model_path
from llama_cffi.notebook import plots
from llama_cffi.notebook.token_logprobs import token_logprobs, visible

P, D = RequestState.PREFILLING, RequestState.DECODING


@pytest.fixture(scope="module")
def pool() -> Iterator[LlamaPool]:
    with LlamaPool(model_path(), n_parallel=2, n_ctx=256, n_threads=1) as pool:
        yield pool


def step(time_s: float, *requests: RequestStep) -> StepStats:
    return StepStats(time_s, 1.0, len(requests), 0, len(requests), 0, 1, requests)


def bars(axes: Any) -> list[list[tuple[float, float, float]]]:
    """The bars of each collection: left, right, middle."""
    return [
        [(*map(float, path.get_extents().intervalx), path.get_extents().intervaly.mean())
         for path in collection.get_paths()]
        for collection in axes.collections
    ]  # fmt: skip


def luminance(color: Any) -> float:
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])


# Recording


def test_requests_are_recorded_only_while_asked_for(pool: LlamaPool) -> None:
    engine: Any = pool.llm.engine
    assert not engine.records_requests
    engine.generate("one", 2)
    assert {s.requests for s in engine.timeline} == {()}
    engine.records_requests = True
    seen = len(engine.timeline)
    handles = [engine.submit(f"{i} and more", 4, ignore_eos=True) for i in range(3)]
    for handle in handles:
        handle.result()
    engine.records_requests = False
    recorded = [s for s in engine.timeline[seen:]]
    for handle in handles:
        mine = [r for s in recorded for r in s.requests if r.number == handle.request.number]
        states = [r.state for r in mine]
        assert states == sorted(states, key=[P, D].index)
        n_prefill = sum(r.n_tokens for r in mine if r.state is P)
        assert n_prefill == handle.stats.n_prompt - handle.stats.n_reused
        assert states.count(D) == handle.stats.n_generated - 1
    assert all(s.n_tokens == sum(r.n_tokens for r in s.requests) for s in recorded)
    seen = len(engine.timeline)
    engine.generate("last", 2)
    assert {s.requests for s in engine.timeline[seen:]} == {()}


# Timeline


def test_the_timeline_has_a_row_per_request_with_its_phases() -> None:
    steps = [
        step(11, RequestStep(1, "first", 9.5, P, 8)),
        step(12, RequestStep(1, "first", 9.5, D, 1)),
        step(13, RequestStep(2, "$second", 10.5, P, 8)),  # the first waits
        step(14, RequestStep(1, "first", 9.5, D, 1), RequestStep(2, "$second", 10.5, D, 1)),
    ]
    (axes,) = plots.timeline(steps).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "$second"]
    queued1, prefill1, decode1, queued2, prefill2, decode2 = bars(axes)
    assert (queued1, queued2) == ([(0, 4.5, 0)], [(1, 4.5, 1)])
    assert (prefill1, decode1) == ([(0.5, 1.5, 0)], [(1.5, 2.5, 0), (3.5, 4.5, 0)])
    assert (prefill2, decode2) == ([(2.5, 3.5, 1)], [(3.5, 4.5, 1)])
    (axes,) = plots.timeline(steps, "step").axes
    assert bars(axes)[2] == [(1, 2, 0), (3, 4, 0)]
    assert bars(axes)[3] == [(0, 4, 1)]


def test_the_timeline_of_a_model_is_that_of_its_engine(pool: LlamaPool) -> None:
    engine: Any = pool.llm.engine
    engine.records_requests = True
    engine.submit("a", 3, id="mine").result()
    engine.records_requests = False
    for source in (pool, pool.llm, engine, engine.timeline):
        (axes,) = plots.timeline(source).axes
        assert axes.get_yticklabels()[-1].get_text() == "mine"


def test_a_timeline_without_requests_says_how_to_record_them(pool: LlamaPool) -> None:
    with pytest.raises(ValidationError, match="none of 1 steps has its requests; set records_re"):
        plots.timeline([step(1.0)])
    with pytest.raises(ValidationError, match="none of 0 steps"):
        plots.timeline([])
    with pytest.raises(ValidationError, match="x must be 'time' or 'step', got 'tokens'"):
        plots.timeline(pool, "tokens")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="an InferenceEngine, or StepStats, got a dict"):
        plots.timeline({})  # type: ignore[arg-type]
    with (
        Llama(model_path(), n_ctx=64, n_threads=1) as llm,
        pytest.raises(ValidationError, match=r"one request at a time.*n_parallel=4"),
    ):
        plots.timeline(llm)


# Bench


def record(**fields: Any) -> dict[str, Any]:
    return {
        "build": "npm:1.0.0", "model_type": "llama 1B", "model_filename": "/m/a.gguf",
        "n_prompt": 512, "n_gen": 0, "n_depth": 0, "n_batch": 2048, "n_threads": 2,
        "avg_ts": 100.0, "stddev_ts": 4.0, **fields,
    }  # fmt: skip


def lines(axes: Any) -> list[list[tuple[float, float]]]:
    found = [container.lines[0] for container in axes.containers]
    return [[(float(x), float(y)) for x, y in line.get_xydata()] for line in found]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def test_bench_draws_a_line_per_build_against_the_depth() -> None:
    figure = plots.bench(
        record(build=build, n_depth=depth, n_prompt=pp, n_gen=tg, avg_ts=speed + depth)
        for build, speed in (("npm:1.0.0", 10.0), ("npm:2.0.0", 20.0))
        for pp, tg in ((512, 0), (0, 128))
        for depth in (64, 0)
    )
    assert legend(figure) == ["npm:1.0.0", "npm:2.0.0"]
    assert [axes.get_title("left") for axes in figure.axes] == ["prompts (pp)", "generation (tg)"]
    for axes in figure.axes:
        assert lines(axes) == [[(0, 10), (64, 74)], [(0, 20), (64, 84)]]
        assert axes.get_ylim()[0] == 0
        assert axes.get_xlabel() == "tokens in the KV cache (depth)"


def test_bench_takes_the_axis_and_names_all_other_fields_that_differ() -> None:
    figure = plots.bench(
        [record(n_batch=b, n_threads=t, avg_ts=float(b * t)) for b in (16, 512) for t in (1, 2)],
        x="n_threads",
    )
    assert legend(figure) == ["b 16", "b 512"]
    assert lines(figure.axes[0]) == [[(1, 16), (2, 32)], [(1, 512), (2, 1024)]]
    figure = plots.bench(record(n_prompt=n) for n in (32, 512))
    assert figure.axes[0].get_xlabel() == "prompt tokens"
    assert legend(figure) == []


def test_bench_without_an_axis_draws_bars() -> None:
    figure = plots.bench(
        [record(build=f"npm:{i}.0.0", avg_ts=float(i)) for i in (1, 2, 3)]
        + [record(n_gen=16, avg_ts=7.0)]
    )
    one, both = figure.axes
    assert [bar.get_width() for bar in one.patches] == [1, 2, 3]
    assert [t.get_text() for t in one.texts] == [f"npm:{i}.0.0  {i} ± 4" for i in (1, 2, 3)]
    assert both.get_title("left") == "prompts and generation (pp+tg)"
    assert [t.get_text() for t in both.texts] == ["7 ± 4"]


def test_bench_reads_what_the_command_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llama_cffi", "bench", "-p", "8", "-n", "2", "-r", "2",
               "-d", "0,8", "-t", "1", "--no-warmup", "-o", "jsonl"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    (tmp_path / "b.jsonl").write_text(done.stdout)
    (tmp_path / "b.json").write_text(json.dumps(records, indent=1))
    for source in (records, tmp_path / "b.jsonl", str(tmp_path / "b.json")):
        prompts, generation = plots.bench(source).axes
        for axes, name in ((prompts, "n_prompt"), (generation, "n_gen")):
            expected = [(r["n_depth"], r["avg_ts"]) for r in records if r[name]]
            assert lines(axes) == [expected]


@pytest.mark.parametrize(
    ("records", "x", "message"),
    [
        ([], None, "there are no records"),
        ([{"n_prompt": 1}], None, "record 0 has no n_gen, avg_ts, stddev_ts"),
        ([record(), 7], None, "record 1 has no n_prompt"),
        ([record()], "speed", "x must be one of n_depth, .*got 'speed'"),
    ],
)
def test_bench_refuses_other_objects(records: Any, x: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plots.bench(records, x)


def test_bench_refuses_a_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("| model | size |\n")
    with pytest.raises(ValidationError, match=r"table.md is not the output of `llama-cffi bench"):
        plots.bench(tmp_path / "table.md")


# Log-probabilities


def test_log_probabilities_are_bars_under_their_tokens(pool: LlamaPool) -> None:
    answer: Any = pool.llm.generate("Once", 6, logprobs=2, temperature=1.5, seed=3)
    (axes,) = plots.logprobs(answer).axes
    expected = answer["logprobs"]["token_logprobs"]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(expected)
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == [visible(text) for text in answer["logprobs"]["tokens"]]
    better = [
        max(top.values())
        for own, top in zip(expected, answer["logprobs"]["top_logprobs"], strict=True)
        if max(top.values()) > own
    ]
    drawn = [path.vertices[0][1] for c in axes.collections for path in c.get_paths()]
    assert drawn == pytest.approx(better)


def test_all_shapes_of_an_answer_give_the_same_tokens(pool: LlamaPool) -> None:
    options: Any = {"max_tokens": 5, "temperature": 0}
    chat = pool.llm.create_chat_completion(
        [{"role": "user", "content": "Hi"}], logprobs=True, top_logprobs=3, **options
    )
    text = pool.llm.create_completion("Hi", logprobs=3, **options)
    for response in (chat, text):
        tokens = token_logprobs(response)
        assert token_logprobs(response["choices"][0]) == tokens
        assert len(tokens) == response["usage"]["completion_tokens"]
        assert all(len(token.top) == 3 for token in tokens)
        assert all(token.logprob == token.top[0][1] for token in tokens)  # greedy


def test_an_answer_without_log_probabilities_says_how_to_ask(pool: LlamaPool) -> None:
    answer = pool.llm.create_completion("Hi", max_tokens=2)
    for wrong in (answer, answer["choices"][0], "text", None):
        with pytest.raises(ValidationError, match="no log-probabilities; ask for them with logpr"):
            plots.logprobs(wrong)  # type: ignore[arg-type]


def choice_of(tokens: list[str]) -> Any:
    others = len(tokens) - 1
    return {
        "logprobs": {
            "tokens": tokens,
            "token_logprobs": [None] + [-1.0] * others,
            "top_logprobs": [None] + [{"a": -0.5}] * others,
        }
    }


def test_any_text_can_be_drawn() -> None:
    odd = ["$x^2$", "中文", " \n\t\r", "\x00\x1b", "", "😀", "a" * 50, "\u202e", "_{"]
    figure = plots.logprobs(choice_of(odd))
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels[:6] == ["$x^2$", "\\u4e2d\\u6587", "·⏎⇥\\r", "\\x00\\x1b", "∅", "😀"]
    assert max(map(len, labels)) == 16
    figure.canvas.draw()  # no warning of a missing glyph


def test_long_answers_wrap() -> None:
    figure = plots.logprobs(choice_of(["a"] * 405))
    assert len(figure.axes) == 10
    assert figure.axes[-1].get_xlabel() == "5 more tokens are not shown"


# Figures


def test_figures_can_be_read_on_light_and_dark_and_are_not_kept() -> None:
    from matplotlib import pyplot
    from matplotlib.colors import to_rgba

    before = dict(pyplot.rcParams)
    figure = plots.bench([record(n_depth=d, build=b) for d in (0, 9) for b in "abcdef"])
    assert to_rgba(figure.get_facecolor())[3] == 0
    colors = [line.get_color() for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    texts = [*figure.axes[0].get_xticklabels(), figure.axes[0].xaxis.label, figure.axes[0].title]
    for color in {*colors, *(text.get_color() for text in texts)}:
        for background in (1.0, luminance("#1e1e1e")):
            high, low = sorted((luminance(color), background), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3, color
    assert pyplot.get_fignums() == []
    assert dict(pyplot.rcParams) == before


def test_importing_the_plots_imports_no_matplotlib() -> None:
    code = "import sys, llama_cffi.notebook.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
