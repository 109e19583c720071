from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.errors import LibraryLoadError
from llama_cffi.libs_fetch import (
    binaries,
    check,
    elf,
    ensure,
    exported_symbols,
    local,
    machine,
    runtime,
)

C_NAMES = frozenset({"llama_backend_init", "llama_decode", "llama_model_default_params"})


@pytest.fixture
def library(tmp_path: Path, make: Any) -> Any:
    """Write an ELF library and describe it as a build."""

    def write(name: str = "libllama.so", **facts: Any) -> Any:
        folder = tmp_path / "build"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(make.elf(**facts))
        return local.build_at(str(folder), "a test") if name == "libllama.so" else folder / name

    return write


def test_reading_an_elf_file(library: Any) -> None:
    path = library(
        needed=("libggml.so", "libm.so.6"),
        versions={
            "libc.so.6": ("GLIBC_2.2.5", "GLIBC_2.34"),
            "libstdc++.so.6": ("GLIBCXX_3.4.30",),
        },
    ).library
    assert elf.arch(path) == "x64"
    assert elf.needed(path) == ["libggml.so", "libm.so.6", "libc.so.6", "libstdc++.so.6"]
    assert elf.required_versions(path) == {
        "libc.so.6": {"GLIBC_2.2.5", "GLIBC_2.34"},
        "libstdc++.so.6": {"GLIBCXX_3.4.30"},
    }
    assert exported_symbols(path) == C_NAMES
    assert binaries.describe(path) == ("linux", ("x64",))
    assert check.needs(path.parent) == {"machine": "x64", "GLIBC": "2.34", "GLIBCXX": "3.4.30"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads this system's libraries")
def test_reading_the_libraries_of_this_system() -> None:
    stdcpp = runtime.find("libstdc++.so.6")
    libc = runtime.find("libc.so.6")
    assert stdcpp is not None
    assert libc is not None
    assert "GLIBCXX_3.4" in elf.defined_versions(stdcpp)
    assert "malloc" in elf.exported_symbols(libc)
    assert elf.arch(libc) == machine.arch_name()
    if nm := shutil.which("nm"):
        shown = subprocess.run([nm, "-D", "--defined-only", str(libc)], capture_output=True)
        lines = shown.stdout.decode().splitlines()
        names = {line.split()[-1].partition("@")[0] for line in lines if " A " not in line}
        assert names - elf.exported_symbols(libc) <= {n for n in names if n.startswith("_Z")}


@pytest.mark.parametrize("body", [b"", b"hello", b"\x7fELF", b"\x7fELF" + bytes(40)])
def test_files_that_are_not_libraries(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "libllama.so"
    path.write_bytes(body)
    with pytest.raises(LibraryLoadError, match=r"libllama\.so"):
        exported_symbols(path)


def test_a_damaged_elf_file_is_named(tmp_path: Path, make: Any) -> None:
    whole = make.elf()
    for cut in (70, len(whole) // 2, len(whole) - 40):
        path = tmp_path / "cut.so"
        path.write_bytes(whole[:cut])
        with pytest.raises(LibraryLoadError, match=r"cut\.so is a damaged"):
            exported_symbols(path)


@pytest.mark.usefixtures("linux")
def test_a_library_given_by_path_is_checked_too(library: Any, tmp_path: Path) -> None:
    path = library(versions={"libc.so.6": ("GLIBC_2.36",)}).library
    check.library_fits(path)
    for facts, said in (
        ({"code": 183}, "64-bit ARM"),
        ({"versions": {"libc.so.6": ("GLIBC_2.9", "GLIBC_2.40")}}, r"needs glibc 2\.40.*has 2\.36"),
    ):
        library(**facts)
        with pytest.raises(LibraryLoadError, match=said):
            ensure(str(path))
    path.write_bytes(macho(0x0100000C, ()))
    with pytest.raises(LibraryLoadError, match="library for mac, this is linux"):
        ensure(str(path))


def macho(cpu: int, symbols: tuple[str, ...]) -> bytes:
    strings = b"\0" + b"".join(f"_{name}".encode() + b"\0" for name in symbols)
    offsets, at = [], 1
    for name in symbols:
        offsets.append(at)
        at += len(name) + 2
    commands = 24 + 80
    table = 32 + commands
    rows = b"".join(struct.pack("<IBBHQ", o, 0x0F, 1, 0, 0x1000) for o in offsets)
    head = struct.pack("<IIIIIIII", 0xFEEDFACF, cpu, 0, 6, 2, commands, 0, 0)
    symtab = struct.pack("<IIIIII", 2, 24, table, len(symbols), table + len(rows), len(strings))
    dysymtab = struct.pack("<IIIIII", 0xB, 80, 0, 0, 0, len(symbols)) + bytes(56)
    return head + symtab + dysymtab + rows + strings


def test_reading_a_mach_o_file(tmp_path: Path) -> None:
    path = tmp_path / "libllama.dylib"
    thin = macho(0x0100000C, ("llama_decode", "_ZN5llama3fooEv"))
    path.write_bytes(thin)
    assert binaries.describe(path) == ("mac", ("arm64",))
    assert exported_symbols(path) == {"llama_decode"}
    fat = struct.pack(">II", 0xCAFEBABE, 2)
    fat += struct.pack(">IIIII", 0x01000007, 3, 4096, len(thin), 12)
    fat += struct.pack(">IIIII", 0x0100000C, 0, 8192, len(thin), 12)
    path.write_bytes(fat.ljust(4096, b"\0") + thin.ljust(4096, b"\0") + thin)
    assert binaries.describe(path) == ("mac", ("x64", "arm64"))
    assert exported_symbols(path) == {"llama_decode"}


@pytest.mark.parametrize(("kind", "place"), [(0x24, 8), (0x32, 12)])
def test_the_oldest_macos_a_library_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, place: int
) -> None:
    command = bytearray(struct.pack("<II", kind, 24) + bytes(16))
    struct.pack_into("<I", command, place, 13 << 16 | 3 << 8)
    head = struct.pack("<IIIIIIII", 0xFEEDFACF, 0x0100000C, 0, 6, 1, 24, 0, 0)
    path = tmp_path / "libllama.dylib"
    path.write_bytes(head + command)
    assert binaries.oldest_macos(path) == (13, 3)
    monkeypatch.setattr(machine, "os_name", lambda: "mac")
    monkeypatch.setattr(machine, "arch_name", lambda: "arm64")
    monkeypatch.setattr("platform.mac_ver", lambda: ("12.7.1", ("", "", ""), "arm64"))
    build = local.build_at(str(path), "a test")
    assert check.problems(build) == [
        "libllama.dylib needs macOS 13.3, this is 12.7.1; use an older build (LLAMA_CFFI_BUILD)"
    ]
    monkeypatch.setattr("platform.mac_ver", lambda: ("26.0", ("", "", ""), "arm64"))
    assert check.problems(build) == []
    path.write_bytes(macho(0x0100000C, ()))
    assert binaries.oldest_macos(path) is None


def pe(cpu: int, symbols: tuple[str, ...], imports: tuple[str, ...] = ()) -> bytes:
    rva, raw = 0x2000, 0x400
    names = b"".join(name.encode() + b"\0" for name in symbols)
    table = 40 + 4 * len(symbols)
    addresses, at = [], rva + table
    for name in symbols:
        addresses.append(at)
        at += len(name) + 1
    directory = struct.pack("<IIHHIIIIIII", 0, 0, 0, 0, 0, 1, 0, len(symbols), 0, rva + 40, 0)
    body = directory + struct.pack(f"<{len(symbols)}I", *addresses) + names
    imports_at = rva + len(body)
    rows, texts = b"", b""
    for name in imports:
        rows += struct.pack("<IIIII", 0, 0, 0, imports_at + 20 * (len(imports) + 1) + len(texts), 0)
        texts += name.encode() + b"\0"
    body += rows + bytes(20) + texts if imports else b""
    optional = struct.pack("<H", 0x20B) + bytes(110) + struct.pack("<II", rva, 1)
    optional += struct.pack("<II", imports_at if imports else 0, 1)
    optional = optional.ljust(240, b"\0")
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)
    head = head.ljust(0x80, b"\0") + b"PE\0\0"
    head += struct.pack("<HHIIIHH", cpu, 1, 0, 0, 0, len(optional), 0x2000) + optional
    head += b".rdata\0\0" + struct.pack("<IIII", len(body), rva, len(body), raw) + bytes(16)
    return head.ljust(raw, b"\0") + body


def test_reading_a_pe_file(tmp_path: Path) -> None:
    path = tmp_path / "llama.dll"
    path.write_bytes(pe(0x8664, ("?foo@@YAXXZ", "llama_decode", "llama_free")))
    assert binaries.describe(path) == ("win", ("x64",))
    assert exported_symbols(path) == {"llama_decode", "llama_free"}
    path.write_bytes(path.read_bytes()[:0x410])
    with pytest.raises(LibraryLoadError, match="damaged"):
        exported_symbols(path)
    path.write_bytes(pe(0xAA64, ()))
    assert binaries.describe(path) == ("win", ("arm64",))


def test_missing_dlls_are_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("ggml-base.dll", "KERNEL32.dll", "VCRUNTIME140.dll", "api-ms-win-crt.dll")
    (tmp_path / "llama.dll").write_bytes(pe(0x8664, ("llama_decode",), wanted))
    (tmp_path / "ggml-base.dll").write_bytes(pe(0x8664, ()))
    (tmp_path / "ggml-cpu-zen4.dll").write_bytes(pe(0x8664, (), ("nothing.dll",)))
    assert binaries.pe_imports(tmp_path / "llama.dll") == list(wanted)
    monkeypatch.setattr(machine, "os_name", lambda: "win")
    monkeypatch.setattr(machine, "arch_name", lambda: "x64")
    monkeypatch.setattr(
        runtime, "find", lambda n, folder=None: tmp_path if n.startswith("KERNEL") else None
    )
    assert check.problems(local.build_at(str(tmp_path), "a test")) == [
        "llama.dll needs VCRUNTIME140.dll, which is not on this machine "
        "(install the Microsoft Visual C++ Redistributable)"
    ]


@pytest.mark.usefixtures("linux")
def test_a_library_of_another_platform_or_architecture(library: Any, tmp_path: Path) -> None:
    build = library(code=183)
    (problem,) = check.problems(build)
    assert problem.startswith("libllama.so is for 64-bit ARM, this Python runs as x86-64")
    build.library.write_bytes(macho(0x01000007, ("llama_decode",)))
    assert check.problems(build) == ["libllama.so is a library for mac, this is linux"]


@pytest.mark.usefixtures("linux")
def test_a_newer_glibc_is_named_with_both_versions(library: Any) -> None:
    build = library(versions={"libc.so.6": ("GLIBC_2.17", "GLIBC_2.38", "GLIBC_2.39")})
    problems = check.problems(build)
    assert problems == [
        f"libllama.so needs glibc {wanted}, this system has 2.36; use a newer system or an older "
        "build (LLAMA_CFFI_BUILD)"
        for wanted in ("2.38", "2.39")
    ]


@pytest.mark.usefixtures("linux")
def test_a_newer_libstdcpp_is_named_with_its_path(
    library: Any, make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = tmp_path / "libstdc++.so.6"
    monkeypatch.setattr(runtime, "find", lambda soname, folder=None: here)
    monkeypatch.setattr(elf, "defined_versions", lambda path: {"GLIBCXX_3.4.29"})
    build = library(versions={"libstdc++.so.6": ("GLIBCXX_3.4.29", "GLIBCXX_3.4.32")})
    (problem,) = check.problems(build)
    assert problem == (
        f"libllama.so needs GLIBCXX_3.4.32, which {here} does not have; "
        "install a newer libstdc++6 (or, with conda, libstdcxx-ng)"
    )


@pytest.mark.usefixtures("linux")
def test_missing_libraries_are_named_with_what_to_install(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "find", lambda soname, folder=None: None)
    library("libggml-cuda.so", needed=("libcublas.so.13", "libcuda.so.1"))
    library("libggml-cpu-zen4.so", needed=("libnothing.so",))  # ggml itself skips it
    build = library(needed=("libggml-cuda.so", "libgomp.so.1", "libodd.so"))
    assert check.problems(build) == [
        "libggml-cuda.so needs libcublas.so.13, which is not on this machine "
        "(pip install 'llama-cffi[cuda13]')",
        "libggml-cuda.so needs libcuda.so.1, which is not on this machine "
        "(install the NVIDIA driver)",
        "libllama.so needs libgomp.so.1, which is not on this machine (apt install libgomp1)",
        "libllama.so needs libodd.so, which is not on this machine",
    ]


@pytest.mark.usefixtures("linux")
def test_musl_is_a_problem_of_every_linux_build(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = library()
    monkeypatch.setattr(machine, "glibc", lambda: ("musl", ""))
    (problem,) = check.problems(build)
    assert "musl" in problem


def test_libraries_are_found_in_nvidias_wheels_and_on_the_search_path(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = runtime.cuda_sonames(99)
    wheel = tmp_path / "site" / "nvidia" / "cu99" / "lib"
    wheel.mkdir(parents=True)
    for name in names[:2]:
        (wheel / name).write_bytes(make.elf())
    assert runtime.cuda_runtime(99) == ([], list(names))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert runtime.cuda_runtime(99) == ([wheel / n for n in names[:2]], [names[2]])
    other = tmp_path / "other"
    other.mkdir()
    (other / names[2]).write_bytes(make.elf())
    monkeypatch.setenv("PATH" if sys.platform == "win32" else "LD_LIBRARY_PATH", str(other))
    assert runtime.cuda_runtime(99)[1] == []
    assert runtime.find(names[2], tmp_path) == other / names[2]
