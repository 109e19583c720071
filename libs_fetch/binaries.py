"""Read platform, architecture and symbols of a shared library without loading it.

ELF files are read by `elf`; Mach-O and PE are simple enough to read here.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import LibraryLoadError
from . import elf

__all__ = ["describe", "exported_symbols", "oldest_macos", "pe_imports"]

_MACHO_CPUS = {0x01000007: "x64", 0x0100000C: "arm64", 7: "x86", 12: "arm"}
_PE_CPUS = {0x8664: "x64", 0xAA64: "arm64", 0x14C: "x86"}
_LC_SYMTAB, _LC_DYSYMTAB, _LC_VERSION_MIN, _LC_BUILD_VERSION = 0x2, 0xB, 0x24, 0x32
_Data = mmap.mmap
_DAMAGED = (struct.error, IndexError, ValueError, OverflowError, MemoryError)


def describe(path: str | Path) -> tuple[str, tuple[str, ...]]:
    """Return the platform and the architectures of a library: `("linux", ("x64",))`.

    Raises:
        LibraryLoadError: The file is damaged, or not a shared library of a known platform.
    """
    with elf.mapped(path) as data:
        head = data[:4]
        if head == b"\x7fELF":
            return "linux", (elf.arch(path),)
        try:
            if head[:2] == b"MZ":
                return "win", (_pe_arch(data),)
            slices = _macho_slices(data)
        except _DAMAGED as e:
            raise LibraryLoadError(f"{path} is a damaged library: {e}") from e
    if slices:
        return "mac", tuple(cpu for cpu, _ in slices)
    raise LibraryLoadError(
        f"{path} is not a shared library: it starts with {head!r}. Give the libllama file or the "
        "folder it is in."
    )


def exported_symbols(path: str | Path) -> frozenset[str]:
    """Return the C symbols that a library exports; C++ names are left out.

    Raises:
        LibraryLoadError: The file is damaged, or not a shared library of a known platform.
    """
    system, _ = describe(path)
    if system == "linux":
        return elf.exported_symbols(path)
    with elf.mapped(path) as data:
        try:
            if system == "win":
                return frozenset(_pe_exports(data))
            return frozenset(n for n in _macho_exports(data) if not n.startswith("_Z"))
        except _DAMAGED as e:
            raise LibraryLoadError(f"{path} is a damaged library: {e}") from e


def _text(data: _Data, start: int) -> str:
    return bytes(data[start : data.find(b"\0", start)]).decode("ascii", "replace")


def _macho_slices(data: _Data) -> list[tuple[str, int]]:
    """List (architecture, offset) of a Mach-O file, thin or universal; empty for other files."""
    if data[:4] == b"\xcf\xfa\xed\xfe":
        (cpu,) = struct.unpack_from("<I", data, 4)
        return [(_MACHO_CPUS.get(cpu, f"Mach-O cpu {cpu:#x}"), 0)]
    if data[:4] != b"\xca\xfe\xba\xbe":
        return []
    (count,) = struct.unpack_from(">I", data, 4)
    found = []
    for n in range(min(count, 16)):
        cpu, _, offset = struct.unpack_from(">III", data, 8 + 20 * n)
        found.append((_MACHO_CPUS.get(cpu, f"Mach-O cpu {cpu:#x}"), offset))
    return found


def _macho_commands(data: _Data, base: int) -> Iterator[tuple[int, int]]:
    """Yield (kind, offset) of the load commands of the slice at *base*."""
    (commands,) = struct.unpack_from("<I", data, base + 16)
    at = base + 32
    for _ in range(commands):
        kind, size = struct.unpack_from("<II", data, at)
        yield kind, at
        if size < 8:
            raise ValueError(f"a load command of {size} bytes")
        at += size


def oldest_macos(path: str | Path) -> tuple[int, int] | None:
    """Return the oldest macOS a Mach-O library runs on, such as `(13, 3)`; None if not stated."""
    with elf.mapped(path) as data:
        try:
            for kind, at in _macho_commands(data, _macho_slices(data)[0][1]):
                if kind in (_LC_VERSION_MIN, _LC_BUILD_VERSION):
                    place = at + (12 if kind == _LC_BUILD_VERSION else 8)
                    (packed,) = struct.unpack_from("<I", data, place)
                    return packed >> 16, packed >> 8 & 0xFF
        except _DAMAGED as e:
            raise LibraryLoadError(f"{path} is a damaged library: {e}") from e
    return None


def pe_imports(path: str | Path) -> list[str]:
    """List the DLLs that a PE library imports."""
    with elf.mapped(path) as data:
        try:
            table, offset = _pe_directory(data, 1)
            found: list[str] = []
            at = offset(table) if table else 0
            while table:
                (name,) = struct.unpack_from("<I", data, at + 12)
                if not name:
                    break
                found.append(_text(data, offset(name)))
                at += 20
            return found
        except _DAMAGED as e:
            raise LibraryLoadError(f"{path} is a damaged library: {e}") from e


def _macho_exports(data: _Data) -> Iterable[str]:
    base = _macho_slices(data)[0][1]
    symbols = strings = first = count = 0
    for kind, at in _macho_commands(data, base):
        if kind == _LC_SYMTAB:
            symbols, _, strings, _ = struct.unpack_from("<IIII", data, at + 8)
        elif kind == _LC_DYSYMTAB:
            first, count = struct.unpack_from("<II", data, at + 16)
    for n in range(first, first + count):
        (name,) = struct.unpack_from("<I", data, base + symbols + 16 * n)
        yield _text(data, base + strings + name).removeprefix("_")


def _pe_arch(data: _Data) -> str:
    (header,) = struct.unpack_from("<I", data, 0x3C)
    if data[header : header + 4] != b"PE\0\0":
        return "DOS"
    (cpu,) = struct.unpack_from("<H", data, header + 4)
    return _PE_CPUS.get(cpu, f"PE machine {cpu:#x}")


def _pe_directory(data: _Data, number: int) -> tuple[int, Callable[[int], int]]:
    """Return the address of a data directory, and a function from addresses to file offsets."""
    (header,) = struct.unpack_from("<I", data, 0x3C)
    (sections,) = struct.unpack_from("<H", data, header + 6)
    (optional,) = struct.unpack_from("<H", data, header + 20)
    table = header + 24 + optional
    rows = [struct.unpack_from("<IIII", data, table + 40 * n + 8) for n in range(sections)]

    def offset(address: int) -> int:
        for size, start, raw_size, raw in rows:
            if start <= address < start + max(size, raw_size):
                return int(address - start + raw)
        raise ValueError(f"address {address:#x} is in no section")

    (directory,) = struct.unpack_from("<I", data, header + 24 + 112 + 8 * number)  # PE32+
    return directory, offset


def _pe_exports(data: _Data) -> Iterable[str]:
    directory, offset = _pe_directory(data, 0)
    if not directory:
        return
    at = offset(directory)
    (count,) = struct.unpack_from("<I", data, at + 24)
    (names,) = struct.unpack_from("<I", data, at + 32)
    shift = offset(names) - names  # linkers keep the names in the same section as their table
    for address in struct.unpack_from(f"<{count}I", data, names + shift):
        if data[address + shift] != ord("?"):  # a C++ name
            yield _text(data, address + shift)
