"""Give cases to worker processes, and note those that kill one, hang, or raise other errors."""

from __future__ import annotations

import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["SIZE", "Failure", "Job", "Limits", "Tally", "run_jobs"]

ROOT = Path(__file__).parents[2]
SIZE = 50  # cases of a seed
_LAST_LINES = 12
_START_S = 120.0  # a library is fetched, declarations are parsed


@dataclass(frozen=True)
class Job:
    """Cases of one seed: *first* to *stop* - 1 of `SIZE`, of one kind with one build.

    *check* is how models are checked before they are loaded; see `Model`.
    """

    build: str
    module: Path
    seed: int
    first: int
    stop: int
    check: str = "rules"


@dataclass(frozen=True)
class Limits:
    """What a worker may take: seconds for a case, bytes of address space."""

    seconds: float = 60.0
    memory: int = 8 << 30


@dataclass(frozen=True)
class Failure:
    """A case that killed its worker, hung, or raised something else than the errors of the API."""

    job: Job
    index: int
    what: str
    ended: str  # death, hang or error
    how: str
    output: str


@dataclass
class Tally:
    """What one kind gave with one build."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def ended(self, how: str) -> int:
        """Return the number of failures that ended so."""
        return sum(failure.ended == how for failure in self.failures)


class _Worker:
    """A process for the cases of one kind, build and check."""

    def __init__(self, job: Job, memory: int) -> None:
        self.build, self.module, self.check = job.build, job.module, job.check
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.errors = (self.folder / "stderr").open("w+b")
        read, write = os.pipe()
        search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(search),
            "LLAMA_CFFI_BUILD": job.build,
            "LLAMA_CFFI_CHECK": job.check,
            "TMPDIR": str(self.folder),  # removed with it
            "GGML_NO_BACKTRACE": "1",
            "MALLOC_PERTURB_": "165",  # freed memory is overwritten, so that reading it shows
        }
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tools.fuzz.worker",
             job.module, self.folder, str(write), str(memory)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self.errors, text=True,
            pass_fds=[write], env=env,
        )  # fmt: skip
        os.close(write)
        self.lines, self.rest = read, b""

    def send(self, *job: int) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended, which `receive` reports
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()

    def receive(self, seconds: float) -> list[Any] | None:
        """Return the next message; an empty one at the end of the process, None if none came."""
        end_s = time.monotonic() + seconds
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.lines], [], [], max(0.0, end_s - time.monotonic()))
            if not ready:
                return None
            data = os.read(self.lines, 1 << 16)
            if not data:
                return []
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        message: list[Any] = json.loads(line)
        return message

    def close(self) -> str:
        """End the process and remove its files; return how it ended, empty if as it should."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = None
        self._remove()
        return "" if code == 0 else "it did not exit" if code is None else _ending(code)

    def bury(self, *, hung: bool) -> tuple[str, str]:
        """End a dead or hanging process; return how it ended, and its last lines on stderr."""
        if hung:
            self.process.send_signal(signal.SIGABRT)  # faulthandler prints where it is
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace")
        self._remove()
        return _ending(code), "\n".join(text.splitlines()[-_LAST_LINES:])

    def _remove(self) -> None:
        os.close(self.lines)
        self.errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def run_jobs(
    jobs: Sequence[Job],
    limits: Limits,
    n_workers: int,
    keep: Path | None = None,
    advance: Callable[[int], object] = lambda n: None,
    tell: Callable[[Failure], object] = lambda failure: None,
) -> dict[tuple[str, Path], Tally]:
    """Run all jobs; return (build, module) -> what they gave.

    Args:
        jobs: The cases.
        limits: Of each worker.
        n_workers: Number of workers at a time.
        keep: Where the files of failures are copied.
        advance: Called with the number of cases that ended.
        tell: Called with each failure when it happens.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    tallies = {(job.build, job.module): Tally() for job in jobs}
    lock, errors = threading.Lock(), list[BaseException]()

    def add(job: Job, tally: Tally) -> None:
        with lock:
            total = tallies[job.build, job.module]
            total.outcomes += tally.outcomes
            total.seconds += tally.seconds
            for failure in tally.failures:  # the end of a worker may belong to the job before
                tallies[failure.job.build, failure.job.module].failures.append(failure)
                tell(failure)
            advance(job.stop - job.first)

    def serve() -> None:
        slot = _Slot(limits, keep)
        try:
            while not errors:
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    break
                add(job, slot.run(job))
        except BaseException as error:
            errors.append(error)
        finally:
            for failure in slot.close():
                tallies[failure.job.build, failure.job.module].failures.append(failure)

    threads = [threading.Thread(target=serve) for _ in range(n_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return tallies


class _Slot:
    """One worker at a time, replaced when it ends and for another kind or build."""

    def __init__(self, limits: Limits, keep: Path | None) -> None:
        self.limits, self.keep = limits, keep
        self.worker: _Worker | None = None
        self.last: Job | None = None

    def run(self, job: Job) -> Tally:
        """Run one job, with as many workers as it kills."""
        tally, start_s = Tally(), time.monotonic()
        at = job.first  # the case that runs or is made
        while at < job.stop:
            tally.failures += self._renew(job)
            assert self.worker is not None
            self.worker.send(job.seed, at, job.stop, SIZE)
            what, path, begun = "the worker starts", "", False
            while message := self.worker.receive(self.limits.seconds if path else _START_S):
                begun = True
                if message[0] == "case":
                    at, what, path = message[1:]
                    continue
                if message[0] == "done":
                    at = job.stop
                    break
                if message[0] == "end":
                    tally.outcomes[message[1]] += 1
                else:
                    self._copy(job, path)
                    how = message[1].strip().splitlines()[-1]
                    tally.failures.append(Failure(job, at, what, "error", how, message[1]))
                at, what, path = at + 1, "while it was made", ""
            if message:
                break
            self._copy(job, path)
            how, output = self.worker.bury(hung=message is None)
            self.worker = None
            ended = "hang" if message is None else "death"
            tally.failures.append(Failure(job, at, what, ended, how, output))
            at = at + 1 if begun else job.stop  # another would not start either
        tally.seconds = time.monotonic() - start_s
        self.last = job
        return tally

    def close(self) -> list[Failure]:
        """End the worker; return a failure if it does not exit as it should."""
        worker, self.worker = self.worker, None
        if worker is None or self.last is None or not (how := worker.close()):
            return []
        return [Failure(self.last, self.last.stop, "at exit, after the case", "death", how, "")]

    def _renew(self, job: Job) -> list[Failure]:
        """Have a worker for a job; return what the end of the one before gave."""
        failures: list[Failure] = []
        last = self.worker
        if last and (last.build, last.module, last.check) != (job.build, job.module, job.check):
            failures = self.close()
        if self.worker is None:
            self.worker = _Worker(job, self.limits.memory)
        return failures

    def _copy(self, job: Job, path: str) -> None:
        """Keep the file of a failure."""
        if self.keep and path and os.path.exists(path):
            name = f"{job.module.stem}-{job.seed}-{Path(path).name}"
            shutil.copy(path, self.keep / name)
