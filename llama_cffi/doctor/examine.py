"""Run every check in order, and yield each finding as soon as it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LlamaError
from .backends import advice_for, backend_checks, repair_advice, variant_checks
from .child_process import Outcome, run_child
from .finding import Check
from .system import accelerators, gigabytes, system_checks

if TYPE_CHECKING:
    from ..libs_fetch import InstalledBuild, Machine

__all__ = ["examine", "works"]

_TIMEOUT_S = 180.0
_NO_REPORT = {"message": "the child process reported nothing"}
_GPUS = ("cuda", "vulkan", "metal", "hip", "rocm", "sycl", "opencl", "gpu")


def works(checks: list[Check]) -> bool:
    """Return whether the recorded prompt was continued with the recorded tokens."""
    return any(check.name == "generation" and check.status == "ok" for check in checks)


def examine(
    *,
    model: Path | None = None,
    recorded: Mapping[str, Any] | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> Iterator[Check]:
    """Check everything that generation needs, then generate.

    Args:
        model: The model that *recorded* was made with; None: the demo model.
        recorded: `tokens` of a prompt and their greedy `continuation`; None: the demo model's.
        timeout_s: Timeout in seconds for each child process.

    Yields:
        Findings; the last one is `generation`.
    """
    from ..libs_fetch import detect

    machine = detect()
    yield from system_checks(machine)
    try:
        build = _build()
    except (LlamaError, OSError) as e:
        advice = advice_for(str(e), build=None, machine=machine)
        yield Check("library", "fail", str(e), advice, {"type": type(e).__name__})
        yield from accelerators(machine, None)
        yield Check("generation", "fail", "not tried: there is no library")
        return
    problem = ""
    try:
        model = model or _demo_model()
        recorded = recorded or _recorded()
    except (OSError, ValueError) as e:
        problem = f"the demo model cannot be read: {e}"
        recorded = {"tokens": [], "continuation": []}
    outcome = _generate(model, recorded, -1, timeout_s)
    library = outcome.reports.get("library", {})
    library_check = _library(build, machine, bool(library))
    yield library_check
    yield _variant(build, machine)
    yield _abi(library, outcome, library_check, build, machine)
    yield from _multimodal(library)
    yield from _devices(library)
    backends = list(backend_checks(build, machine, library, timeout_s=timeout_s))
    yield from backends
    yield from variant_checks(build, library, timeout_s=timeout_s)
    if all(check.status == "ok" for check in backends):
        yield from _no_gpu(build, library)
    yield from accelerators(machine, build.folder)
    if problem:
        yield Check("generation", "fail", problem, "reinstall llama-cffi")
        return
    result = _generation(outcome, recorded)
    if result.status == "fail" and _gpus(library):
        again = _generation(_generate(model, recorded, 0, timeout_s), recorded)
        if again.status == "ok":
            result = Check(
                result.name, "fail", result.detail + "; it works on the CPU alone",
                "use --gpu-layers 0 or LLAMA_CFFI_BACKEND=cpu, and report this with the output of "
                "--json",
                {**result.data, "on_cpu": again.as_dict()},
            )  # fmt: skip
    yield result


def _build() -> InstalledBuild:
    """Return the build that `get_library` will load, fetching it if needed."""
    from ..libs_fetch import ensure

    return ensure()


def _demo_model() -> Path:
    from ..demo import model_path

    return model_path()


def _recorded() -> dict[str, Any]:
    from ..demo import recorded_path

    recorded: dict[str, Any] = json.loads(recorded_path().read_text(encoding="utf-8"))
    return recorded


def _generate(
    model: Path | None, recorded: Mapping[str, Any], n_gpu_layers: int, timeout_s: float
) -> Outcome:
    return run_child(
        "generate",
        timeout_s=timeout_s,
        model=str(model),
        tokens=list(recorded["tokens"]),
        n_predict=max(1, len(recorded["continuation"])),
        n_gpu_layers=n_gpu_layers,
    )


def _library(build: InstalledBuild, machine: Machine, loaded: bool) -> Check:
    from ..libs_fetch import check

    try:
        problems = check.problems(build)
    except (LlamaError, OSError, ValueError) as e:
        problems = [str(e)]
    origin = build.spec if build.source != "path" else "this machine"
    return Check(
        "library",
        ("warn" if loaded else "fail") if problems else "ok",
        "; ".join(problems)
        or f"llama.cpp {build.tag or '(tag unknown)'} from {origin}, in {build.folder}",
        advice_for(" ".join(problems), build=build, machine=machine),
        {**build.as_dict(), "problems": problems},
    )


def _variant(build: InstalledBuild, machine: Machine) -> Check:
    """Report the variant and why it was chosen; warn about a GPU that it cannot use."""
    backend = os.environ.get("LLAMA_CFFI_BACKEND", "").strip().lower()
    reason = build.backend_reason
    gpu_unused = build.variant == "cpu" and machine.cuda_driver is not None
    ignored = backend in _GPUS and not build.variant.startswith(backend)
    return Check(
        "variant",
        "warn" if gpu_unused or ignored else "ok",
        reason if reason.startswith(build.variant) else f"{build.variant}; {reason}".rstrip("; "),
        "this machine has an NVIDIA GPU that this build cannot use: unset LLAMA_CFFI_LIB, or set "
        "LLAMA_CFFI_BACKEND=cuda to see what is missing"
        if gpu_unused
        else (f"LLAMA_CFFI_BACKEND={backend} has no effect on this library" if ignored else ""),
        {"variant": build.variant, "reason": build.backend_reason, "asked": backend or "auto"},
    )


def _abi(
    library: Mapping[str, Any],
    outcome: Outcome,
    library_check: Check,
    build: InstalledBuild,
    machine: Machine,
) -> Check:
    if library:
        abi = library["abi"]
        functions = f"{abi['exported_functions']} functions"
        sizes = f"{len(abi['struct_bytes'])} structs measured"
        new = len(abi.get("new_functions") or ())
        return Check(
            "abi",
            "ok",
            f"{abi['verdict']}, class {abi['class']}: {functions}, {sizes}"
            + (f"; {new} functions unknown to llama_cffi" if new else ""),
            data={**abi, "loaded_in_s": library["seconds"]},
        )
    data: dict[str, Any] = {"stderr": outcome.stderr}
    if outcome.death:
        return Check(
            "abi", "fail", f"loading the library failed: {outcome.death}",
            repair_advice(build) + "; or try another build (LLAMA_CFFI_BUILD=…)", data,
        )  # fmt: skip
    data |= outcome.reports.get("error", _NO_REPORT)
    if library_check.status == "fail":
        return Check("abi", "fail", "not checked: the library does not load", data=data)
    message = data["message"].replace(" Run `llama-cffi doctor` for what is missing.", "")
    advice = advice_for(message, build=build, machine=machine)
    return Check("abi", "fail", message, advice, data)


def _multimodal(library: Mapping[str, Any]) -> Iterator[Check]:
    """Report whether pictures and sounds work; that they do not is no warning: text does."""
    if (reason := library.get("no_multimodal")) is not None:
        detail = f"do not work: {reason}" if reason else "work with a model that has a projector"
        yield Check("pictures", "ok", f"pictures and sounds {detail}", data={"works": not reason})


def _devices(library: Mapping[str, Any]) -> Iterator[Check]:
    for device in library.get("devices", ()):
        free, total = device["memory_free_bytes"], device["memory_total_bytes"]
        memory = f", {gigabytes(free)} of {gigabytes(total)} free" if total else ""
        yield Check(
            f"device {device['name']}", "ok", f"{device['description']}{memory}", data=device
        )


def _no_gpu(build: InstalledBuild, library: Mapping[str, Any]) -> Iterator[Check]:
    """Warn about a GPU build that found no GPU although its backend files are fine."""
    if library and build.variant not in ("cpu", "") and not _gpus(library):
        yield Check(
            "gpu", "warn", f"the {build.variant} build runs on the CPU: it found no GPU",
            "check the GPU's driver; LLAMA_CFFI_BACKEND=auto chooses what works on this machine",
            {"notes": library["notes"]},
        )  # fmt: skip


def _gpus(library: Mapping[str, Any]) -> list[str]:
    return [d["name"] for d in library.get("devices", ()) if d["type"] in ("gpu", "igpu")]


def _generation(outcome: Outcome, recorded: Mapping[str, Any]) -> Check:
    data: dict[str, Any] = {"stderr": outcome.stderr} if outcome.stderr else {}
    report = outcome.reports.get("generation")
    if outcome.death:
        step = "decoding" if "model" in outcome.reports else "loading the model"
        if "library" not in outcome.reports:
            step = "loading the library"
        return Check("generation", "fail", f"{step} failed: {outcome.death}", data=data)
    if report is None:
        error = outcome.reports.get("error", _NO_REPORT)
        not_tried = (
            "not tried: the library did not load" if "library" not in outcome.reports else ""
        )
        return Check("generation", "fail", not_tried or error["message"], data={**data, **error})
    expected = list(recorded["continuation"])
    if expected and expected[-1] in report["eog_tokens"]:
        expected.pop()
    tokens = report["tokens"]
    data |= {"tokens": tokens, "expected": expected, "text": report["text"]}
    data |= {"seconds": report["seconds"], "offloaded": report["offloaded"]}
    if tokens == expected:
        return Check(
            "generation",
            "ok",
            f"{len(expected)} tokens of the demo model, all as recorded, "
            f"in {report['seconds']:.2f} s",
            data=data,
        )
    n_same = 0
    while tokens[: n_same + 1] == expected[: n_same + 1]:
        n_same += 1
    return Check(
        "generation",
        "fail",
        f"wrong tokens: the first {n_same} of {len(expected)} are as recorded",
        "the library gives wrong results on this machine: try another build (LLAMA_CFFI_BUILD=…) "
        "or LLAMA_CFFI_BACKEND=cpu, and report this with the output of --json",
        data,
    )
