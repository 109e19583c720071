"""Backend files of a build: which registered, and what keeps the others from it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .children import run_child
from .finding import Check, Status
from .machine import cuda_advice

if TYPE_CHECKING:
    from ..libs_fetch import InstalledBuild, Machine

__all__ = ["advice_for", "backend_checks", "backend_files", "mend"]

_FILE = re.compile(r"(?:lib)?ggml-([a-z]+)[-.\w]*?\.(?:so|dylib|dll)(?:\.\d+)*")
# How devices are named by the backend of each family, where not after it.
_DEVICES = {"mtl": "metal", "rocm": "hip", "gpuopencl": "opencl"}
_HELPERS = ("libggml-base*.so*", "libggml.*so*", "libggml.so*")
_SHOWN = 3
_UNSUITED = "this CPU lacks instructions it was built for"


def backend_files(folder: Path) -> dict[str, list[Path]]:
    """Sort the backend libraries in *folder* by family: `cpu`, `cuda`, `vulkan`, ..."""
    families: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = _FILE.fullmatch(path.name)
        if found and found[1] != "base":
            families.setdefault(found[1], []).append(path)
    return families


def backend_checks(
    build: InstalledBuild, machine: Machine, library: Mapping[str, Any], *, timeout_s: float
) -> Iterator[Check]:
    """Check every family of backend files against what registered.

    Args:
        build: Where the files are.
        machine: Where they should run.
        library: What the child that loaded it told; empty when it could not.
        timeout_s: For each file that has to be tried.
    """
    advise = partial(advice_for, build=build, machine=machine)
    mapped = library.get("mapped")
    with_devices = {_family(d["name"]) for d in library.get("devices", ())}
    notes = library.get("notes", ())
    for family, files in backend_files(build.folder).items():
        if mapped is None:
            there = [] if family not in with_devices else [f.name for f in files]
        else:
            there = [f.name for f in files if f.name in mapped]
        if there and family not in with_devices and family not in ("rpc", "blas"):
            yield Check(
                f"{family} backend",
                "warn",
                f"{there[0]} is loaded and found no device",
                advise(" ".join(notes)) or "is the GPU's driver installed, and the GPU free?",
                {"files": there, "notes": list(notes)},
            )
        elif there:
            several = f", the best of {len(files)} for this CPU" if len(files) > 1 else ""
            if several and os.environ.get("LLAMA_CFFI_CPU_VARIANT"):
                several = f", chosen from {len(files)} by LLAMA_CFFI_CPU_VARIANT"
            name = there[0] if len(there) == 1 or mapped is None else ", ".join(there)
            yield Check(f"{family} backend", "ok", f"{name}{several}", data={"files": there})
        else:
            yield _not_registered(family, files, advise, bool(library), timeout_s)


def _not_registered(
    family: str,
    files: Sequence[Path],
    advise: Callable[[str], str],
    loaded: bool,
    timeout_s: float,
) -> Check:
    reasons = {path.name: _why(path, timeout_s) for path in files}
    broken = {name: why for name, why in reasons.items() if why not in ("", _UNSUITED)}
    distinct = list(dict.fromkeys(why for why in reasons.values() if why))
    status: Status = "fail" if family == "cpu" else "warn"
    if loaded or not any(why == "" for why in reasons.values()):
        name = files[0].name if len(files) == 1 else f"none of {len(files)} files"
        shown = "; ".join(distinct[:_SHOWN]) + ("; …" if len(distinct) > _SHOWN else "")
        verb = "did not register" if len(files) == 1 else "registered"
        detail = f"{name} {verb}: {shown or 'found nothing to run on'}"
    else:
        status = "warn" if broken else "ok"
        detail = f"{sum(why == '' for why in reasons.values())} of {len(files)} files can be used"
        detail += "".join(f"; {name}: {why}" for name, why in list(broken.items())[:_SHOWN])
    return Check(
        f"{family} backend", status, detail, advise(" ".join(distinct)),
        {"reasons": reasons},
    )  # fmt: skip


def _why(path: Path, timeout_s: float) -> str:
    """Open the file in a child and return the loader's message; empty when it opens."""
    from ..libs_fetch import runtime

    majors = runtime.cuda_majors(path.parent) if "cuda" in path.name else []
    before = [str(p) for m in majors for p in runtime.cuda_runtime(m, path.parent)[0]]
    before += [str(p) for pattern in _HELPERS for p in sorted(path.parent.glob(pattern))]
    outcome = run_child("dlopen", path=str(path), before=before, timeout_s=timeout_s)
    if outcome.death:
        return f"opening it ended in {outcome.death}"
    message = str(outcome.told.get("loader", {}).get("message", ""))
    if message:
        return message.replace(f"{path}: ", "").replace(f"{path.parent}/", "")
    if outcome.told.get("score", {}).get("score") == 0:
        return _UNSUITED
    return ""


def advice_for(message: str, *, build: InstalledBuild | None, machine: Machine) -> str:
    """Say what to do about a message of the dynamic loader, a GPU's driver or `libs_fetch.check`.

    Args:
        message: The message; none that is known gives no advice.
        build: What it is about; None when there is none to speak of.
        machine: Without an NVIDIA driver, the CUDA runtime alone is no help.
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
        return mend(build)
    return ""


def mend(build: InstalledBuild | None) -> str:
    """Say how to get whole files where a build has damaged ones."""
    if build.source == "path" if build else os.environ.get("LLAMA_CFFI_LIB"):
        return "put whole files there, or unset LLAMA_CFFI_LIB to use the default build"
    return f"fetch it again: llama-cffi libs fetch {build.spec if build else ''} --force"


_DAMAGED = re.compile(
    r"damaged|file too short|invalid ELF header|wrong ELF class|not a mach-o|undefined symbol"
    r"|cannot open shared object file|SIGBUS|is no shared library"
)


def _family(device: str) -> str:
    word = device.rstrip("0123456789").lower()
    return _DEVICES.get(word, word)
