"""From C declarations to a cffi `FFI`, compiled once and kept in the cache.

Parsing the declarations of a class takes about 250 ms. The result is an out-of-line ABI module,
Python code that loads in under 1 ms, and is kept in the cache. Where the cache cannot be used, the
same module is made in memory, at every start.
"""

from __future__ import annotations

import importlib.util
import io
import marshal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _cffi_backend

from . import cache_files

__all__ = ["load_ffi"]

_loaded: dict[Path, Any] = {}


def load_ffi(name: str, digest: str, text: Callable[[], str], cache: Path) -> Any:
    """Return an `FFI` for C declarations.

    Args:
        name: A short name for the file in the cache, such as the ABI class.
        digest: A digest of the declarations.
        text: Returns the text for `ffi.cdef()`; called only if the module is not in the cache.
        cache: Folder for compiled modules, owned by this user.
    """
    version = _identifier(_cffi_backend.__version__)
    module = f"{_identifier(name)}_{digest}_cffi{version}"
    python = int.from_bytes(importlib.util.MAGIC_NUMBER[:2], "little")  # the bytecode's version
    path = cache / f"{module}.py{python}"
    if path not in _loaded:
        code = cache_files.read(path)
        if code is None:
            code = marshal.dumps(compile(_source(module, text()), module, "exec"))
            cache_files.write(path, code)
        names: dict[str, Any] = {}
        exec(marshal.loads(code), names)
        _loaded[path] = names["ffi"]
    return _loaded[path]


def _source(module: str, text: str) -> str:
    """Return the source of the out-of-line ABI module for declarations."""
    import cffi
    from cffi import recompiler

    ffi = cffi.FFI()
    ffi.cdef(text)
    source = io.StringIO()
    # FFI.emit_python_code() calls this too, and prints a line.
    recompiler.make_py_source(ffi, module, source, verbose=False)
    return source.getvalue()


def _identifier(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text)
