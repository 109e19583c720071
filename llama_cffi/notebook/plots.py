"""Plots: the scheduler's timeline, records of `llama-cffi bench`, log-probabilities of an answer.

Each returns a figure of matplotlib, which is imported on the first call. Its background is
transparent and its text gray, so that it can be read on light and dark pages.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..api.llama import Llama
from ..api.pool import LlamaPool
from ..errors import LlamaError, ValidationError
from ..scheduler import InferenceEngine, RequestState, RequestStep, StepStats
from ..validation import as_list
from .token_logprobs import TokenLogprob, token_logprobs, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .token_logprobs import AnswerWithLogprobs

__all__ = ["bench", "logprobs", "timeline"]

# Each has a contrast of at least 3 on white and on #1e1e1e, and differs for the color-blind.
_GRAY = "#808080"
_COLORS = ("#1f83c4", "#d55e00", "#009e73", "#b56c94", "#9a8500", "#7f7f7f")
_MARKERS = "osD^v*"
_PREFILL, _DECODE = _COLORS[1], _COLORS[0]
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _GRAY,
    "axes.facecolor": "none",
    "axes.labelcolor": _GRAY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _GRAY,
    "axes.titlesize": "medium",
    "figure.dpi": 100,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.alpha": 0.3,
    "grid.color": _GRAY,
    "legend.frameon": False,
    "legend.labelcolor": _GRAY,
    "text.color": _GRAY,
    "xtick.color": _GRAY,
    "ytick.color": _GRAY,
}
_WIDTH_IN = 9.0
_MOST_LABELS = 60
_TOKENS_PER_ROW, _MOST_ROWS = 40, 10


def timeline(
    source: Llama | LlamaPool | InferenceEngine | Sequence[StepStats],
    x: Literal["time", "step"] = "time",
) -> Figure:
    """Plot when each request was queued, in prefill and in decode.

    Set `records_requests` of the `InferenceEngine` to True before the requests: otherwise its
    timeline has only counts.

    Args:
        source: A model loaded with `n_parallel`, its engine, or steps of its `timeline`.
        x: The horizontal axis: seconds since the first request, or the steps of the timeline.

    Raises:
        ValidationError: No step has requests, or *x* is unknown.
        LlamaError: matplotlib is not installed.
    """
    if x not in ("time", "step"):
        raise ValidationError(f"x must be 'time' or 'step', got {x!r}")
    steps = _recorded_steps(source)
    rows: dict[int, list[tuple[StepStats, RequestStep]]] = {}
    for step in steps:
        for request in step.requests:
            rows.setdefault(request.number, []).append((step, request))
    began = min(request.created_s for step in steps for request in step.requests)
    ends = [step.time_s for step in steps]
    names = [rows[number][0][1].id for number in sorted(rows)]
    height = 1.3 + 0.24 * min(len(rows), _MOST_LABELS)
    with _figure(height) as figure:
        axes = figure.subplots()
        for y, number in enumerate(sorted(rows)):
            parts = rows[number]
            if x == "time":
                start = parts[0][1].created_s - began
                spans = [(step.time_s - step.seconds - began, step.seconds) for step, _ in parts]
            else:
                start = bisect_left(ends, parts[0][1].created_s)
                spans = [(float(bisect_left(ends, step.time_s)), 1.0) for step, _ in parts]
            stop = spans[-1][0] + spans[-1][1]
            axes.broken_barh([(start, stop - start)], (y - 0.06, 0.12), color=_GRAY, linewidth=0)
            for state, color in (
                (RequestState.PREFILLING, _PREFILL),
                (RequestState.DECODING, _DECODE),
            ):
                shown = [
                    span
                    for span, (_, part) in zip(spans, parts, strict=True)
                    if part.state is state
                ]
                axes.broken_barh(_joined(shown), (y - 0.36, 0.72), color=color, linewidth=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        every = -(-len(names) // _MOST_LABELS)
        axes.set_yticks(range(0, len(names), every), names[::every], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.01)
        axes.grid(axis="x")
        if x == "step":
            axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("seconds" if x == "time" else "step")
        _legend(figure, [("queued or waiting", _GRAY), ("prefill", _PREFILL), ("decode", _DECODE)])
    return figure


def _recorded_steps(source: object) -> list[StepStats]:
    owner = source.llm if isinstance(source, LlamaPool) else source
    engine = owner.engine if isinstance(owner, Llama) else owner
    if isinstance(engine, InferenceEngine):
        steps = engine.timeline
    elif isinstance(engine, Sequence) and all(isinstance(step, StepStats) for step in engine):
        steps = [*engine]
    elif isinstance(owner, Llama):
        raise ValidationError(
            f"{owner!r} answers one request at a time, without steps; load it with n_parallel=4"
        )
    else:
        raise ValidationError(
            "timeline takes a Llama, a LlamaPool, an InferenceEngine, or StepStats, got a "
            f"{type(source).__name__}"
        )
    recorded = [step for step in steps if step.requests]
    if not recorded:
        raise ValidationError(
            f"none of {len(steps)} steps has its requests; set records_requests = True of the "
            "InferenceEngine (llm.engine, or pool.llm.engine) before the requests"
        )
    return recorded


def _joined(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Join spans of start and width that are less than a quarter of their width apart."""
    joined: list[tuple[float, float]] = []
    for start, width in spans:
        if joined and start - sum(joined[-1]) < 0.25 * width:
            joined[-1] = joined[-1][0], start + width - joined[-1][0]
        else:
            joined.append((start, width))
    return joined


# Bench

_AXES = {
    "n_depth": "tokens in the KV cache (depth)",
    "n_batch": "n_batch",
    "n_ubatch": "n_ubatch",
    "n_threads": "threads",
    "n_gpu_layers": "layers on the GPU",
    "n_prompt": "prompt tokens",
    "n_gen": "generated tokens",
}
_SERIES = {
    "build": "",
    "model_type": "",
    "model_filename": "",
    "backends": "",
    "cpu_info": "",
    "n_prompt": "pp",
    "n_gen": "tg",
    "n_depth": "depth ",
    "n_batch": "b ",
    "n_ubatch": "ub ",
    "n_threads": "threads ",
    "n_gpu_layers": "ngl ",
    "type_k": "K ",
    "type_v": "V ",
    "flash_attn": "fa ",
}
_Record = Mapping[str, Any]


def bench(
    records: str | os.PathLike[str] | Iterable[Mapping[str, object]], x: str | None = None
) -> Figure:
    """Plot tokens per second of `llama-cffi bench`: prompts beside generation.

    Fields that differ, such as the build, become lines; error bars are standard deviations.

    Args:
        records: The file of `-o json` or `-o jsonl`, or its objects; llama-bench's work too.
        x: The field of the horizontal axis; None: the first of n_depth, n_batch, n_ubatch,
            n_threads, n_gpu_layers, n_prompt and n_gen that differs; without one, bars.

    Raises:
        ValidationError: There is no record, one lacks a field, or *x* is unknown.
        OSError: The file cannot be read.
        LlamaError: matplotlib is not installed.
    """
    if x is not None and x not in _AXES:
        raise ValidationError(f"x must be one of {', '.join(_AXES)}, or None, got {x!r}")
    found = _records(records)
    panels = [
        ("prompts (pp)", [r for r in found if r["n_prompt"] and not r["n_gen"]]),
        ("generation (tg)", [r for r in found if r["n_gen"] and not r["n_prompt"]]),
        ("prompts and generation (pp+tg)", [r for r in found if r["n_gen"] and r["n_prompt"]]),
    ]
    panels = [(title, rows) for title, rows in panels if rows]
    n_lines = max(len(rows) for _, rows in panels)
    is_bars = x is None and not any(_differs(rows, name) for _, rows in panels for name in _AXES)
    with _figure(1.2 + 0.5 * n_lines if is_bars else 3.6) as figure:
        drawn = figure.subplots(1, len(panels), squeeze=False)[0]
        labels: dict[str, int] = {}
        for axes, (title, rows) in zip(drawn, panels, strict=True):
            axis = x or next((name for name in _AXES if _differs(rows, name)), None)
            series = _series(rows, axis)
            if axis is None:
                _bars(axes, series)
            else:
                for label, points in series.items():
                    number = labels.setdefault(label, len(labels))
                    _line(axes, points, axis, number)
                axes.set_xlabel(_AXES[axis])
                axes.set_ylabel("tokens/s")
                axes.set_ylim(bottom=0)
                axes.grid(axis="y")
            axes.set_title(title, loc="left")
        if len(labels) > 1:
            _legend(
                figure,
                [(label, _COLORS[i % len(_COLORS)]) for label, i in labels.items()],
                markers=[_MARKERS[i % len(_MARKERS)] for i in labels.values()],
            )
    return figure


def _records(records: Any) -> list[_Record]:
    if isinstance(records, (str, os.PathLike)):
        text = Path(records).read_text("utf-8").strip()
        try:
            parsed = json.loads(text) if text[:1] == "[" else map(json.loads, text.splitlines())
            found = [*parsed]
        except ValueError as e:
            raise ValidationError(
                f"{records} is not the output of `llama-cffi bench -o json` or -o jsonl: {e}"
            ) from None
    else:
        found = as_list("records", records)
    if not found:
        raise ValidationError("there are no records to plot")
    for number, record in enumerate(found):
        needed = ("n_prompt", "n_gen", "avg_ts", "stddev_ts")
        missing = [n for n in needed if n not in record] if isinstance(record, Mapping) else needed
        if missing:
            raise ValidationError(
                f"record {number} has no {', '.join(missing)}; pass the objects that "
                "`llama-cffi bench -o json` prints"
            )
    return found


def _differs(rows: Sequence[_Record], name: str) -> bool:
    return len({str(row.get(name)) for row in rows}) > 1


def _series(rows: Sequence[_Record], axis: str | None) -> dict[str, list[_Record]]:
    """Return the rows of each line, by its label: the fields that differ, but for *axis*."""
    differing = [name for name in _SERIES if name != axis and _differs(rows, name)]
    if "model_type" in differing and "model_filename" in differing:
        differing.remove("model_type")
    found: dict[str, list[_Record]] = {}
    for row in rows:
        parts = [f"{_SERIES[name]}{_value(row, name)}" for name in differing]
        found.setdefault(", ".join(parts), []).append(row)
    return found


def _value(row: _Record, name: str) -> str:
    value = str(row.get(name))
    if name == "model_filename" or value.startswith("path:"):
        return Path(value).name
    return value


def _line(axes: Axes, points: Sequence[_Record], axis: str, number: int) -> None:
    points = sorted(points, key=lambda row: row[axis])
    values = [row[axis] for row in points]
    axes.errorbar(
        values,
        [row["avg_ts"] for row in points],
        [row["stddev_ts"] for row in points],
        color=_COLORS[number % len(_COLORS)],
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=5,
        linewidth=1.6,
        capsize=3,
    )
    if min(values) > 0 and max(values) >= 8 * min(values):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()


def _bars(axes: Axes, series: Mapping[str, Sequence[_Record]]) -> None:
    for y, (label, rows) in enumerate(series.items()):
        mean, spread = rows[-1]["avg_ts"], rows[-1]["stddev_ts"]
        axes.barh(y, mean, 0.6, xerr=spread, color=_COLORS[y % len(_COLORS)], ecolor=_GRAY)
        axes.annotate(
            f"{label}  {mean:.4g} ± {spread:.2g}".strip(),
            (0, y - 0.34),
            xytext=(2, 1),
            textcoords="offset points",
            va="bottom",
            parse_math=False,
        )
    axes.set_ylim(len(series) - 0.5, -0.8)
    axes.set_yticks([])
    axes.set_xlabel("tokens/s")
    axes.grid(axis="x")


# Log-probabilities


def logprobs(answer: AnswerWithLogprobs) -> Figure:
    """Plot the log-probability of each token of an answer; 0 is certain.

    Where another token was more probable, a dash marks the most probable one. The first 400 tokens
    are shown, 40 in a row.

    Args:
        answer: A response of a completion or chat completion with log-probabilities, or a choice.

    Raises:
        ValidationError: It has no log-probabilities, or no tokens.
        LlamaError: matplotlib is not installed.
    """
    tokens = token_logprobs(answer)
    if not tokens:
        raise ValidationError("the answer has no tokens")
    shown = tokens[: _TOKENS_PER_ROW * _MOST_ROWS]
    rows = [shown[i : i + _TOKENS_PER_ROW] for i in range(0, len(shown), _TOKENS_PER_ROW)]
    lowest = min([-1.0, *(t.logprob for t in shown if t.logprob is not None)])
    with _figure(0.6 + 1.9 * len(rows)) as figure:
        drawn = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for axes, row in zip(drawn, rows, strict=True):
            _token_bars(axes, row, min(len(shown), _TOKENS_PER_ROW))
            axes.set_ylim(1.08 * lowest, 0)
            axes.set_ylabel("log-probability")
        if len(tokens) > len(shown):
            drawn[-1].set_xlabel(f"{len(tokens) - len(shown):,} more tokens are not shown")
        _legend(figure, [("chosen token", _DECODE), ("most probable instead", _PREFILL)])
    return figure


def _token_bars(axes: Axes, row: Sequence[TokenLogprob], n_columns: int) -> None:
    own = [token.logprob or 0.0 for token in row]
    axes.bar(range(len(row)), own, 0.7, color=_DECODE)
    better = [
        (i, best[1])
        for i, token in enumerate(row)
        if token.top and token.logprob is not None
        for best in [max(token.top, key=lambda pair: pair[1])]
        if best[1] > token.logprob
    ]
    if better:
        axes.hlines(
            [logprob for _, logprob in better],
            [i - 0.45 for i, _ in better],
            [i + 0.45 for i, _ in better],
            color=_PREFILL,
            linewidth=2.5,
        )
    labels = [_drawable(visible(token.text)) for token in row]
    axes.set_xticks(range(len(row)), labels, rotation=60, ha="right", rotation_mode="anchor",
                    fontsize="small", parse_math=False)  # fmt: skip
    axes.tick_params(axis="x", length=0, pad=2)
    axes.set_xlim(-0.6, n_columns - 0.4)
    axes.grid(axis="y")


def _drawable(text: str, most: int = 16) -> str:
    """Return *text* with escapes for what the font lacks, cut to *most* characters."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    drawn = "".join(
        char if font.get_char_index(ord(char)) else char.encode("unicode_escape").decode()
        for char in text
    )
    return drawn if len(drawn) <= most else f"{drawn[: most - 1]}…"


# Figures


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    """Yield a new figure; pyplot, which would show it a second time, does not keep it."""
    try:
        import matplotlib
        from matplotlib import pyplot
    except ImportError:
        raise LlamaError("plots need matplotlib: pip install 'llama-cffi[notebook]'") from None
    with matplotlib.rc_context(_STYLE):
        # pyplot, because notebooks show figures once its backend is loaded.
        figure = pyplot.figure(figsize=(_WIDTH_IN, height), layout="constrained")
        try:
            yield figure
        finally:
            pyplot.close(figure)


def _legend(
    figure: Figure, entries: Sequence[tuple[str, str]], markers: Sequence[str] | None = None
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, linewidth=1.6 if markers else 6, marker=marker, label=label)
        for (label, color), marker in zip(entries, markers or [""] * len(entries), strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4),
                  fontsize="small")  # fmt: skip
