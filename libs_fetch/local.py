"""Builds that are given by path: a library file or a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import LibraryNotFoundError
from . import store
from .specs import is_plain_name
from .store import (
    RECEIPT,
    InstalledBuild,
    cache_dir,
    find_library,
    is_libllama,
    load,
    packaged_tag,
)

__all__ = ["build_at"]

_TAG = re.compile(r"\.(b\d+|v\d+\.\d+\.\d+)\.(?:so|dylib|dll)")
_BACKENDS = ("cuda", "hip", "rocm", "sycl", "vulkan", "metal", "opencl", "cann", "musa")


def build_at(path: str, origin: str) -> InstalledBuild:
    """Describe the build at *path*, a library file of any name or a folder that holds libllama.

    Args:
        path: The file or folder.
        origin: Where the path comes from (an argument, a variable, …), for messages.

    Raises:
        LibraryNotFoundError: There is no library at *path*.
    """
    try:
        return _build_at(Path(os.path.expanduser(path)), origin)
    except LibraryNotFoundError:
        raise
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise LibraryNotFoundError(
            f"{path[:200]} cannot be read ({origin}): {reason}. Give the libllama file or the "
            "folder it is in."
        ) from e


def _build_at(given: Path, origin: str) -> InstalledBuild:
    if given.is_file():
        library: Path | None = Path(os.path.realpath(given))
    elif given.is_dir():
        library = find_library(given)
    else:
        problem = "is not a file or folder" if given.exists() else "does not exist"
        raise LibraryNotFoundError(
            f"{given} {problem} ({origin}). Give the libllama file or the folder it is in."
        )
    if library is None:
        names = sorted(os.listdir(given))
        near = [n for n in names if n.endswith((".so", ".dylib", ".dll")) or ".so." in n]
        limit = f" among the first {store.MAX_SEARCHED:,} files and folders that were searched"
        raise LibraryNotFoundError(
            f"{given} ({origin}) holds no libllama.so, libllama.dylib or llama.dll"
            f"{limit if store.is_huge(given) else ''}; it holds "
            f"{', '.join((near or names)[:8]) or 'nothing'}. If one of these exports the llama_ "
            "functions, give that file by name."
        )
    return _stored_build(library) or InstalledBuild(
        source="path",
        version="",
        variant=variant_of(library.parent),
        tag=tag_of(library.parent),
        library=library,
        folder=library.parent,
        backend_reason=f"{origin} names this library",
        receipt=None,
    )


def _stored_build(library: Path) -> InstalledBuild | None:
    """Return the build of a library inside the store, so that tag and receipt are not lost."""
    root = Path(os.path.realpath(cache_dir() / "builds"))
    for folder in library.parents:
        if folder.parent.parent.parent == root and (folder / RECEIPT).is_file():
            source, version, variant = folder.parts[-3:]
            if all(map(is_plain_name, (source, version, variant))):
                return load(source, version, variant, "given by path")
    return None


def variant_of(folder: Path) -> str:
    """Return the name of the first GPU backend with a library in *folder*; `cpu` if none has."""
    names = os.listdir(folder)
    for backend in _BACKENDS:
        stem = f"ggml-{backend}"
        if any(name.removeprefix("lib").startswith(stem) for name in names):
            return backend
    return "cpu"


def tag_of(folder: Path) -> str | None:
    """Read the llama.cpp tag from an npm package's metadata, or from a library's file name."""
    if tag := packaged_tag(folder):
        return tag
    for name in os.listdir(folder):
        if is_libllama(name) and (match := _TAG.search(name)):
            return match[1]
    return None
