"""Can this build run here? Read from its files, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llama_cffi.errors import LibraryLoadError

from . import machine

if TYPE_CHECKING:
    from .store import InstalledBuild

__all__ = ["library_fits", "needs", "problems"]

_NAMES = {"x64": "x86-64", "arm64": "64-bit ARM", "armv7l": "32-bit ARM"}
_PACKAGES = {
    "libstdc++.so.6": "apt install libstdc++6",
    "libgomp.so.1": "apt install libgomp1",
    "libvulkan.so.1": "apt install libvulkan1",
    "libcuda.so.1": "install the NVIDIA driver",
}


def needs(folder: Path) -> dict[str, str]:
    """Sum up what the ELF libraries of *folder* need: machine and newest GLIBC, GLIBCXX, CXXABI."""
    from . import elf

    found: dict[str, str] = {}
    for path in _libraries(folder):
        with elf.opened(path) as opened:
            found["machine"] = opened.machine
            for versions in opened.required_versions().values():
                for version in versions:
                    family, _, number = version.partition("_")
                    if family in ("GLIBC", "GLIBCXX", "CXXABI") and _key(number) > _key(
                        found.get(family, "0")
                    ):
                        found[family] = number
    return found


def library_fits(library: Path) -> None:
    """Refuse a library file that was not fetched by us and cannot be loaded here.

    Raises:
        LibraryLoadError: it is for another platform or architecture, needs a newer glibc, or a
            library beside it is damaged.
    """
    from . import binaries, elf

    system, made_for = binaries.describe(library)
    here, arch = machine.os_name(), machine.arch_name()
    if system != here:
        raise LibraryLoadError(f"{library} is a library for {system}, this is {here}.")
    if arch not in made_for:
        raise LibraryLoadError(f"{library}: {_wrong_machine(library, '+'.join(made_for), arch)}.")
    libc, have = machine.glibc()
    if libc == "glibc":
        versions = elf.required_versions(library).get("libc.so.6", set())
        wanted = max(versions, key=_key, default="0")
        if _key(wanted) > _key(have):
            raise LibraryLoadError(
                f"{library} needs glibc {wanted.rpartition('_')[2]}, this system has {have}. Use "
                "an older build or a newer system."
            )
    if here == "linux":
        for path in _libraries(library.parent):
            if path.name.startswith(("libggml", "libllama")):
                # ggml opens the backends by itself, and mapping a truncated file is a SIGBUS.
                with elf.opened(path):
                    pass


def problems(build: InstalledBuild) -> list[str]:
    """Name everything that keeps *build* from loading here; empty if nothing is known to."""
    from . import binaries

    system, machines = binaries.describe(build.library)
    here, arch = machine.os_name(), machine.arch_name()
    if system != here:
        return [f"{build.library.name} is a library for {system}, this is {here}"]
    if arch not in machines:
        return [_wrong_machine(build.library, "+".join(machines), arch)]
    if system == "mac":
        return list(_mac_problems(build.folder))
    if system == "win":
        return list(dict.fromkeys(_windows_problems(build.folder)))
    libc, have = machine.glibc()
    if libc == "musl":
        return [machine.MUSL]
    return list(dict.fromkeys(_linux_problems(build.folder, have)))


def _wrong_machine(library: Path, made_for: str, arch: str) -> str:
    return (
        f"{library.name} is for {_NAMES.get(made_for, made_for)}, this Python runs as "
        f"{_NAMES.get(arch, arch)}; use a build for {arch}, or a Python of the library's kind"
    )


def _libraries(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if ".so" in path.name and path.is_file() and not path.is_symlink():
            with path.open("rb") as handle:
                if handle.read(4) == b"\x7fELF":
                    yield path


def _linux_problems(folder: Path, have: str) -> Iterator[str]:
    from . import elf, runtime

    located: dict[str, Path | None] = {}
    offered: dict[str, set[str]] = {}
    beside = {entry.name for entry in folder.iterdir()}
    for path in _libraries(folder):
        if path.name.startswith("libggml-cpu-"):
            continue  # ggml tries each and drops the ones that do not load
        with elf.opened(path) as opened:
            wanted, versions = opened.needed(), opened.required_versions()
        for soname in wanted:
            if soname in beside or soname.startswith(("ld-linux", "libggml", "libllama")):
                continue
            if soname not in located:
                located[soname] = runtime.find(soname, folder)
            if located[soname] is None:
                yield f"{path.name} needs {soname}, which is not on this machine{_how(soname)}"
        for soname, names in versions.items():
            where = located.get(soname)
            for name in sorted(names, key=_key):
                family, _, number = name.partition("_")
                if family == "GLIBC" and _key(number) > _key(have):
                    yield (
                        f"{path.name} needs glibc {number}, this system has {have}; use a newer "
                        "system or an older build (LLAMA_CFFI_BUILD)"
                    )
                elif family in ("GLIBCXX", "CXXABI") and where is not None:
                    if soname not in offered:
                        offered[soname] = elf.defined_versions(where)
                    if name not in offered[soname]:
                        yield (
                            f"{path.name} needs {name}, which {where} does not have; "
                            "install a newer libstdc++6 (or, with conda, libstdcxx-ng)"
                        )


def _mac_problems(folder: Path) -> Iterator[str]:
    import platform

    from . import binaries

    have = _key(platform.mac_ver()[0])
    for path in sorted(folder.glob("*.dylib")):
        wanted = binaries.oldest_macos(path)
        if wanted is not None and have[:2] < wanted:
            yield (
                f"{path.name} needs macOS {wanted[0]}.{wanted[1]}, this is "
                f"{platform.mac_ver()[0]}; use an older build (LLAMA_CFFI_BUILD)"
            )


def _windows_problems(folder: Path) -> Iterator[str]:
    from . import binaries, runtime

    beside = {entry.name.lower() for entry in folder.iterdir()}
    for path in sorted(folder.glob("*.dll")):
        if path.name.startswith("ggml-cpu-"):
            continue  # ggml tries each and drops the ones that do not load
        for name in binaries.pe_imports(path):
            if name.lower() in beside or name.lower().startswith(("api-ms-", "ext-ms-")):
                continue
            if runtime.find(name, folder) is None:
                yield f"{path.name} needs {name}, which is not on this machine{_how(name)}"


def _how(soname: str) -> str:
    """Say what brings a missing library, where that is known."""
    if soname in _PACKAGES:
        return f" ({_PACKAGES[soname]})"
    if soname.lower().startswith(("vcruntime", "msvcp", "concrt")):
        return " (install the Microsoft Visual C++ Redistributable)"
    if cuda := re.fullmatch(r"(?:lib)?(?:cudart|cublas)(?:64_|\.so\.)(\d+)(?:\.dll)?", soname):
        return f" (pip install 'llama-cffi[cuda{cuda[1]}]')"
    return ""


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.rpartition("_")[2].split(".") if part.isdigit())
