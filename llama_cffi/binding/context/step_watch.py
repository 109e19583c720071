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
_LONG_S = 0.5  # for 32 steps; less is a moment's work of another program
_LEAST_WAITING = 0.3
_PAUSE_S = 1.0


class StepWatch:
    """Times some steps after prompts, and warns once if they are slow for want of a processor.

    ggml's threads wait for each other, spinning, after each operation: when other programs use
    the processor of one of them, all wait until the system runs it again. Small models then decode
    10 to 1,000 times slower. The sign, for two times 32 steps with as many tokens each: they take
    10 times as long as the fastest one and at least 0.5 s, and during the second 32 the threads of
    this process were ready to run but waited for at least 30 % of the time. Only Linux counts that.

    Args:
        clock: The time in seconds.
        waits: For each thread how long, in seconds, it was ready but not run; empty: unknown.
        warn: Takes the message.

    Attributes:
        active: Whether the next step is to be timed.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        waits: Callable[[], Mapping[int, float]] = run_queue_waits,
        warn: Callable[[str], None] = warn_caller,
    ) -> None:
        self.clock = clock
        self._waits, self._warn = waits, warn
        self.active = False
        self._steps: dict[int, list[float]] = {}  # seconds, by number of tokens
        self._fastest: dict[int, float] = {}
        self._full = self._n_threads = 0  # tokens and threads of the steps that are enough
        # When the first slow steps ended, and how long each thread had waited then.
        self._before: tuple[float, Mapping[int, float]] | None = None
        self._next = float("-inf")  # when to start again; inf: it has warned

    def start(self) -> None:
        """Time the next steps, unless that was done a moment ago. For each prompt."""
        self.active = self.active or self.clock() >= self._next

    def add(self, n_tokens: int, n_threads: int, seconds: float) -> None:
        """Note that a step of *n_tokens* took *seconds* with *n_threads*."""
        if n_tokens <= _MOST_TOKENS:
            steps = self._steps.setdefault(n_tokens, [])
            steps.append(seconds)
            self._fastest[n_tokens] = min(self._fastest.get(n_tokens, seconds), seconds)
            if len(steps) == _N_STEPS:
                self._full, self._n_threads = n_tokens, n_threads

    def judge(self) -> None:
        """Warn if enough steps have shown it. Before a step, since the warning may be an error."""
        if not self._full:
            return
        now, before, self._before = self.clock(), self._before, None
        step_s, fastest_s = sum(self._steps[self._full]) / _N_STEPS, self._fastest[self._full]
        self._steps, self._full = {}, 0
        self.active, self._next = False, now + _PAUSE_S
        if step_s < max(_LONG_S / _N_STEPS, _SLOW * fastest_s) or not (waits := self._waits()):
            return
        if before is None:
            self._before, self.active = (now, waits), True
            return
        since, waited = before
        added = [seconds - waited.get(thread, 0.0) for thread, seconds in waits.items()]
        n_waiting = sum(added) / (now - since)
        if n_waiting >= _LEAST_WAITING:
            self._next = float("inf")
            self._warn(_message(step_s, fastest_s, n_waiting, self._n_threads))


def _message(step_s: float, fastest_s: float, n_waiting: float, n_threads: int) -> str:
    fewer = max(1, n_threads - max(1, round(n_waiting)))
    return (
        f"decoding takes {step_s * 1e3:.1f} ms per step, {step_s / fastest_s:,.0f} times its "
        f"fastest ({fastest_s * 1e3:.2f} ms): {min(n_waiting, n_threads):.1f} of its {n_threads} "
        "threads wait for processors that other programs use, and the others wait for them. Use "
        f"n_threads={fewer} (LLAMA_CFFI_N_THREADS={fewer}, --threads {fewer}), or let this process "
        "have more processors."
    )
