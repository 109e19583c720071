"""The checks in order, each a finding, as soon as it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LlamaError
from .backends import advice_for, backend_checks, mend
from .children import Outcome, run_child
from .finding import Check
from .machine import accelerators, gigabytes, machine_checks

if TYPE_CHECKING:
    from ..libs_fetch import InstalledBuild, Machine

__all__ = ["examine", "works"]

_TIMEOUT_S = 180.0
_SILENT = {"message": "the child process told nothing"}
_GPUS = ("cuda", "vulkan", "metal", "hip", "rocm", "sycl", "opencl", "gpu")


def works(checks: list[Check]) -> bool:
    """Whether the recorded prompt was decoded to the recorded tokens."""
    return any(check.name == "generation" and check.status == "ok" for check in checks)


def examine(
    *,
    model: Path | None = None,
    recorded: Mapping[str, Any] | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> Iterator[Check]:
    """Look at everything that generation needs, and then generate.

    Args:
        model: The model that *recorded* is of; None = the demo model.
        recorded: `tokens` of a prompt and their greedy `continuation`; None = the demo model's.
        timeout_s: Longest wait for one child process.

    Yields:
        Findings; the last is `generation`.
    """
    from ..libs_fetch import detect

    machine = detect()
    yield from machine_checks(machine)
    try:
        build = _build()
    except (LlamaError, OSError) as e:
        advice = advice_for(str(error), build=None, machine=machine)
        yield Check("library", "fail", str(error), advice, {"type": type(error).__name__})
        yield from accelerators(machine, None)
        yield Check("generation", "fail", "not tried: there is no library")
        return
    problem = ""
    try:
        model = model or _demo_model()
        recorded = recorded or _recorded()
    except (OSError, ValueError) as e:
        problem = f"the demo model cannot be read: {error}"
        recorded = {"tokens": [], "continuation": []}
    outcome = _generate(model, recorded, -1, timeout_s)
    library = outcome.told.get("library", {})
    found = _library(build, machine, bool(library))
    yield found
    yield _variant(build, machine)
    yield _abi(library, outcome, found, build, machine)
    yield from _devices(library)
    backends = list(backend_checks(build, machine, library, timeout_s=timeout_s))
    yield from backends
    if all(check.status == "ok" for check in backends):
        yield from _no_gpu(build, library)
    yield from accelerators(machine, build.folder)
    if problem:
        yield Check("generation", "fail", problem, "install llama-cffi again")
        return
    result = _generation(outcome, recorded)
    if result.status == "fail" and _gpus(library):
        again = _generation(_generate(model, recorded, 0, timeout_s), recorded)
        if again.status == "ok":
            result = Check(
                result.name, "fail", result.detail + "; on the CPU alone it works",
                "use --gpu-layers 0 or LLAMA_CFFI_BACKEND=cpu, and report this with --json",
                {**result.data, "on_cpu": again.as_dict()},
            )  # fmt: skip
    yield result


def _build() -> InstalledBuild:
    """Find the library as `get_library` will, fetching it where needed."""
    from ..libs_fetch import ensure

    return ensure()


def _demo_model() -> Path:
    from ..demo import model_path

    return model_path()


def _recorded() -> dict[str, Any]:
    from ..demo import recorded_path

    found: dict[str, Any] = json.loads(recorded_path().read_text(encoding="utf-8"))
    return found


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
        problems = [str(error)]
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
    """Say which variant it is and why; a GPU that stays unused is worth a warning."""
    asked = os.environ.get("LLAMA_CFFI_BACKEND", "").strip().lower()
    reason = build.backend_reason
    idle = build.variant == "cpu" and machine.cuda_driver is not None
    ignored = asked in _GPUS and not build.variant.startswith(asked)
    return Check(
        "variant",
        "warn" if idle or ignored else "ok",
        reason if reason.startswith(build.variant) else f"{build.variant}; {reason}".rstrip("; "),
        "there is an NVIDIA GPU, and this build cannot use it: unset LLAMA_CFFI_LIB, or "
        "LLAMA_CFFI_BACKEND=cuda says what is missing"
        if idle
        else (f"LLAMA_CFFI_BACKEND={asked} has no effect on this library" if ignored else ""),
        {"variant": build.variant, "reason": build.backend_reason, "asked": asked or "auto"},
    )


def _abi(
    library: Mapping[str, Any],
    outcome: Outcome,
    found: Check,
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
            + (f"; {new} functions are new to us" if new else ""),
            data={**abi, "loaded_in_s": library["seconds"]},
        )
    data: dict[str, Any] = {"stderr": outcome.stderr}
    if outcome.death:
        return Check(
            "abi", "fail", f"loading the library ended in {outcome.death}",
            mend(build) + "; or try another build (LLAMA_CFFI_BUILD=…)", data,
        )  # fmt: skip
    data |= outcome.told.get("error", _SILENT)
    if found.status == "fail":
        return Check("abi", "fail", "not looked at: the library does not load", data=data)
    message = data["message"].replace(" Run `llama-cffi doctor` for what is missing.", "")
    advice = advice_for(message, build=build, machine=machine)
    return Check("abi", "fail", message, advice, data)


def _devices(library: Mapping[str, Any]) -> Iterator[Check]:
    for device in library.get("devices", ()):
        free, total = device["memory_free_bytes"], device["memory_total_bytes"]
        memory = f", {gigabytes(free)} of {gigabytes(total)} free" if total else ""
        yield Check(
            f"device {device['name']}", "ok", f"{device['description']}{memory}", data=device
        )


def _no_gpu(build: InstalledBuild, library: Mapping[str, Any]) -> Iterator[Check]:
    """Warn about a GPU build that found no GPU where no backend file is to blame."""
    if library and build.variant not in ("cpu", "") and not _gpus(library):
        yield Check(
            "gpu", "warn", f"the {build.variant} build runs on the CPU: it found no GPU",
            "look at the driver; LLAMA_CFFI_BACKEND=auto takes what works here",
            {"notes": library["notes"]},
        )  # fmt: skip


def _gpus(library: Mapping[str, Any]) -> list[str]:
    return [d["name"] for d in library.get("devices", ()) if d["type"] in ("gpu", "igpu")]


def _generation(outcome: Outcome, recorded: Mapping[str, Any]) -> Check:
    data: dict[str, Any] = {"stderr": outcome.stderr} if outcome.stderr else {}
    said = outcome.told.get("generation")
    if outcome.death:
        step = "decoding" if "model" in outcome.told else "loading the model"
        if "library" not in outcome.told:
            step = "loading the library"
        return Check("generation", "fail", f"{step} ended in {outcome.death}", data=data)
    if said is None:
        error = outcome.told.get("error", _SILENT)
        first = "not tried: the library did not load" if "library" not in outcome.told else ""
        return Check("generation", "fail", first or error["message"], data={**data, **error})
    expected = list(recorded["continuation"])
    if expected and expected[-1] in said["ends"]:
        expected.pop()
    data |= {"tokens": said["tokens"], "expected": expected, "text": said["text"]}
    data |= {"seconds": said["seconds"], "offloaded": said["offloaded"]}
    if said["tokens"] == expected:
        return Check(
            "generation",
            "ok",
            f"{len(expected)} tokens of the demo model, all as recorded, "
            f"in {said['seconds']:.2f} s",
            data=data,
        )
    same = 0
    while said["tokens"][: same + 1] == expected[: same + 1]:
        same += 1
    return Check(
        "generation",
        "fail",
        f"wrong tokens: {same} of {len(expected)} as recorded, then others",
        "the library computes wrongly here: try another build (LLAMA_CFFI_BUILD=…) or "
        "LLAMA_CFFI_BACKEND=cpu, and report this with the output of --json",
        data,
    )
