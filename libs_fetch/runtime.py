"""Find shared libraries that a build needs but does not contain: the CUDA runtime, libstdc++.

Searches where the dynamic linker does, and in NVIDIA's wheels beside the interpreter.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from ..errors import LibraryLoadError

__all__ = ["cuda_majors", "cuda_runtime", "cuda_sonames", "find"]

_SYSTEM_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib", "/usr/lib/wsl/lib")
_MULTIARCH = {
    "x64": "x86_64-linux-gnu",
    "arm64": "aarch64-linux-gnu",
    "armv7l": "arm-linux-gnueabihf",
    "riscv64": "riscv64-linux-gnu",
    "s390x": "s390x-linux-gnu",
}


def cuda_sonames(major: int) -> tuple[str, ...]:
    """Return the file names of the CUDA *major* runtime, in the order they must be loaded."""
    if os.name == "nt":
        return (f"cudart64_{major}.dll", f"cublasLt64_{major}.dll", f"cublas64_{major}.dll")
    return (f"libcudart.so.{major}", f"libcublasLt.so.{major}", f"libcublas.so.{major}")


def cuda_majors(folder: Path) -> list[int]:
    """List the CUDA major versions that the backends in *folder* were built for, newest first."""
    from . import elf

    majors = set()
    for path in folder.glob("libggml-cuda*.so*"):
        try:
            needed = elf.needed(path)
        except (LibraryLoadError, OSError):
            continue
        majors |= {int(n.rpartition(".")[2]) for n in needed if n.startswith("libcudart.so.")}
    return sorted(majors, reverse=True)


def cuda_runtime(major: int, folder: Path | None = None) -> tuple[list[Path], list[str]]:
    """Find the CUDA *major* runtime: its files in load order, and the names not found."""
    found, missing = [], []
    for soname in cuda_sonames(major):
        path = find(soname, folder)
        if path is None:
            missing.append(soname)
        else:
            found.append(path)
    return found, missing


def find(soname: str, folder: Path | None = None) -> Path | None:
    """Find *soname* in *folder*, in NVIDIA's wheels, or where the dynamic linker searches."""
    candidates = [folder] if folder else []
    candidates += _nvidia_wheels()
    search = "PATH" if os.name == "nt" else "LD_LIBRARY_PATH"
    candidates += [Path(p) for p in os.environ.get(search, "").split(os.pathsep) if p]
    if os.name == "nt":
        system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32")
        candidates += [system, Path(sys.base_prefix), Path(sys.prefix, "Library", "bin")]
    else:
        candidates.append(Path(sys.prefix, "lib"))  # conda
    for candidate in candidates:
        if (candidate / soname).is_file():
            return candidate / soname
    if os.name == "posix" and sys.platform != "darwin":
        return _linker_cache(soname) or _system(soname)
    return None


def _nvidia_wheels() -> list[Path]:
    found: list[Path] = []
    for entry in sys.path:
        root = Path(entry or ".", "nvidia")
        if entry and root.is_dir():
            for pattern in ("*/lib", "*/bin", "*/bin/x86_64", "*/bin/x64"):
                found += sorted(root.glob(pattern))
    return found


def _linker_cache(soname: str) -> Path | None:
    try:
        cache = Path("/etc/ld.so.cache").read_bytes()
    except OSError:
        return None
    pattern = rb"\0(/[^\0]*/" + re.escape(soname.encode()) + rb")(?=\0)"
    paths = [Path(os.fsdecode(raw)) for raw in re.findall(pattern, cache)]
    return next((p for p in paths if p.is_file() and _same_arch(p)), None)


def _same_arch(path: Path) -> bool:
    """Return whether an ELF file is for this process's architecture; multilib systems mix them."""
    from . import elf, machine

    try:
        return elf.arch(path) == machine.arch_name()
    except OSError:
        return False


def _system(soname: str) -> Path | None:
    from . import machine

    triple = _MULTIARCH.get(machine.arch_name())
    folders = [f"/usr/lib/{triple}", f"/lib/{triple}"] if triple else []
    for folder in (*folders, *_SYSTEM_FOLDERS):
        path = Path(folder, soname)
        if path.is_file() and _same_arch(path):
            return path
    return None
