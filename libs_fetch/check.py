"""Check whether a build can run on this machine, from its files, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LibraryLoadError
from . import machine

if TYPE_CHECKING:
    from .store import InstalledBuild

__all__ = ["library_fits", "needs", "problems"]

_ARCH_NAMES = {"x64": "x86-64", "arm64": "64-bit ARM", "armv7l": "32-bit ARM"}
_FAMILIES = ("GLIBC", "GLIBCXX", "CXXABI")
_PACKAGES = {
    "libstdc++.so.6": "apt install libstdc++6",
    "libgomp.so.1": "apt install libgomp1",
    "libvulkan.so.1": "apt install libvulkan1",
    "libcuda.so.1": "install the NVIDIA driver",
}


def needs(folder: Path) -> dict[str, str]:
    """Return the machine and the newest GLIBC, GLIBCXX and CXXABI that *folder*'s libraries need.

    Only ELF libraries are looked at; a family that none of them needs is left out.
    """
    from . import elf

    found: dict[str, str] = {}
    for path in _libraries(folder):
        with elf.open_elf(path) as opened:
            found["machine"] = opened.arch
            for versions in opened.required_versions().values():
                for version in versions:
                    family, _, number = version.partition("_")
                    newest = found.get(family, "0")
                    if family in _FAMILIES and _version_tuple(number) > _version_tuple(newest):
                        found[family] = number
    return found


def library_fits(library: Path) -> None:
    """Check that a library given by path, not fetched by this package, can be loaded here.

    Raises:
        LibraryLoadError: It is for another platform or architecture, needs a newer glibc, or a
            library beside it is damaged.
    """
    from . import binaries, elf

    system, arches = binaries.describe(library)
    here, arch = machine.os_name(), machine.arch_name()
    if system != here:
        raise LibraryLoadError(f"{library} is a library for {system}, this is {here}.")
    if arch not in arches:
        raise LibraryLoadError(f"{library}: {_wrong_arch(library, arches, arch)}.")
    libc, have = machine.glibc()
    if libc == "glibc":
        versions = elf.required_versions(library).get("libc.so.6", set())
        wanted = max(versions, key=_version_tuple, default="0")
        if _version_tuple(wanted) > _version_tuple(have):
            raise LibraryLoadError(
                f"{library} needs glibc {wanted.rpartition('_')[2]}, this system has {have}. Use "
                "an older build or a newer system."
            )
    if here == "linux":
        _refuse_special_files(library.parent)
        for path in _libraries(library.parent):
            if path.name.startswith(("libggml", "libllama")):
                # ggml opens the backends itself, and mapping a truncated file ends in SIGBUS.
                with elf.open_elf(path):
                    pass


def problems(build: InstalledBuild) -> list[str]:
    """List every known reason why *build* cannot be loaded here."""
    from . import binaries

    system, arches = binaries.describe(build.library)
    here, arch = machine.os_name(), machine.arch_name()
    if system != here:
        return [f"{build.library.name} is a library for {system}, this is {here}"]
    if arch not in arches:
        return [_wrong_arch(build.library, arches, arch)]
    if system == "mac":
        return list(_mac_problems(build.folder))
    if system == "win":
        return list(dict.fromkeys(_windows_problems(build.folder)))
    libc, have = machine.glibc()
    if libc == "musl":
        return [machine.MUSL]
    return list(dict.fromkeys(_linux_problems(build.folder, have)))


def _wrong_arch(library: Path, arches: tuple[str, ...], arch: str) -> str:
    built_for = "+".join(arches)
    return (
        f"{library.name} is for {_ARCH_NAMES.get(built_for, built_for)}, this Python runs as "
        f"{_ARCH_NAMES.get(arch, arch)}; use a build for {arch}, or a Python for the library's "
        "architecture"
    )


def _libraries(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if ".so" in path.name and path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def _refuse_special_files(folder: Path) -> None:
    """Refuse a FIFO or device by the name of a library: ggml would wait for it for ever."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(("libggml", "libllama")) and path.exists() and not path.is_file():
            raise LibraryLoadError(f"{path} is not a regular file. Remove it.")


def _linux_problems(folder: Path, have: str) -> Iterator[str]:
    from . import elf, runtime

    located: dict[str, Path | None] = {}
    offered: dict[str, set[str]] = {}
    beside = {entry.name for entry in folder.iterdir()}
    for path in _libraries(folder):
        if path.name.startswith("libggml-cpu-"):
            continue  # ggml tries each of them and drops those that do not load
        with elf.open_elf(path) as opened:
            wanted, versions = opened.needed(), opened.required_versions()
        for soname in wanted:
            if soname in beside or soname.startswith(("ld-linux", "libggml", "libllama")):
                continue
            if soname not in located:
                located[soname] = runtime.find(soname, folder)
            if located[soname] is None:
                hint = _install_hint(soname)
                yield f"{path.name} needs {soname}, which is not on this machine{hint}"
        for soname, names in versions.items():
            provider = located.get(soname)
            for name in sorted(names, key=_version_tuple):
                family, _, number = name.partition("_")
                if family == "GLIBC" and _version_tuple(number) > _version_tuple(have):
                    yield (
                        f"{path.name} needs glibc {number}, this system has {have}; use a newer "
                        "system or an older build (LLAMA_CFFI_BUILD)"
                    )
                elif family in ("GLIBCXX", "CXXABI") and provider is not None:
                    if soname not in offered:
                        offered[soname] = elf.defined_versions(provider)
                    if name not in offered[soname]:
                        yield (
                            f"{path.name} needs {name}, which {provider} does not have; "
                            "install a newer libstdc++6 (or, with conda, libstdcxx-ng)"
                        )


def _mac_problems(folder: Path) -> Iterator[str]:
    import platform

    from . import binaries

    have = _version_tuple(platform.mac_ver()[0])
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
            continue  # ggml tries each of them and drops those that do not load
        for name in binaries.pe_imports(path):
            if name.lower() in beside or name.lower().startswith(("api-ms-", "ext-ms-")):
                continue
            if runtime.find(name, folder) is None:
                yield f"{path.name} needs {name}, which is not on this machine{_install_hint(name)}"


def _install_hint(soname: str) -> str:
    """Say how to install a missing library; empty if that is not known."""
    if soname in _PACKAGES:
        return f" ({_PACKAGES[soname]})"
    if soname.lower().startswith(("vcruntime", "msvcp", "concrt")):
        return " (install the Microsoft Visual C++ Redistributable)"
    if cuda := re.fullmatch(r"(?:lib)?(?:cudart|cublas)(?:64_|\.so\.)(\d+)(?:\.dll)?", soname):
        return f" (pip install 'llama-cffi[cuda{cuda[1]}]')"
    return ""


def _version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.rpartition("_")[2].split(".") if part.isdigit())
