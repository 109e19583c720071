"""Find the fastest settings by interleaved measurements; without a clock or a model of its own.

One thing is varied at a time. In each round every candidate runs beside the best settings so far,
and what counts is the median over the rounds of the ratio of both: the speed of a machine changes
from minute to minute. At the end the winner runs against the defaults.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..binding.tuned import TunedSettings
from ..errors import CancelledError, LlamaError
from .result import TuneStep
from .timing import Request, Sample

__all__ = ["ChooseRequest", "Measure", "Search", "SearchSpace"]

N_ROUNDS, N_LAST = 3, 7
# Of the time.
_SHARES = {"threads": 0.2, "kernels": 0.5, "check": 0.3}
GAIN = 0.97  # a ratio above this is noise
_HOPELESS = 1.5  # candidates slower than this times the best leave after two rounds
_MOST_SLOWER = 0.25  # of the rounds of the last comparison
_LEAST_ROUNDS = 3  # of the last comparison, also when the time is over


class Measure(Protocol):
    """Times a request."""

    def __call__(self, settings: TunedSettings, request: Request, /) -> Sample:
        """Return the seconds; raise LlamaError if the settings do not work."""
        ...


class ChooseRequest(Protocol):
    """Chooses a request by the time that it takes."""

    def __call__(self, settings: TunedSettings, n_samples: int, share: float, /) -> Request:
        """Return one of which *n_samples* with *settings* take a share of the time."""
        ...


@dataclass(frozen=True)
class SearchSpace:
    """What may be varied; the defaults are not listed.

    Attributes:
        cpu_variants: CPU variants.
        flash_attn: Flash attention with the default CPU variant.
        n_threads: Numbers of threads.
        n_ubatch: Values of n_ubatch.
        default_threads: Threads without settings, for single tokens and for prompts.
    """

    cpu_variants: Sequence[str]
    flash_attn: Sequence[bool]
    n_threads: Sequence[int]
    n_ubatch: Sequence[int]
    default_threads: tuple[int, int]

    def kernels(self) -> list[TunedSettings]:
        """Return the combinations of CPU variants and flash attention."""
        found = [TunedSettings(flash_attn=on) for on in self.flash_attn]
        return found + [
            TunedSettings(cpu_variant=name, flash_attn=on)
            for name in self.cpu_variants
            for on in (True, False)
        ]

    @property
    def n_samples(self) -> int:
        """How many measurements there are at most."""
        steps = (self.n_threads, self.kernels(), self.n_ubatch)
        return sum(N_ROUNDS * (1 + len(step)) for step in steps if step) + 2 * N_LAST

    def to_dict(self) -> dict[str, list[object]]:
        """Return what is varied, and the values."""
        names = ("cpu_variants", "flash_attn", "n_threads", "n_ubatch")
        return {name: list(getattr(self, name)) for name in names if getattr(self, name)}


class Search:
    """One search.

    Args:
        measure: Times a request with settings.
        space: What is varied.
        choose_request: Chooses what is timed.
        is_late: Whether the time is over: what is not begun by then is left out, except the last
            comparison.

    Attributes:
        steps: What was measured, in order.
        request: What was timed last.
    """

    def __init__(
        self,
        measure: Measure,
        space: SearchSpace,
        choose_request: ChooseRequest,
        is_late: Callable[[], bool] = lambda: False,
    ) -> None:
        self._measure, self._space = measure, space
        self._choose_request, self._is_late = choose_request, is_late
        self.steps: list[TuneStep] = []
        self.request = Request(1, 1)
        self._waits: list[float] = []

    @property
    def waited(self) -> float:
        """The part of the time in which threads waited for a processor, a median."""
        return statistics.median(self._waits or [0.0])

    def run(self) -> tuple[TunedSettings, list[float]]:
        """Return the best settings, and the ratios of their times to those of the defaults.

        Settings that are not faster than the defaults in the last comparison are the defaults.

        Raises:
            CancelledError: Measuring was cancelled.
            LlamaError: The defaults do not work.
        """
        # Threads first: too many of them on a busy machine hide every other difference.
        best = TunedSettings()
        if self._space.n_threads:
            n_samples = N_ROUNDS * (1 + len(self._space.n_threads))
            self.request = self._choose_request(best, n_samples, _SHARES["threads"])
            best = self._with_threads(best)
        kernels = [
            replace(best, cpu_variant=k.cpu_variant, flash_attn=k.flash_attn)
            for k in self._space.kernels()
        ]
        n_samples = N_ROUNDS * (2 + len(kernels) + len(self._space.n_ubatch))
        self.request = self._choose_request(best, n_samples, _SHARES["kernels"])
        best = self._fastest("kernels", best, kernels)
        ubatches = [replace(best, n_ubatch=n) for n in self._space.n_ubatch]
        best = self._fastest("n_ubatch", best, ubatches)
        if not best:
            return best, []
        self.request = self._choose_request(TunedSettings(), 2 * N_LAST, _SHARES["check"])
        ratios = [s.total_s / d.total_s for s, d in self._last(best)]
        slower = sum(ratio >= 1 for ratio in ratios)
        if statistics.median(ratios) > GAIN or slower > _MOST_SLOWER * len(ratios):
            return TunedSettings(), ratios
        return best, ratios

    def _fastest(
        self, name: str, reference: TunedSettings, candidates: Sequence[TunedSettings]
    ) -> TunedSettings:
        """Return the fastest of *candidates* and *reference*."""
        found = self._compare(name, reference, candidates)
        ratios = {
            settings: statistics.median(s.total_s / r.total_s for s, r in pairs)
            for settings, pairs in found.items()
        }
        best = min(ratios, key=ratios.__getitem__, default=reference)
        return best if ratios.get(best, 1.0) < GAIN else reference

    def _with_threads(self, best: TunedSettings) -> TunedSettings:
        """Return *best* with the numbers of threads that are the fastest, for each phase."""
        candidates = [replace(best, n_threads=n, n_threads_batch=n) for n in self._space.n_threads]
        found = self._compare("threads", best, candidates)
        chosen = list(self._space.default_threads)
        for phase in (0, 1):  # single tokens, prompts
            ratios = {
                settings.n_threads: statistics.median(s[1 - phase] / r[1 - phase] for s, r in pairs)
                for settings, pairs in found.items()
            }
            n = min(ratios, key=ratios.__getitem__, default=None)
            if n is not None and ratios[n] < GAIN:
                chosen[phase] = n
        if tuple(chosen) == self._space.default_threads:
            return best
        return replace(best, n_threads=chosen[0], n_threads_batch=chosen[1])

    def _last(self, best: TunedSettings) -> list[tuple[Sample, Sample]]:
        """Return the measurements of *best* and of the defaults."""
        found = self._compare("check", TunedSettings(), [best])
        return found.get(best, [])

    def _compare(
        self,
        name: str,
        reference: TunedSettings,
        candidates: Sequence[TunedSettings],
    ) -> Mapping[TunedSettings, list[tuple[Sample, Sample]]]:
        """Return for each candidate that stays to the end its measurements beside the reference's.

        The order turns with each round, so that nobody always runs after the same one.
        """
        found: dict[TunedSettings, list[tuple[Sample, Sample]]] = {c: [] for c in candidates}
        left = list(candidates)
        request = self.request._replace(n_gen=0) if name == "n_ubatch" else self.request
        for number in range(N_LAST if name == "check" else N_ROUNDS):
            if not left or (self._is_late() and (name != "check" or number >= _LEAST_ROUNDS)):
                break
            samples: dict[TunedSettings, Sample] = {}
            for settings in self._order(reference, left, number):
                try:
                    sample = samples[settings] = self._measure(settings, request)
                    self._waits.append(sample.waited)
                except LlamaError as e:
                    if settings == reference or isinstance(e, CancelledError):
                        raise
                    left.remove(settings)
                    found.pop(settings)
                    self.steps.append(TuneStep(name, settings, error=str(e)))
            for settings in left:
                found[settings].append((samples[settings], samples[reference]))
            if number and left and name == "kernels":
                self._drop_hopeless(name, found, left)
        left = [settings for settings in left if found[settings]]
        for settings in left:
            self._note(name, settings, found[settings])
        return {settings: found[settings] for settings in left}

    def _order(
        self, reference: TunedSettings, left: Sequence[TunedSettings], number: int
    ) -> Iterator[TunedSettings]:
        order = [reference, *left]
        at = number % len(order)
        yield from order[at:] + order[:at]

    def _drop_hopeless(
        self,
        name: str,
        found: Mapping[TunedSettings, list[tuple[Sample, Sample]]],
        left: list[TunedSettings],
    ) -> None:
        # By the best round of each: other programs only ever slow a round down.
        seconds = {settings: min(s.total_s for s, _ in found[settings]) for settings in left}
        reference_s = [r.total_s for settings in left for _, r in found[settings]]
        limit = _HOPELESS * min([*seconds.values(), *reference_s])
        for settings, least in seconds.items():
            if least > limit:
                left.remove(settings)
                self._note(name, settings, found[settings])

    def _note(
        self, name: str, settings: TunedSettings, pairs: Sequence[tuple[Sample, Sample]]
    ) -> None:
        ratios = [s.total_s / r.total_s for s, r in pairs]
        self.steps.append(
            TuneStep(
                name,
                settings,
                ratio=statistics.median(ratios),
                low=min(ratios),
                high=max(ratios),
                prefill_ratio=statistics.median(s.prefill_s / r.prefill_s for s, r in pairs),
                decode_ratio=(
                    statistics.median(s.decode_s / r.decode_s for s, r in pairs)
                    if all(r.decode_s > 0 for _, r in pairs)
                    else None
                ),
                n_rounds=len(ratios),
            )
        )
