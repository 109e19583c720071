"""The C declarations of every known llama.cpp ABI, and the table that recognises a build.

An ABI class is a set of builds whose public headers declare exactly the same things. Texts and
table are data made by `llama_cffi.cdefs.generator` and kept by `llama_cffi.cdefs.store`; this
module only reads them, with the standard library, and keeps what it read. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = [
    "EXPORTED_EARLY",
    "NEWEST",
    "AbiClass",
    "Layout",
    "abi_class",
    "all_classes",
    "class_names",
    "declarations",
]

_HERE = Path(__file__).parent
# The name of the last class; read on first use.
NEWEST: str
# Builds before b6845 export these two although their headers do not declare them yet, so here a
# symbol that the class does not have is no evidence against it. There are no others (37 libraries).
EXPORTED_EARLY = frozenset({"ggml_backend_register", "ggml_backend_device_register"})


class Layout(NamedTuple):
    """Where one struct has fields and where it has holes (64-bit platforms).

    Attributes:
        size: `sizeof`, in bytes.
        written: One byte per byte of the struct: 1 belongs to a field, so a function that fills
            the struct must write it; 0 is padding, which it may write or not.
    """

    size: int
    written: bytes


class AbiClass(NamedTuple):
    """What a library with exactly these declarations has.

    Attributes:
        name: The first upstream tag that has them: `b3889`, `v0.5.0`, `b11549`.
        builds: Every upstream tag known to have them, oldest first.
        functions: Every function declared: llama_*, ggml_*, gguf_*, mtmd_*.
        optional: Those among them that a good library of this class may lack: the CPU backend's
            and other backends' own functions, libmtmd's, ggml-opt.h's, and names that headers
            declare and no build defines. A missing symbol outside this set proves another class.
        layouts: Every complete struct by its tag (or its typedef where it has no tag).
        digest: sha256 of the declarations, first 16 hex digits: a key for caches of what is
            compiled from them that needs no unpacking.
    """

    name: str
    builds: tuple[str, ...]
    functions: frozenset[str]
    optional: frozenset[str]
    layouts: Mapping[str, Layout]
    digest: str


def class_names() -> tuple[str, ...]:
    """Return the names of all classes, oldest first."""
    return tuple(_table())


def abi_class(name: str) -> AbiClass:
    """Return one class by its name.

    Raises:
        AbiMismatchError: There is no such class.
    """
    try:
        return _table()[name]
    except KeyError:
        raise _unknown(name) from None


def all_classes() -> tuple[AbiClass, ...]:
    """Return all classes, oldest first."""
    return tuple(_table().values())


def declarations(name: str) -> str:
    """Return the C text of class *name*, as `ffi.cdef()` takes it.

    Raises:
        AbiMismatchError: There is no such class.
    """
    if name not in _table():
        raise _unknown(name)
    if name == class_names()[-1]:
        return (_HERE / f"{name}.h").read_text(encoding="utf-8")
    import tarfile

    with tarfile.open(_HERE / "classes.tar.xz") as archive:
        member = archive.extractfile(f"{name}.h")
        assert member is not None
        return member.read().decode()


@lru_cache(maxsize=1)
def _table() -> dict[str, AbiClass]:
    """Read table.json: each class is stored as what it adds to and drops from the one before."""
    import json

    rows = json.loads((_HERE / "table.json").read_text(encoding="utf-8"))["classes"]
    table: dict[str, AbiClass] = {}
    functions: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    layouts: dict[str, Layout] = {}
    for row in rows:
        functions = functions.difference(row["-functions"]).union(row["+functions"])
        optional = optional.difference(row["-optional"]).union(row["+optional"])
        layouts = {k: v for k, v in layouts.items() if k not in row["-layouts"]}
        layouts.update((k, _layout(*v)) for k, v in row["+layouts"].items())
        table[row["name"]] = AbiClass(
            row["name"],
            tuple(row["builds"]),
            functions,
            optional,
            MappingProxyType(layouts),
            row["digest"],
        )
    return table


def _layout(size: int, *holes: int) -> Layout:
    """Return the layout of a struct with holes at [start, end, start, end, ...]."""
    written = bytearray(b"\1" * size)
    for start, end in zip(holes[::2], holes[1::2], strict=True):
        written[start:end] = bytes(end - start)
    return Layout(size, bytes(written))


def _unknown(name: str) -> Exception:
    from ..errors import AbiMismatchError

    known = ", ".join(class_names())
    return AbiMismatchError(f"no ABI class {name!r}; the known ones are {known}")


def __getattr__(name: str) -> Any:
    # The newest class is data; reading it at import would cost every import of the package.
    if name == "NEWEST":
        return class_names()[-1]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
