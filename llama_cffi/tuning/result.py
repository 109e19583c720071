"""What `tune` returns: what was measured, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..binding.tuned import TunedSettings
from .timing import Request

__all__ = ["TuneResult", "TuneStep"]

_VARIED = {
    "threads": ("n_threads",),
    "kernels": ("cpu_variant", "flash_attn"),
    "n_ubatch": ("n_ubatch",),
}
_LONG_WAIT = 0.1


@dataclass(frozen=True)
class TuneStep:
    """One candidate of a comparison.

    Attributes:
        name: What was varied: `threads`, `kernels` (CPU variant and flash attention), `n_ubatch`;
            `check`: the last comparison, with the defaults.
        settings: The candidate.
        ratio: Its time for a request, divided by that of the best settings before it; a median.
            None: it could not be measured.
        low: The least ratio of a round.
        high: The largest.
        prefill_ratio: The same median of the prompt alone.
        decode_ratio: The same of the answer alone; None: there was none.
        n_rounds: How often both were measured.
        error: Why it could not be measured; empty if it was.
    """

    name: str
    settings: TunedSettings
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    prefill_ratio: float | None = None
    decode_ratio: float | None = None
    n_rounds: int = 0
    error: str = ""


@dataclass(frozen=True)
class TuneResult:
    """The result of `tune`. `str` gives a table.

    Attributes:
        path: The model.
        build: The build of llama.cpp.
        settings: The fastest settings; without any, the defaults are.
        ratio: The time of a request with them, divided by the time with the defaults; 1.0: the
            defaults are kept. None: nothing was measured (`dry_run`).
        request: The request of the last comparison: tokens of its prompt, of its answer, and how
            often a measurement repeats it.
        seconds: What the measurements took, or may take.
        defaults: The default settings here.
        candidates: What is varied, and the values.
        steps: What was measured.
        file: Where the settings are kept.
        waited: The part of the time in which threads waited for a processor: on a busy machine
            it may be better to repeat it.
    """

    path: str
    build: str
    settings: TunedSettings
    ratio: float | None
    request: Request
    seconds: float
    defaults: dict[str, object]
    candidates: dict[str, list[object]]
    steps: tuple[TuneStep, ...] = ()
    file: str = ""
    waited: float = 0.0

    def to_dict(self) -> dict[str, object]:
        """Return everything as a dict for JSON."""
        steps = [{**asdict(step), "settings": step.settings.given()} for step in self.steps]
        own = {"settings": self.settings.given(), "steps": steps, "request": self.request._asdict()}
        return {**asdict(self), **own}

    def __str__(self) -> str:
        request = (
            f"a prompt of {self.request.n_prompt} and an answer of {self.request.n_gen} tokens"
        )
        lines = [
            f"{self.path}, build {self.build}: {request}",
            f"defaults: {_pairs(self.defaults)}",
        ]
        if self.ratio is None:
            varied = (f"  {name}: {_values(values)}" for name, values in self.candidates.items())
            return "\n".join(
                [*lines, "would measure:", *varied, f"in about {self.seconds:.0f} seconds"]
            )
        rows = [("", "settings", "time", "prompt", "answer")]
        rows += [
            (
                step.name,
                _changed(step),
                step.error or _ratio(step.ratio, step.low, step.high),
                _ratio(step.prefill_ratio),
                _ratio(step.decode_ratio),
            )
            for step in self.steps
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        spread = max((len(row[2]) for row in rows if row[3]), default=0)
        lines += [
            f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:{spread}}  {row[3]:6}  {row[4]}"
            for row in rows
        ]
        if self.settings:
            settings = _pairs(self.settings.given())
            lines.append(f"kept in {self.file}: {settings}; {self.ratio:.2f} of the time")
        else:
            lines.append("the defaults are kept: nothing is faster beyond the noise")
        if self.waited > _LONG_WAIT:
            lines.append(
                f"the machine is busy: threads waited for a processor {self.waited:.0%} of the "
                "time; repeat this when it is idle"
            )
        return "\n".join(line.rstrip() for line in lines)


def _changed(step: TuneStep) -> str:
    """Return the settings that the step varied."""
    names = _VARIED.get(step.name, ())
    given = step.settings.given()
    shown = {name: given[name] for name in names or given if name in given}
    return _pairs(shown) or "defaults"


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in values.items())


def _values(values: list[object]) -> str:
    return ", ".join(map(_shown, values))


def _shown(value: object) -> str:
    if value is None:
        return "auto"
    return ("off", "on")[value] if isinstance(value, bool) else str(value) or "the only one"


def _ratio(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return ""
    spread = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    return f"{value:.2f}{spread}"
