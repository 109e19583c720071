"""Check the machine, Python and GPU drivers without loading llama.cpp."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..system_memory import system_memory
from ..variables import unknown_variables
from .finding import Check

if TYPE_CHECKING:
    from ..libs_fetch import Machine

__all__ = ["accelerators", "cuda_advice", "gigabytes", "system_checks"]

_SYSTEMS = {"linux": "Linux", "mac": "macOS", "win": "Windows"}
_FEATURES = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni",
    "amx_int8", "asimd", "asimddp", "i8mm", "sve", "rvv",
)  # fmt: skip
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_LOW_MEMORY_BYTES = 1_000_000_000


def system_checks(machine: Machine) -> Iterator[Check]:
    """Check the operating system, CPU, memory, Python and LLAMA_CFFI_* variables."""
    libc = f"{machine.libc} {machine.libc_version}".strip()
    name = f"{_SYSTEMS.get(machine.os, machine.os)} {machine.arch}"
    yield Check(
        "system",
        "fail" if machine.musl else "ok",
        f"{name}, {libc}" if libc else name,
        machine.refused.get("cpu", ""),
        {**asdict(machine), "platform": platform.platform()},
    )
    features = _cpu_features()
    total = os.cpu_count() or machine.usable_cpus
    usable = (
        "" if machine.usable_cpus == total else f" ({machine.usable_cpus} of {total} CPUs usable)"
    )
    yield Check(
        "cpu",
        "ok",
        f"{machine.cpu}, {_count(machine.physical_cores, 'core')}"
        + usable
        + (f"; {' '.join(f for f in features if f not in ('sse4_2', 'f16c'))}" if features else ""),
        data={"features": features, "cpus": total},
    )
    if (memory := system_memory()) is not None:
        low = memory.free_bytes < _LOW_MEMORY_BYTES
        yield Check(
            "memory",
            "warn" if low else "ok",
            f"{gigabytes(memory.free_bytes)} of {gigabytes(memory.total_bytes)} free",
            "models of more than a few hundred megabytes will not fit" if low else "",
            {"total_bytes": memory.total_bytes, "available_bytes": memory.free_bytes},
        )
    yield Check(
        "python",
        "ok",
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"cffi {_version('cffi')}, llama-cffi {__version__}",
        data={
            "executable": sys.executable,
            "version": sys.version,
            "numpy": _version("numpy"),
            "package": str(Path(__file__).resolve().parent.parent),
        },
    )
    settings = {  # without credentials: this goes into bug reports
        name: "***" if "KEY" in name else _CREDENTIALS.sub("//", value)
        for name, value in sorted(os.environ.items())
        if name.startswith("LLAMA_CFFI_")
    }
    if settings:
        unknown = unknown_variables()
        yield Check(
            "settings",
            "warn" if unknown else "ok",
            " ".join(f"{k}={v}" for k, v in settings.items()),
            "; ".join(unknown.values()),
            settings,
        )


def accelerators(machine: Machine, folder: Path | None) -> Iterator[Check]:
    """Check the CUDA driver and runtime and the Vulkan loader, or Metal on macOS."""
    if machine.os != "mac":
        yield _cuda(machine, folder)
        reason = machine.refused.get("vulkan", "")
        yield Check(
            "vulkan", "ok", f"none: {reason}" if reason else "loader and GPU found",
            data={"loader": machine.vulkan, "reason": reason},
        )  # fmt: skip
    else:
        yield Check(
            "metal", "ok", "available" if machine.metal else f"none: {machine.refused['metal']}"
        )


def cuda_advice(major: int) -> str:
    """Say how to install the CUDA *major* runtime."""
    return f"install the CUDA {major} runtime: pip install 'llama-cffi[cuda{major}]'"


def _cuda(machine: Machine, folder: Path | None) -> Check:
    from ..libs_fetch import runtime

    wanted = (runtime.cuda_majors(folder) if folder else []) or [13, 12]
    found = {major: runtime.cuda_runtime(major, folder) for major in wanted}
    data: dict[str, Any] = {
        "driver": machine.cuda_driver,
        "runtime": {
            major: {"files": [str(path) for path in files], "missing": missing}
            for major, (files, missing) in found.items()
        },
    }
    if machine.cuda_driver is None:
        return Check("cuda", "ok", f"none: {machine.refused.get('cuda', 'no driver')}", data=data)
    driver = "driver for CUDA {}.{}".format(*machine.cuda_driver)
    usable = [major for major in wanted if major <= machine.cuda_driver[0]]
    if not usable:
        return Check(
            "cuda", "warn", f"{driver}, but the library needs CUDA {wanted[-1]}",
            "update the NVIDIA driver, or try LLAMA_CFFI_BACKEND=cuda12 or vulkan", data,
        )  # fmt: skip
    for major in usable:
        files, missing = found[major]
        if not missing:
            where = ", ".join(sorted({str(path.parent) for path in files}))
            return Check("cuda", "ok", f"{driver}; CUDA {major} runtime in {where}", data=data)
    absent = ", ".join(found[usable[0]][1])
    return Check("cuda", "warn", f"{driver}; no {absent}", cuda_advice(usable[0]), data)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _cpu_features() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features", "isa"):
            have = set(value.split())
            return [f for f in _FEATURES if f in have]
    return []


def gigabytes(count: int) -> str:
    """Format a number of bytes as GB or MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
