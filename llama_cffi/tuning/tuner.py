"""Measure settings of a model on this machine, and keep those that are faster than the defaults."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..binding.context.defaults import DEFAULT_N_UBATCH
from ..binding.loading.library import library_for
from ..binding.model.files import open_files
from ..binding.processors import MAX_THREADS
from ..binding.tuned import TunedSettings, keep, kept, tuned_file
from ..child_process import can_start
from ..doctor.backends import cpu_variants
from ..errors import CancelledError, LlamaError
from ..hub import resolve_model
from ..libs_fetch.machine import physical_cores, usable_cpus
from ..memory_plan import estimate
from ..progress import Progress, reporting
from ..validation import as_path, check_bool, check_float, check_int
from .children import Children
from .result import TuneResult
from .search import N_ROUNDS, Measure, Search, SearchSpace
from .timing import Request, Sample

if TYPE_CHECKING:
    from ..gguf.header_check import GgufSummary
    from ..libs_fetch import InstalledBuild

__all__ = ["tune"]

_UBATCHES = (128, 256, 512, 1024, 2048)
# Their instructions are among those of haswell, and they have no kernels that it lacks.
_OUTDATED = ("x64", "sse42", "sandybridge", "ivybridge", "piledriver")
_LEAST_PROMPT, _LEAST_ANSWER = 64, 16
_SAMPLE_S, _MOST_REPEATS = 0.1, 20
_MOST_CHILDREN, _SHARE_OF_MEMORY = 16, 0.8
_FEWEST_THREADS = 8  # a part of the cores
_VARIANTS_TIMEOUT_S = 60.0
_SHOWN = ("cpu_variant", "n_threads", "n_threads_batch", "flash_attn")


def tune(
    model_path: str | os.PathLike[str],
    *,
    seconds: float = 60.0,
    n_prompt: int = 512,
    n_gen: int = 128,
    n_gpu_layers: int = -1,
    dry_run: bool = False,
    progress: Progress = None,
) -> TuneResult:
    """Measure the settings of a model on this machine, and keep those that are the fastest.

    The CPU variants of the build, flash attention, the numbers of threads and `n_ubatch` are
    varied, each beside the best so far; at the end the best run against the defaults. If they are
    faster beyond the noise, they are kept for models of this shape, this build and this processor,
    and used from then on wherever a caller sets nothing; else the defaults are. What an environment
    variable sets is not varied. Until the end, and after an error, what was kept before stays.

    Args:
        model_path: A GGUF file, or `hf:owner/repo:file`.
        seconds: About how long to measure. Requests of large models become shorter for it, down
            to 64 tokens and an answer of 16; what is not begun by then is left out, except the last
            comparison.
        n_prompt: Tokens of the prompt of a typical request.
        n_gen: Tokens of its answer.
        n_gpu_layers: Layers on the GPU; -1: all.
        dry_run: Measure only the defaults, once, to tell what would be varied and how long it
            would take.
        progress: True shows a bar on stderr; a function gets the part that is done, 0 to 1, and
            returns False to stop, which keeps the settings as they were.

    Raises:
        ValidationError: An argument is out of range, or the settings cannot be written.
        ModelLoadError: The model cannot be loaded.
        FetchError: The model or the build cannot be fetched.
        CancelledError: *progress* returned False.
        LlamaError: The defaults do not work here, or no process can be started to measure.
    """
    seconds = check_float("seconds", seconds, 0, 1e6, above=True)
    n_prompt = check_int("n_prompt", n_prompt, 1)
    n_gen = check_int("n_gen", n_gen, 1)
    n_gpu_layers = check_int("n_gpu_layers", n_gpu_layers, -1)
    check_bool("dry_run", dry_run)
    if not can_start():
        raise LlamaError(
            "tune measures in processes of its own, and this program cannot start a Python; run "
            "`llama-cffi tune` instead"
        )
    path = resolve_model(
        model_path if isinstance(model_path, str) else as_path("model_path", model_path)
    )
    started = time.monotonic()
    files = open_files(path)
    library, first = library_for(files.summary), files.paths[0]
    typical = _within_training(files.summary, n_prompt, n_gen)
    with (
        Children(library.path, first, n_gpu_layers) as children,
        reporting(progress, f"tune {first.name}") as report,
    ):
        facts = children.facts()
        load_s = time.monotonic() - started
        children.most = _n_children(first, typical.n_prompt + typical.n_gen, n_gpu_layers)
        variants = [] if facts["offloads"] else _cpu_variants(library.build, facts["cpu_variant"])
        n_variants = max(1, min(children.most - 1, int(seconds / 4 / load_s)))
        space = _space(facts, variants[:n_variants], typical.n_prompt)

        def measure(settings: TunedSettings, request: Request) -> Sample:
            if not report(min(1.0, (time.monotonic() - started) / seconds)):
                raise CancelledError("tuning was cancelled; the settings are as they were")
            return children.measure(settings, request)

        sizes = _Sizes(measure, typical, seconds)
        result = TuneResult(
            path=str(first),
            build=library.build.spec,
            settings=kept(library.build, files.summary, offloads=facts["offloads"]),
            ratio=None,
            request=typical,
            seconds=sizes.estimate_s(space.n_samples),
            defaults={name: facts[name] for name in _SHOWN},
            candidates=space.to_dict(),
            file=str(tuned_file()),
        )
        if dry_run:
            return result
        end_s = started + seconds
        search = Search(measure, space, sizes, is_late=lambda: time.monotonic() > end_s)
        settings, ratios = search.run()
    result = replace(
        result,
        settings=settings,
        ratio=statistics.median(ratios) if settings else 1.0,
        request=search.request,
        seconds=time.monotonic() - started,
        steps=tuple(search.steps),
        waited=search.waited,
    )
    about = {
        "ratio": result.ratio,
        "request": search.request,
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    keep(library.build, files.summary, settings, about, offloads=facts["offloads"])
    return result


class _Sizes:
    """Chooses requests by the time that they take.

    Args:
        measure: Times a request.
        typical: The request that would be measured if there were time enough.
        seconds: The time for all.
    """

    def __init__(self, measure: Measure, typical: Request, seconds: float) -> None:
        self._measure, self._typical, self._seconds = measure, typical, seconds
        self._least = Request(
            min(typical.n_prompt, _LEAST_PROMPT), min(typical.n_gen, _LEAST_ANSWER)
        )

    def __call__(self, settings: TunedSettings, n_samples: int, share: float, /) -> Request:
        """Return a request of which *n_samples* take a share of the time, if it can be so short."""
        least, typical = self._least, self._typical
        limit_s = self._seconds * share / n_samples
        whole_s = self._seconds_of(settings)
        if whole_s <= limit_s:
            n_repeat = int(min(limit_s, _SAMPLE_S) / whole_s)
            return typical._replace(n_repeat=max(1, min(_MOST_REPEATS, n_repeat)))
        part = limit_s / whole_s
        return Request(
            max(least.n_prompt, int(typical.n_prompt * part)),
            max(least.n_gen, int(typical.n_gen * part)),
        )

    def estimate_s(self, n_samples: int) -> float:
        """Return about how long so many samples take, at most the time for all."""
        return min(self._seconds, n_samples * self._seconds_of(TunedSettings()))

    def _seconds_of(self, settings: TunedSettings) -> float:
        """Return about how long the typical request takes, from short ones."""
        least, typical = self._least, self._typical
        samples = (self._measure(settings, least) for _ in range(N_ROUNDS))
        best = min(samples, key=lambda sample: sample.total_s)
        prefill_s = best.prefill_s * typical.n_prompt / least.n_prompt
        return prefill_s + best.decode_s * typical.n_gen / least.n_gen


def _within_training(gguf: GgufSummary, n_prompt: int, n_gen: int) -> Request:
    """Return a request of these sizes, or of less, for which the model was trained."""
    if trained := gguf.number("context_length"):
        n_gen = min(n_gen, max(1, trained // 2))
        n_prompt = min(n_prompt, max(1, trained - n_gen))
    return Request(n_prompt, n_gen)


def _n_children(path: Path, n_ctx: int, n_gpu_layers: int) -> int:
    """Return how many processes can have the model in memory."""
    plan, _ = estimate(path, {"n_ctx": n_ctx, "n_gpu_layers": n_gpu_layers})
    fit = (
        int(device.free_bytes * _SHARE_OF_MEMORY) // max(1, device.needed_bytes)
        for device in plan.devices
        if device.free_bytes is not None and device.needed_bytes
    )
    return max(1, min([_MOST_CHILDREN, *fit]))


def _cpu_variants(build: InstalledBuild, default: str) -> list[str]:
    """Return the CPU variants to try beside the default: the simplest first, then the best.

    The simplest one differs most from the default.
    """
    if os.environ.get("LLAMA_CFFI_CPU_VARIANT", "").strip():
        return []
    reasons = cpu_variants(build, timeout_s=_VARIANTS_TIMEOUT_S)
    loads = [name for name, reason in reasons.items() if not reason]
    newer = [name for name in loads if name not in _OUTDATED] or loads
    found = [name for name in newer if name != default]
    return [*found[-1:], *found[:-1]]


def _space(facts: Mapping[str, Any], variants: Sequence[str], n_prompt: int) -> SearchSpace:
    default = facts["n_threads"], facts["n_threads_batch"]
    threads: set[int] = set()
    if not os.environ.get("LLAMA_CFFI_N_THREADS", "").strip():
        cores, usable = physical_cores(), min(usable_cpus(), MAX_THREADS)
        threads = {2**i for i in range(usable.bit_length())} | {cores, cores // 2, usable}
        least = max(1, cores // _FEWEST_THREADS)  # fewer are too slow to be worth the time
        threads = {n for n in threads if n >= least} - {default[0]}
    return SearchSpace(
        cpu_variants=variants,
        flash_attn=[facts["flash_attn"] is False],
        n_threads=sorted(threads, reverse=True),
        n_ubatch=[n for n in _UBATCHES if n <= n_prompt and n != DEFAULT_N_UBATCH],
        default_threads=default,
    )
