"""Find out, at no cost per token, that decoding waits for processors, and warn once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ...validation import warn_caller
from ..processors import run_queue_waits

__all__ = ["StepWatch"]

_N_STEPS = 32
_MOST_TOKENS = 32  # in a step; a batch of more is a prompt
_SLOW = 10.0  # times the fastest step
_LONG_S = 0.5  # less is a moment's work of another program
_PAUSE_S = 1.0


class StepWatch:
    """Times some steps after prompts, and warns once if they are slow for want of a processor.

    ggml's threads wait for each other, spinning, after each operation: when other programs use
    the processor of one of them, all wait until the system runs it again. Small models then decode
    10 to 1,000 times slower. The sign, for two times 32 steps in a row: they take 10 times as long
    as the fastest one, at least 0.5 s, and in the second 32 the threads of this process were ready
    to run but waited during at least 30 % of that time. Only Linux counts that.

    Args:
        clock: The time in seconds.
        waits: For each thread how long, in seconds, it was ready but not run; empty: unknown.
        warn: Takes the message.

    Attributes:
        active: Whether the next step is to be timed.
    """

    _LEAST_WAITING = 0.3

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        waits: Callable[[], Mapping[int, float]] = run_queue_waits,
        warn: Callable[[str], None] = warn_caller,
    ) -> None:
        self.clock = clock
        self._waits, self._warn = waits, warn
        self.active = False
        self._fastest: dict[int, float] = {}  # seconds, by number of tokens
        self._next = float("-inf")  # when to start again; inf: it has warned
        self._before: Mapping[int, float] = {}  # after the first 32 slow steps
        self._begin()

    def start(self) -> None:
        """Time the next steps, unless that was done a moment ago. For each prompt."""
        self.active = self.active or self.clock() >= self._next

    def add(self, n_tokens: int, seconds: float) -> None:
        """Note a step that was timed."""
        if n_tokens <= _MOST_TOKENS:
            fastest = self._fastest.get(n_tokens, seconds)
            self._fastest[n_tokens] = min(fastest, seconds)
            self._steps.append(n_tokens)
            self._seconds += seconds

    def judge(self, n_threads: int) -> None:
        """Warn if enough steps have shown it. Before a step, which the warning may prevent.

        Args:
            n_threads: Threads that compute a step.
        """
        if len(self._steps) < _N_STEPS:
            return
        steps, seconds = self._steps, self._seconds
        usual = sum([self._fastest[n] for n in steps])
        before, self._before = self._before, {}
        self._begin()
        if seconds >= max(_LONG_S, _SLOW * usual):
            waits = self._waits()
            if waits and not before:
                self._before = waits
                return
            waited = sum([s - before.get(thread, 0) for thread, s in waits.items()]) / seconds
            if before and waited >= self._LEAST_WAITING:
                self.active, self._next = False, float("inf")
                self._warn(_message(seconds / len(steps), usual / len(steps), waited, n_threads))
                return
        self.active, self._next = False, self.clock() + _PAUSE_S

    def _begin(self) -> None:
        self._steps: list[int] = []  # tokens of each
        self._seconds = 0.0


def _message(step_s: float, fastest_s: float, waited: float, n_threads: int) -> str:
    fewer = max(1, n_threads - max(1, round(waited)))
    return (
        f"decoding takes {step_s * 1e3:.1f} ms per step, {step_s / fastest_s:,.0f} times its "
        f"fastest ({fastest_s * 1e3:.2f} ms): {min(waited, n_threads):.1f} of its {n_threads} "
        "threads wait for processors that other programs use, and the others wait for them. Use "
        f"n_threads={fewer} (LLAMA_CFFI_N_THREADS={fewer}, --threads {fewer}), or let this process "
        "have more processors."
    )
