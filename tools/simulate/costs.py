"""Step costs: measured with the real library, then interpolated.

``python -m tools.simulate.costs NAME MODEL.gguf`` measures a model and writes the numbers to
``costs.json``. One thread is used, and its CPU time measured: wall-clock time would include other
work of the machine. The minimum of several repeats counts, and of several runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path

from llama_cffi.binding import Batch, Context, Model

PATH = Path(__file__).with_name("costs.json")
N_SEQS = 32
N_UBATCH = 512  # the size of a micro-batch in C
PREFILL = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
DECODE = (1, 2, 4, 8, 16, 32)
START = 512  # tokens before a step, for the cost of their cells
MIXED = ((15, 1), (64, 8), (128, 16), (256, 8))  # prompt tokens, decoding sequences


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step, as a function of its tokens.

    Attributes:
        prefill: Tokens of one prompt, and seconds; one token has an output.
        decode: Sequences with a token each, and seconds; all tokens have outputs.
        own_s: Seconds per token and cell of its own sequence.
        other_s: Seconds per token and cell of other sequences in a shared cache.
        check: Mixed steps: prompt tokens, decoding sequences, measured and predicted seconds.
        how: The machine and method of the measurement.
    """

    prefill: list[tuple[int, float]]
    decode: list[tuple[int, float]]
    own_s: float
    other_s: float
    check: list[tuple[int, int, float, float]]
    how: str

    def seconds(
        self, lengths: Sequence[int], n_outputs: int, n_own: int, n_other: int, shared: bool
    ) -> float:
        """Return the seconds of a step.

        Args:
            lengths: Tokens of each sequence.
            n_outputs: Number of tokens with outputs.
            n_own: Cells of its own sequence that a token attends to, summed over the tokens.
            n_other: Cells of other sequences in a shared cache, likewise.
            shared: Whether sequences share the cells. Otherwise C batches equally many tokens of
                each sequence, as many as the shortest has, then the rest likewise.
        """
        total = 0.0
        if shared:
            total = self._tokens(sum(lengths))
        else:
            n_done = 0
            for i, length in enumerate(sorted(lengths)):
                if length > n_done:
                    total += self._tokens((length - n_done) * (len(lengths) - i))
                    n_done = length
        outputs = interpolate(self.decode, n_outputs) - interpolate(self.prefill, n_outputs)
        return total + max(outputs, 0.0) + self.own_s * n_own + self.other_s * n_other

    def _tokens(self, n: int) -> float:
        whole, rest = divmod(n, N_UBATCH)
        return whole * self.prefill[-1][1] + (interpolate(self.prefill, rest) if rest else 0.0)


def interpolate(points: list[tuple[int, float]], x: int) -> float:
    """Interpolate linearly at *x*, and extrapolate beyond the ends."""
    at = min(max(bisect_right(points, x, key=itemgetter(0)), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def load(name: str) -> StepCost:
    """Load the costs of a model."""
    return StepCost(**json.loads(PATH.read_text())[name])


class Stopwatch:
    """Times steps in a context.

    Args:
        model: The model.
        n_ctx: Cells of all sequences.
        unified: Whether the sequences share the cells.
        repeats: Minimum number of times to measure each step.
    """

    def __init__(self, model: Model, n_ctx: int, unified: bool, repeats: int) -> None:
        self.context = Context(
            model, n_ctx=n_ctx, n_seq_max=N_SEQS, n_batch=512, n_threads=1, kv_unified=unified
        )
        self.batch = Batch(512, library=model.library)
        self.repeats = repeats

    def seconds(self, n_prefill: int, n_decode: int, start: int = 0) -> float:
        """Return the minimum seconds of a step, which is undone after each repeat.

        Args:
            n_prefill: Prompt tokens, in the last sequence.
            n_decode: Sequences with a token each, from the first on.
            start: The position of the first token in each sequence.
        """
        seqs = [*range(n_decode), *[N_SEQS - 1] * n_prefill]
        positions = [start] * n_decode + [*range(start, start + n_prefill)]
        wanted = bytes([1] * n_decode + [0] * max(n_prefill - 1, 0) + [1] * bool(n_prefill))
        best = float("inf")
        for _ in range(self.repeats + 32 // len(seqs)):  # short ones more often
            self.batch.put([7] * len(seqs), positions, seqs, wanted)
            begin = time.thread_time()
            self.context.decode(self.batch)
            best = min(best, time.thread_time() - begin)
            for seq in set(seqs):
                self.context.memory.seq_rm(seq, start)
        return best

    def fill(self, seq_id: int, n: int) -> None:
        """Fill a sequence with *n* tokens."""
        for start in range(0, n, 512):
            part = range(start, min(start + 512, n))
            self.batch.put([7] * len(part), [*part], [seq_id] * len(part), bytes(len(part)))
            self.context.decode(self.batch)


def record(path: Path, repeats: int, n_far: int) -> StepCost:
    """Measure a model, with *n_far* cells of other sequences for the cost of those."""
    with Model(path) as model:
        watch = Stopwatch(model, N_SEQS * 640, False, repeats)
        watch.seconds(512, 0)  # first use
        prefill = [(n, watch.seconds(n, 0)) for n in PREFILL]
        decode = [(n, watch.seconds(0, n)) for n in DECODE]
        mixed = [(p, d, watch.seconds(p, d)) for p, d in MIXED]
        watch.context.close()

        watch = Stopwatch(model, n_far + 10 * START, True, repeats)
        alone = watch.seconds(64, 8)
        for seq in range(8, 8 + n_far // START):
            watch.fill(seq, START)
        beside = watch.seconds(64, 8)
        other_s = max(beside - alone, 0.0) / (72 * n_far)
        for seq in [*range(8), N_SEQS - 1]:
            watch.context.memory.seq_cp(8, seq)
        behind = watch.seconds(64, 8, START)
        own_s = (
            max(behind - beside, 0.0) / (72 * START) + other_s
        )  # those cells were counted as another's
        how = (
            f"{path.name}, {model.library.build.tag}, {platform.machine()} CPU, seconds of one "
            f"thread, minimum of {repeats}, {time.strftime('%Y-%m-%d')}"
        )
    cost = StepCost(prefill, decode, own_s, other_s, [], how)
    return checked(cost, mixed)


def checked(cost: StepCost, mixed: Sequence[tuple[int, int, float]]) -> StepCost:
    """Add the predictions for mixed steps."""
    lengths = [[p, *[1] * d] for p, d, _ in mixed]
    predicted = [cost.seconds(n, len(n), 0, 0, False) for n in lengths]
    return replace(cost, check=[(*m, s) for m, s in zip(mixed, predicted, strict=True)])


def least(a: StepCost, b: StepCost) -> StepCost:
    """Return the minimum of two measurements; the costs of cells are those of the first."""
    prefill = [min(pair) for pair in zip(a.prefill, map(tuple, b.prefill), strict=True)]
    decode = [min(pair) for pair in zip(a.decode, map(tuple, b.decode), strict=True)]
    pairs = zip(a.check, b.check, strict=True)
    mixed = [(p, d, min(s, other)) for (p, d, s, _), (_, _, other, _) in pairs]
    return checked(replace(a, prefill=prefill, decode=decode), mixed)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("name")
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--n-far", type=int, default=4096)
    args = parser.parse_args()
    every = json.loads(PATH.read_text()) if PATH.exists() else {}
    cost = record(args.model, args.repeats, args.n_far)
    if args.name in every:
        cost = least(cost, load(args.name))
    for n_prefill, n_decode, measured, predicted in cost.check:
        print(f"{n_prefill} + {n_decode}: {measured:.4f} s, predicted {predicted:.4f} s")
    every[args.name] = asdict(cost)
    PATH.write_text(json.dumps(every, indent=1) + "\n")


if __name__ == "__main__":
    main()
