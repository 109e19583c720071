"""Check the backend files of a build: which were registered, and why the others were not."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .child_process import run_child
from .finding import Check, Status
from .system import cuda_advice

if TYPE_CHECKING:
    from ..libs_fetch import InstalledBuild, Machine

__all__ = [
    "advice_for",
    "backend_checks",
    "backend_files",
    "cpu_variants",
    "repair_advice",
    "variant_checks",
]

_FILE = re.compile(r"(?:lib)?ggml-([a-z]+)[-.\w]*?\.(?:so|dylib|dll)(?:\.\d+)*")
# Device name -> backend family, where the two differ.
_DEVICES = {"mtl": "metal", "rocm": "hip", "gpuopencl": "opencl"}
_HELPERS = ("libggml-base*.so*", "libggml.*so*", "libggml.so*")
_SHOWN = 3
_UNSUPPORTED_CPU = "this CPU lacks instructions that it was built for"


def backend_files(folder: Path) -> dict[str, list[Path]]:
    """Group the backend libraries in *folder* by family: `cpu`, `cuda`, `vulkan`, ..."""
    families: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = _FILE.fullmatch(path.name)
        if found and found[1] != "base":
            families.setdefault(found[1], []).append(path)
    return families


def backend_checks(
    build: InstalledBuild, machine: Machine, library: Mapping[str, Any], *, timeout_s: float
) -> Iterator[Check]:
    """Check the files of every backend family against the backends that were registered.

    Args:
        build: The build that the files belong to.
        machine: This machine.
        library: The report of the child process that loaded the library; empty if it failed.
        timeout_s: Timeout in seconds for each file that has to be opened.

    Yields:
        One finding per family.
    """
    advise = partial(advice_for, build=build, machine=machine)
    mapped = library.get("mapped")
    with_devices = {_family(d["name"]) for d in library.get("devices", ())}
    notes = library.get("notes", ())
    for family, files in backend_files(build.folder).items():
        if mapped is None:
            loaded = [] if family not in with_devices else [f.name for f in files]
        else:
            loaded = [f.name for f in files if f.name in mapped]
        if loaded and family not in with_devices and family not in ("rpc", "blas"):
            yield Check(
                f"{family} backend",
                "warn",
                f"{loaded[0]} is loaded but found no device",
                advise(" ".join(notes))
                or "check that the GPU's driver is installed and no other program occupies the GPU",
                {"files": loaded, "notes": list(notes)},
            )
        elif loaded:
            best = f", the best of {len(files)} for this CPU" if len(files) > 1 else ""
            if best and os.environ.get("LLAMA_CFFI_CPU_VARIANT"):
                best = f", chosen from {len(files)} by LLAMA_CFFI_CPU_VARIANT"
            name = loaded[0] if len(loaded) == 1 or mapped is None else ", ".join(loaded)
            yield Check(f"{family} backend", "ok", f"{name}{best}", data={"files": loaded})
        else:
            yield _not_registered(family, files, advise, bool(library), timeout_s)


def variant_checks(
    build: InstalledBuild, library: Mapping[str, Any], *, timeout_s: float
) -> Iterator[Check]:
    """List the build's CPU variants: the one in use, those that load here, and the others.

    Args:
        build: The build.
        library: The report of the child process that loaded the library; empty if it failed.
        timeout_s: Timeout in seconds for opening the variants.

    Yields:
        One finding; none if the build has one CPU backend for all.
    """
    reasons = cpu_variants(build, timeout_s=timeout_s)
    if not reasons:
        return
    mapped = library.get("mapped") or ()
    used = [name for name, path in build.cpu_variants.items() if path.name in mapped]
    loads = [name for name, reason in reasons.items() if not reason]
    others = [name for name in loads if name not in used]
    lacking = [name for name, reason in reasons.items() if reason == _UNSUPPORTED_CPU]
    asked = os.environ.get("LLAMA_CFFI_CPU_VARIANT", "").strip()
    parts = [
        f"{', '.join(used) or 'none'} in use" + f" (LLAMA_CFFI_CPU_VARIANT={asked})" * bool(asked),
        f"{'also ' * bool(used)}load here: {', '.join(others)}" * bool(others),
        f"not for this CPU: {', '.join(lacking)}" * bool(lacking),
        *(f"{n}: {r}" for n, r in reasons.items() if r not in ("", _UNSUPPORTED_CPU)),
    ]
    yield Check(
        "cpu variants", "ok" if loads else "warn", "; ".join(filter(None, parts)),
        data={"used": used, "load": loads, "reasons": reasons, "asked": asked},
    )  # fmt: skip


def cpu_variants(build: InstalledBuild, *, timeout_s: float) -> dict[str, str]:
    """Return for each CPU variant of *build* why it does not load here; empty: it does.

    They are opened in a child process. Those that fit this CPU best come first.
    """
    variants = build.cpu_variants
    if not variants:
        return {}
    before = [str(p) for pattern in _HELPERS for p in sorted(build.folder.glob(pattern))]
    paths = [str(path) for path in variants.values()]
    outcome = run_child("scores", paths=paths, before=before, timeout_s=timeout_s)
    found: dict[str, tuple[int, str]] = {}
    for name, path in variants.items():
        report = outcome.reports.get(str(path), {"message": f"not opened: {outcome.death}"})
        message = _plain(report["message"], path)
        score = report.get("score")
        if score == 0:
            message = _UNSUPPORTED_CPU
        found[name] = score or 0, message
    return {name: found[name][1] for name in sorted(found, key=lambda n: -found[n][0])}


def _not_registered(
    family: str,
    files: Sequence[Path],
    advise: Callable[[str], str],
    library_loaded: bool,
    timeout_s: float,
) -> Check:
    errors = {path.name: _open_error(path, timeout_s) for path in files}
    broken = {name: e for name, e in errors.items() if e not in ("", _UNSUPPORTED_CPU)}
    distinct = list(dict.fromkeys(e for e in errors.values() if e))
    n_usable = sum(e == "" for e in errors.values())
    status: Status = "fail" if family == "cpu" else "warn"
    if library_loaded or not n_usable:
        shown = "; ".join(distinct[:_SHOWN]) + ("; …" if len(distinct) > _SHOWN else "")
        subject = (
            f"{files[0].name} was not registered"
            if len(files) == 1
            else f"none of {len(files)} files was registered"
        )
        detail = f"{subject}: {shown or 'found no device to run on'}"
    else:
        status = "warn" if broken else "ok"
        detail = f"{n_usable} of {len(files)} files can be used"
        detail += "".join(f"; {name}: {e}" for name, e in list(broken.items())[:_SHOWN])
    return Check(
        f"{family} backend", status, detail, advise(" ".join(distinct)),
        {"reasons": errors},
    )  # fmt: skip


def _open_error(path: Path, timeout_s: float) -> str:
    """Open the file in a child process; return the loader's message, or empty on success."""
    from ..libs_fetch import runtime

    majors = runtime.cuda_majors(path.parent) if "cuda" in path.name else []
    before = [str(p) for m in majors for p in runtime.cuda_runtime(m, path.parent)[0]]
    before += [str(p) for pattern in _HELPERS for p in sorted(path.parent.glob(pattern))]
    outcome = run_child("dlopen", path=str(path), before=before, timeout_s=timeout_s)
    if outcome.death:
        return f"opening it failed: {outcome.death}"
    message = str(outcome.reports.get("dlopen", {}).get("message", ""))
    if message:
        return _plain(message, path)
    if outcome.reports.get("score", {}).get("score") == 0:
        return _UNSUPPORTED_CPU
    return ""


def _plain(message: str, path: Path) -> str:
    """Return the dynamic linker's message about *path* without the folder."""
    return message.replace(f"{path}: ", "").replace(f"{path.parent}/", "")


def advice_for(message: str, *, build: InstalledBuild | None, machine: Machine) -> str:
    """Say what to do about an error of the dynamic loader, a GPU driver or `libs_fetch.check`.

    Args:
        message: The error message.
        build: The build that it is about; None if there is none.
        machine: This machine.

    Returns:
        Advice; empty if the message is not a known one.
    """
    found = re.search(r"lib(?:cudart|cublas|cublasLt)\.so\.(\d+)", message)
    if "libcuda.so" in message or (found and machine.cuda_driver is None):
        return "install the NVIDIA driver; without an NVIDIA GPU use LLAMA_CFFI_BACKEND=auto or cpu"
    if found:
        return cuda_advice(int(found[1]))
    if "libvulkan" in message:
        return "install the Vulkan loader (Debian and Ubuntu: apt install libvulkan1)"
    if "driver version is insufficient" in message:
        return "update the NVIDIA driver, or use a build for an older CUDA"
    if "GLIBC" in message or "CXXABI" in message:
        return "this system is older than the build: use an older build (LLAMA_CFFI_BUILD)"
    if _DAMAGED.search(message):
        return repair_advice(build)
    return ""


def repair_advice(build: InstalledBuild | None) -> str:
    """Say how to replace the damaged files of a build."""
    if build.source == "path" if build else os.environ.get("LLAMA_CFFI_LIB"):
        return "replace the damaged files, or unset LLAMA_CFFI_LIB to use the default build"
    return f"fetch it again: llama-cffi libs fetch {build.spec if build else ''} --force"


_DAMAGED = re.compile(
    r"damaged|file too short|invalid ELF header|wrong ELF class|not a mach-o|undefined symbol"
    r"|cannot open shared object file|SIGBUS|is not a shared library"
)


def _family(device: str) -> str:
    word = device.rstrip("0123456789").lower()
    return _DEVICES.get(word, word)
