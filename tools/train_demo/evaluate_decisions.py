"""Ask the demo model held-out decisions through `llm.decide`; count right answers; calibration.

``python -m tools.train_demo.evaluate_decisions [GGUF] [-n 500] [--image FILE]``; the exit code is 1
when a kind stays below 95 % on inputs that are clear. Where an input leaves the answer open, the
probabilities are known, and the model's are compared with them. ``--image`` draws reliability
curves of all answers and needs matplotlib.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llama_cffi import Answer, Llama, PredicateAnswer
from llama_cffi.demo import model_path

from .kinds_decisions import DECISIONS, DecisionItem, decision

REQUIRED = 0.95
N_BINS = 10


@dataclass(frozen=True)
class Decided:
    """An item and the probabilities that the model gave to its options, in their order."""

    item: DecisionItem
    probabilities: tuple[float, ...]

    @property
    def confidence(self) -> float:
        """The probability of the chosen option."""
        return max(self.probabilities)

    @property
    def is_right(self) -> bool:
        """Whether the chosen option is the right one."""
        return self.probabilities.index(self.confidence) == self.item.answer


def heldout(kind: str, n: int, seed: int, clear: bool) -> list[DecisionItem]:
    """Draw *n* held-out items of a kind; the same arguments give the same ones."""
    rng = random.Random(f"{seed}:{kind}:{clear}")
    found: list[DecisionItem] = []
    while len(found) < n:
        item = decision(rng, kind, heldout=True)
        if item.is_clear == clear:
            found.append(item)
    return found


def probabilities(answer: Answer) -> tuple[float, ...]:
    """Return the probability of each option."""
    if isinstance(answer, PredicateAnswer):
        return answer.probability, 1 - answer.probability
    found: dict[object, float] = answer.probabilities  # type: ignore[attr-defined]
    return tuple(found.values())


def decide(llm: Llama, items: Sequence[DecisionItem], average_orders: bool) -> list[Decided]:
    """Decide every item."""
    return [
        Decided(
            item,
            probabilities(llm.decide(item.input, item.question, average_orders=average_orders)),
        )
        for item in tqdm(items, leave=False)
    ]


def accuracy(decided: Sequence[Decided]) -> float:
    """Return the share of right answers."""
    return sum(each.is_right for each in decided) / len(decided)


def bins(decided: Sequence[Decided]) -> list[tuple[float, float, int]]:
    """Return (mean probability of the chosen option, share of right ones, count) by bin."""
    found = []
    confidences = np.array([each.confidence for each in decided])
    right = np.array([each.is_right for each in decided])
    places = np.minimum((confidences * N_BINS).astype(int), N_BINS - 1)
    for place in range(N_BINS):
        here = places == place
        if here.any():
            found.append(
                (float(confidences[here].mean()), float(right[here].mean()), int(here.sum()))
            )
    return found


def calibration_error(decided: Sequence[Decided]) -> float:
    """Return the expected calibration error: |probability - share of right ones| by bin, mean."""
    return sum(n * abs(p - share) for p, share, n in bins(decided)) / len(decided)


def distance(decided: Sequence[Decided]) -> float:
    """Return how far the model's probabilities are from the known ones: mean of |p - q|."""
    every = [
        abs(p - q)
        for each in decided
        for p, q in zip(each.probabilities, each.item.chances, strict=True)
        if q > 0
    ]
    return sum(every) / len(every)


def draw(by_kind: dict[str, list[Decided]], path: Path) -> None:
    """Draw the reliability curve of each kind, and how often each probability was given."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, 3, figsize=(9, 4.2), height_ratios=(3, 1), sharex=True, sharey="row",
        layout="constrained",
    )  # fmt: skip
    for (above, below), (kind, decided) in zip(axes.T, by_kind.items(), strict=True):
        p, share, n = (np.array(column) for column in zip(*bins(decided), strict=True))
        error = np.sqrt(share * (1 - share) / n)
        above.plot((0, 1), (0, 1), color="grey", linewidth=1, linestyle="--")
        above.errorbar(p, share, 2 * error, marker="o", capsize=3)
        above.set(xlim=(0, 1), ylim=(0, 1.03))
        above.set_title(f"{kind}: {len(decided)} answers, ECE {calibration_error(decided):.3f}",
                        fontsize=10)  # fmt: skip
        below.bar((np.floor(p * N_BINS - 1e-9) + 0.5) / N_BINS, n, 0.9 / N_BINS, alpha=0.7)
        below.set(yscale="log", xlabel="probability of the chosen option")
        for axis in (above, below):
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("share of right answers")
    axes[1, 0].set_ylabel("answers")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


def main() -> int:
    """Parse the command line, evaluate, print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=model_path())
    parser.add_argument("-n", type=int, default=500, help="clear inputs per kind, and open ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=int, default=3, help="failures to print per kind")
    parser.add_argument("--image", type=Path, help="draw the calibration into this file")
    args = parser.parse_args()
    print(f"{'':<10}{'clear inputs: right':>31}{'open inputs':>26}{'all':>14}")
    print(f"{'kind':<10}{'n':>6}{'one order':>11}{'both orders':>14}"
          f"{'n':>8}{'from known p':>18}{'ECE':>14}")  # fmt: skip
    low, by_kind, failures = [], {}, []
    with Llama(args.model, n_ctx=768, n_threads=args.threads, n_gpu_layers=0) as llm:
        for kind in DECISIONS:
            clear = heldout(kind, args.n, args.seed, True)
            single, both = decide(llm, clear, False), decide(llm, clear, True)
            unclear = decide(llm, heldout(kind, args.n, args.seed, False), True)
            by_kind[kind] = both + unclear
            print(f"{kind:<10}{args.n:>6}{accuracy(single):>11.1%}{accuracy(both):>14.1%}"
                  f"{args.n:>8}{distance(unclear):>18.3f}"
                  f"{calibration_error(by_kind[kind]):>14.3f}", flush=True)  # fmt: skip
            low += [kind] if min(accuracy(single), accuracy(both)) < REQUIRED else []
            failures += [each for each in both if not each.is_right][: args.show]
    for each in failures:
        question, item = each.item.question, each.item
        options = [o.description or o.text for o in question.options]
        given = ", ".join(f"{o} {p:.2f}" for o, p in zip(options, each.probabilities, strict=True))
        print(f"    {item.input!r} {question.instructions!r}: {given}; not {options[item.answer]}")
    if args.image:
        draw(by_kind, args.image)
    print(
        f"below {REQUIRED:.0%}: {', '.join(low)}" if low else f"every kind reaches {REQUIRED:.0%}"
    )
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
