"""Read ELF files through mmap, without loading them.

Architecture, NEEDED entries, required and defined symbol versions, and exported symbols.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import LibraryLoadError

__all__ = [
    "Elf",
    "arch",
    "defined_versions",
    "exported_symbols",
    "mapped",
    "needed",
    "open_elf",
    "required_versions",
]

_ARCHES = {3: "x86", 40: "armv7l", 62: "x64", 183: "arm64", 243: "riscv64", 22: "s390x"}
_SHT_STRTAB, _SHT_DYNAMIC, _SHT_DYNSYM = 3, 6, 11
_SHT_VERDEF, _SHT_VERNEED = 0x6FFFFFFD, 0x6FFFFFFE
_PT_LOAD = 1
_DT_NEEDED, _DT_SONAME = 1, 14


@dataclass(frozen=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int
    info: int


class Elf:
    """An open ELF file; made by `open_elf`.

    Attributes:
        arch: CPU architecture: `x64`, `arm64`, `armv7l`, …
        is_64bit: Whether it is of the 64-bit class.
    """

    def __init__(self, data: mmap.mmap | bytes, path: Path) -> None:
        if data[:4] != b"\x7fELF" or len(data) < 64:
            raise LibraryLoadError(f"{path} is not an ELF file.")
        if data[4] not in (1, 2) or data[5] not in (1, 2):
            raise LibraryLoadError(
                f"{path} is a damaged ELF file: class {data[4]}, byte order {data[5]}."
            )
        self._data = data
        self.is_64bit = data[4] == 2
        self._byte_order = "<" if data[5] == 1 else ">"
        (code,) = self._unpack("H", 18)
        self.arch = _ARCHES.get(code, f"ELF machine {code}")
        if (self._byte_order == ">") != (sys.byteorder == "big"):
            self.arch += f" in {'little' if self._byte_order == '<' else 'big'}-endian order"
        self._check_segments(path)
        self._sections = list(self._read_sections())

    def _unpack(self, fields: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(self._byte_order + fields, self._data, offset)

    def _check_segments(self, path: Path) -> None:
        """Refuse a file that ends before what its segments map: reading that ends in SIGBUS."""
        if self.is_64bit:
            (start,) = self._unpack("Q", 32)
            entry, count = self._unpack("HH", 54)
        else:
            (start,) = self._unpack("I", 28)
            entry, count = self._unpack("HH", 42)
        for n in range(count if start else 0):
            at = start + n * entry
            if self.is_64bit:
                kind, _, offset, _, _, size = self._unpack("IIQQQQ", at)
            else:
                kind, offset, _, _, size = self._unpack("IIIII", at)
            if kind == _PT_LOAD and offset + size > len(self._data):
                raise LibraryLoadError(
                    f"{path} is a damaged ELF file: it has {len(self._data):,} bytes, its segments "
                    f"need {offset + size:,}."
                )

    def _read_sections(self) -> Iterator[_Section]:
        if self.is_64bit:
            (start,) = self._unpack("Q", 40)
            entry, count = self._unpack("HH", 58)
        else:
            (start,) = self._unpack("I", 32)
            entry, count = self._unpack("HH", 46)
        for n in range(count if start else 0):
            at = start + n * entry
            if self.is_64bit:
                _, kind, _, _, offset, size, link, info = self._unpack("IIQQQQII", at)
            else:
                _, kind, _, _, offset, size, link, info = self._unpack("IIIIIIII", at)
            yield _Section(kind, offset, size, link, info)

    def _find(self, kind: int) -> _Section | None:
        return next((s for s in self._sections if s.kind == kind), None)

    def _string(self, table: _Section, offset: int) -> str:
        start = table.offset + offset
        end = self._data.find(b"\0", start, table.offset + table.size)
        return bytes(self._data[start:end]).decode("ascii", "replace")

    def _dynamic(self, wanted: int) -> list[str]:
        section = self._find(_SHT_DYNAMIC)
        if section is None:
            return []
        names = self._sections[section.link]
        fields, step = ("qQ", 16) if self.is_64bit else ("iI", 8)
        found = []
        for at in range(section.offset, section.offset + section.size, step):
            tag, value = self._unpack(fields, at)
            if tag == wanted:
                found.append(self._string(names, value))
            elif tag == 0:
                break
        return found

    def needed(self) -> list[str]:
        """List the sonames of the libraries this file needs."""
        return self._dynamic(_DT_NEEDED)

    def soname(self) -> str | None:
        """Return the soname; None if the file has none."""
        return next(iter(self._dynamic(_DT_SONAME)), None)

    def required_versions(self) -> dict[str, set[str]]:
        """Map each needed soname to its required symbol versions, `{"libc.so.6": {...}}`."""
        section = self._find(_SHT_VERNEED)
        found: dict[str, set[str]] = {}
        if section is None:
            return found
        names = self._sections[section.link]
        at = section.offset
        for _ in range(section.info):
            _, count, file, aux, following = self._unpack("HHIII", at)
            versions = found.setdefault(self._string(names, file), set())
            entry = at + aux
            for _ in range(count):
                _, flags, _, name, step = self._unpack("IHHII", entry)
                if not flags & 2:  # weak: the linker does not require it
                    versions.add(self._string(names, name))
                entry += step
                if not step:
                    break
            at += following
            if not following:
                break
        return found

    def defined_versions(self) -> set[str]:
        """Return the symbol versions this file defines, such as `GLIBCXX_3.4.30`."""
        section = self._find(_SHT_VERDEF)
        found: set[str] = set()
        if section is None:
            return found
        names = self._sections[section.link]
        at = section.offset
        for _ in range(section.info):
            _, _, _, _, _, aux, following = self._unpack("HHHHIII", at)
            (name,) = self._unpack("I", at + aux)
            found.add(self._string(names, name))
            at += following
            if not following:
                break
        return found

    def exported_symbols(self) -> frozenset[str]:
        """Return the symbols that other files can bind to; C++ (`_Z`) names are left out."""
        section = self._find(_SHT_DYNSYM)
        if section is None:
            return frozenset()
        table = self._sections[section.link]
        names = bytes(self._data[table.offset : table.offset + table.size])
        raw = self._data[section.offset : section.offset + section.size]
        # Elf64_Sym and Elf32_Sym have the same fields in another order.
        if self.is_64bit:
            rows = struct.iter_unpack(self._byte_order + "IBBH16x", raw)
        else:
            rows = struct.iter_unpack(self._byte_order + "I8xBBH", raw)
        find, mangled = names.index, names.startswith
        return frozenset(
            names[name : find(0, name)].decode("ascii", "replace")
            for name, info, other, shndx in rows
            # Defined; global or weak; default or protected visibility. libllama has 20 mangled
            # names for each C name; skipping them here keeps this at 2 ms.
            if shndx and info >= 16 and other & 3 in (0, 3) and not mangled(b"_Z", name)
        )


@contextmanager
def open_elf(path: str | Path) -> Iterator[Elf]:
    """Open the ELF file at *path*.

    Raises:
        LibraryLoadError: The file is not a regular, readable ELF file, or is damaged.
    """
    with mapped(path) as data:
        try:
            yield Elf(data, Path(path))
        except (struct.error, IndexError, ValueError, OverflowError, MemoryError) as e:
            raise LibraryLoadError(f"{path} is a damaged ELF file: {e}") from e


@contextmanager
def mapped(path: str | Path) -> Iterator[mmap.mmap]:
    """Map a library file into memory, for reading.

    Raises:
        LibraryLoadError: It is empty, cannot be read, or is not a regular file: opening a FIFO
            would wait for ever.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise LibraryLoadError(f"{path} is not a regular file.")
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as e:
        raise LibraryLoadError(f"{path} is empty.") from e
    except LibraryLoadError:
        raise
    except OSError as e:
        raise LibraryLoadError(f"{path} cannot be read: {e.strerror or e}.") from e
    with data:
        yield data


def arch(path: str | Path) -> str:
    """Return the CPU architecture: `x64`, `arm64`, `armv7l`, and so on."""
    with open_elf(path) as elf:
        return elf.arch


def needed(path: str | Path) -> list[str]:
    """List the sonames of the libraries the file needs."""
    with open_elf(path) as elf:
        return elf.needed()


def required_versions(path: str | Path) -> dict[str, set[str]]:
    """Map each needed soname to its required symbol versions."""
    with open_elf(path) as elf:
        return elf.required_versions()


def defined_versions(path: str | Path) -> set[str]:
    """Return the symbol versions the file defines."""
    with open_elf(path) as elf:
        return elf.defined_versions()


def exported_symbols(path: str | Path) -> frozenset[str]:
    """Return the symbols that other files can bind to; C++ (`_Z`) names are left out."""
    with open_elf(path) as elf:
        return elf.exported_symbols()
