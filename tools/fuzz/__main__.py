"""Feed damaged files, random API programs and bad HTTP requests to processes that may die.

    python -m tools.fuzz                                  everything, on an old, a middle and the
                                                       newest build; exit code 1 on any failure
    python -m tools.fuzz adapters=500 states --builds npm:3.1.1
    python -m tools.fuzz adapters --builds npm:3.1.1 --case 17:42 --keep .     one case again

A kind is a module beside this one, with either

    cases(seed, count, folder)   yields (description, path) of *count* files, one at a time
    run(path)                    uses the file, and returns its outcome in a word or two

or, for cases without a file, `STEPS`, `program(seed, steps)`, which describes one, and
`run(seed, steps)`. A case is known by its seed and its number there, so that each can be run again.
A failure is a case that ends its process (death), takes longer than --seconds (hang), or raises
from `run` (error), which is to catch what the API may raise. Models are checked by rules only,
which is ten times faster; a case that fails is repeated with the default check, and does not count
if the model is refused then because a child process died of it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from tools.fuzz.runner import SIZE, Failure, Job, Limits, Tally, run_jobs

HERE = Path(__file__).parent
# For each build: 60,000 model files on the three.
COUNTS = {
    "model_files": 20_000,
    "adapters": 2_000,
    "states": 2_000,
    "control_vectors": 1_000,
    "media_files": 2_000,
    "programs": 2_000,
    "requests": 2_000,
}
BUILDS = "npm:3.1.1,npm:3.14.0,npm:3.22.1"


def main() -> int:
    """Run the cases, and print a table and every failure."""
    args = arguments()
    seed, number = (int(part) for part in args.case.split(":")) if args.case else (args.seed, None)
    kinds = dict(parsed(kind) for kind in args.kinds) or {
        module(name): count for name, count in COUNTS.items()
    }
    jobs: list[Job] = []
    for build in args.builds.split(","):
        for path, count in kinds.items():
            if number is not None:
                jobs.append(Job(build, path, seed, number, number + 1))
            else:
                jobs += [
                    Job(build, path, seed + i, 0, min(SIZE, count - i * SIZE))
                    for i in range(-(-count // SIZE))
                ]
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    total = sum(job.stop - job.first for job in jobs)
    limits = Limits(args.seconds, args.memory << 20)
    with tqdm(total=total, unit="case", disable=None) as bar:
        tallies = run_jobs(jobs, limits, args.jobs, args.keep, bar.update, tell)
    for tally in tallies.values():
        repeat(tally, limits)
    print("\n".join(report(tallies)))
    last = max(job.seed for job in jobs)
    n_failures = sum(len(tally.failures) for tally in tallies.values())
    print(f"seeds {seed} to {last}, {total:,} cases, {n_failures} failures")
    return 1 if n_failures else 0


def tell(failure: Failure) -> None:
    """Say what has failed, while others run."""
    tqdm.write(described(failure)[0], file=sys.stderr)


def repeat(tally: Tally, limits: Limits) -> None:
    """Run the failures again with the default check; drop those that a child process prevents."""
    failures, tally.failures = tally.failures, []
    for failure in failures:
        if failure.index >= failure.job.stop:  # at exit, which no case repeats
            tally.failures.append(failure)
            continue
        job = replace(failure.job, first=failure.index, stop=failure.index + 1, check="auto")
        (again,) = run_jobs([job], limits, 1).values()
        if any("was tried in a child process" in outcome for outcome in again.outcomes):
            tally.outcomes[f"{failure.ended} that the default check prevents"] += 1
        else:
            tally.failures.append(failure)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND[=COUNT]", help="default: " + " ".join(
            f"{name}={count}" for name, count in COUNTS.items()
        ),
    )  # fmt: skip
    parser.add_argument("--builds", default=BUILDS, help="comma-separated; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="the first seed; default: 1")
    parser.add_argument("--case", metavar="SEED:NUMBER", help="run one case")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="worker processes")
    parser.add_argument("--seconds", type=float, default=60.0, help="a longer case hangs")
    parser.add_argument("--memory", type=int, default=8192, help="limit of a worker in MiB")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the files that fail")
    return parser.parse_args()


def module(name: str) -> Path:
    """Return the file of a kind: beside this one, or elsewhere."""
    path = Path(name) if name.endswith(".py") else HERE / f"{name}.py"
    if not path.is_file():
        sys.exit(f"no such kind: {path}")
    return path.resolve()


def parsed(kind: str) -> tuple[Path, int]:
    """Split KIND=COUNT."""
    name, _, count = kind.partition("=")
    return module(name), int(count or COUNTS.get(name, SIZE))


def report(tallies: dict[tuple[str, Path], Tally]) -> Iterator[str]:
    """Yield the lines of the summary."""
    yield "build        kind               cases deaths  hangs errors  outcomes"
    for (build, path), tally in tallies.items():
        n = tally.outcomes.total() + len(tally.failures)
        counts = " ".join(f"{tally.ended(how):6}" for how in ("death", "hang", "error"))
        named = Counter[str]()
        for outcome, count in tally.outcomes.items():  # without the messages
            named[outcome.split(":")[0]] += count
        outcomes = ", ".join(f"{name} {count}" for name, count in named.most_common())
        speed = n / tally.seconds if tally.seconds else 0
        yield f"{build:12} {path.stem:16} {n:7} {counts}  {outcomes} ({speed:.0f}/s)"
    for tally in tallies.values():
        for failure in tally.failures:
            yield from ("", *described(failure))


def described(failure: Failure) -> Sequence[str]:
    """Return the lines about a failure, with the command that runs it again."""
    job = failure.job
    kind = job.module.stem if job.module.parent == HERE else str(job.module)
    case = f"{job.seed}:{failure.index}"
    command = ["python", "-m", "tools.fuzz", kind, "--builds", job.build, "--case", case]
    return [
        f"{failure.ended} ({failure.how}): {kind} {case} on {job.build}: {failure.what}",
        f"    {shlex.join(command)}",
        *(f"    | {line}" for line in failure.output.splitlines()),
    ]


if __name__ == "__main__":
    sys.exit(main())
