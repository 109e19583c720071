"""The plots of docs/scheduling.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OPTIONS: dict[str, Any] = {"dpi": 80, "metadata": {"Software": None}}
KINDS = (("first", 1, "p95 to first token, s", 1.0), ("gaps", 2, "p99 between tokens, ms", 1000.0))


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw all plots into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _chunks([row for row in rows if row["policy"].startswith("chunk")], folder)
    high = max(row["load"] for row in rows)
    _policies([row for row in rows if row["load"] == high], folder)


def _chunks(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    names = sorted({row["policy"] for row in rows}, key=lambda name: int(name.split()[1]))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, (key, at, label, unit) in zip(axes, KINDS, strict=True):
        for i, name in enumerate(names):
            own = sorted((r["load"], unit * r[key][at]) for r in rows if r["policy"] == name)
            color = plt.get_cmap("viridis")(i / len(names))
            axis.plot(*zip(*own, strict=True), marker="o", color=color, label=name)
        axis.set(xlabel="load", ylabel=label, yscale="log")
        axis.set_xticks(sorted({row["load"] for row in rows}))
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.savefig(folder / "scheduling-chunks.png", **OPTIONS)
    plt.close(figure)


def _policies(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    names = [row["policy"] for row in rows]
    columns = {
        "first token, s (p50, p95, p99)": [row["first"] for row in rows],
        "worst wait, s (lowest, middle, highest priority)": [row["worst"] for row in rows],
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), sharey=True, layout="constrained")
    for axis, (label, values) in zip(axes, columns.items(), strict=True):
        for j, marker in enumerate("ovs"):
            axis.plot([v[j] for v in values], range(len(names)), marker, alpha=0.8)
        axis.set(xlabel=label, xscale="log")
        axis.set_yticks(range(len(names)), names)
        axis.grid(alpha=0.3, which="both")
    axes[0].invert_yaxis()
    figure.savefig(folder / "scheduling-policies.png", **OPTIONS)
    plt.close(figure)
