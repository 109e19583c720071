"""CUDA's runtime from NVIDIA's PyPI wheels, loaded by path before the CUDA backend asks for it."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..libs_fetch import InstalledBuild

__all__ = ["preload", "runtime_libraries"]

_log = logging.getLogger(__name__)

# In the order in which they need each other.
_NAMES = ("libcudart.so.*", "libcublasLt.so.*", "libcublas.so.*")


def runtime_libraries() -> list[Path]:
    """Find the CUDA runtime libraries inside installed `nvidia-*` wheels, in load order."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return [
        path
        for name in _NAMES
        for folder in folders
        for path in sorted(Path(folder).glob(f"*/lib/{name}"))
    ]


def preload(build: InstalledBuild) -> None:
    """Load the wheels' CUDA runtime when *build* has a CUDA backend (else do nothing)."""
    if not any(build.folder.glob("libggml-cuda*.so")):
        return
    for path in runtime_libraries():
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as e:
            _log.warning("cannot preload %s: %s", path, e)
