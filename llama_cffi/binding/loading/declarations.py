"""From C declarations to a cffi `FFI`, compiled once and kept in the cache.

Parsing the declarations of a class in line takes about 250 ms; compiled to an out-of-line ABI
module, a Python file, they are imported in under 10 ms. The cache is optional: if it cannot be
written, or other users can write into it, the declarations are parsed in line, which is slower.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _cffi_backend

__all__ = ["load_ffi"]

_log = logging.getLogger(__name__)


def load_ffi(name: str, digest: str, text: Callable[[], str], cache: Path) -> Any:
    """Return an `FFI` for C declarations.

    Args:
        name: A short name for the file in the cache, such as the ABI class.
        digest: A digest of the declarations.
        text: Returns the text for `ffi.cdef()`; called only if the module is not in the cache.
        cache: Folder for compiled modules, owned by this user.
    """
    version = _identifier(_cffi_backend.__version__)
    path = cache / f"{_identifier(name)}_{digest}_cffi{version}.py"
    try:
        if not path.exists():
            _compile(text(), path)
        _refuse_writable_by_others(path.parent)
        return _import(path)
    except OSError as e:
        _log.debug("no compiled declarations in %s (%s); parsing them in line", cache, e)
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(text())
    return ffi


def _compile(text: str, path: Path) -> None:
    """Write the out-of-line module to a temporary file and move it to *path*."""
    import cffi
    from cffi import recompiler

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ffi = cffi.FFI()
    ffi.cdef(text)
    descriptor, temporary = tempfile.mkstemp(suffix=".py", dir=path.parent)
    os.close(descriptor)
    try:
        # FFI.emit_python_code() calls this too, and prints a line.
        recompiler.make_py_source(ffi, path.stem, temporary, verbose=False)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _refuse_writable_by_others(folder: Path) -> None:
    """Refuse to run code from a folder that another user may have written."""
    if os.name == "posix":
        status = folder.stat()
        if status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
            raise PermissionError(f"other users may write into {folder}")


def _import(path: Path) -> Any:
    name = f"llama_cffi.binding._compiled.{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name].ffi


def _identifier(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text)
