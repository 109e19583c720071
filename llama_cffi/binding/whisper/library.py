"""Find, check, load, identify and bind one build of whisper.cpp for this process.

The rules are those of `binding/loading/`: the exports are read from the file, the functions for
default parameters are measured, both are compared with every known class, and only then the
declarations of that class are bound.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.metadata
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ... import cdefs
from ...errors import AbiMismatchError, LibraryLoadError, LibraryNotFoundError
from ...libs_fetch import cache_dir, elf, exported_symbols
from ...validation import as_path, not_picklable
from ..ffi_types import FFI, CLibrary
from ..loading import abi, probe
from ..loading.declarations import load_ffi
from ..loading.library import use_process
from ..loading.logs import LogBridge
from ..loading.process_maps import mapped_files

__all__ = ["WhisperLibrary", "find_library", "get_whisper_library"]

_VARIABLE = "LLAMA_CFFI_WHISPER_LIB"
# Packages on PyPI with a libwhisper; none of their Python code is used.
_PACKAGES = ("pywhispercpp",)
_NAME = re.compile(r"(?:lib)?whisper[-.\w]*?\.(?:so|dylib|dll)(?:\.[\d.]+)?")
_VERSION = re.compile(r"\.so\.(\d+\.\d+\.\d+)$")
_BOOTSTRAP = """
typedef struct { unsigned char bytes[512]; } probe_t;
void whisper_context_default_params(void);
void whisper_full_default_params(int strategy);
const char *whisper_version(void);
int whisper_lang_max_id(void);
void whisper_log_set(void (*callback)(int, const char *, void *), void *user_data);
void ggml_log_set(void (*callback)(int, const char *, void *), void *user_data);
void ggml_backend_load_all_from_path(const char *folder);
size_t ggml_backend_dev_count(void);
"""
# Needed for measuring; every build since v1.6.0 exports them.
_REQUIRED = {
    "whisper_context_default_params",
    "whisper_full_default_params",
    "whisper_lang_max_id",
    "whisper_log_set",
}
# Struct -> the function that returns it, and its arguments.
_PROBED: dict[str, tuple[str, tuple[int, ...]]] = {
    "whisper_context_params": ("whisper_context_default_params", ()),
    "whisper_full_params": ("whisper_full_default_params", (0,)),
}


class WhisperLibrary:
    """A loaded, identified and bound build of whisper.cpp.

    `get_whisper_library` returns it.

    Attributes:
        ffi: The cffi `FFI` with this build's declarations, for the raw C API.
        lib: The raw C API: `library.lib.whisper_lang_max_id()`.
        path: The library file, links resolved.
        abi: The ABI class with its evidence, printable.
        logs: Receives C's log.
        languages: Codes of the languages in the order of their tokens: `("en", "zh", …)`.
    """

    def __init__(
        self, ffi: FFI, lib: CLibrary, path: Path, identity: abi.AbiIdentity, logs: LogBridge
    ) -> None:
        self.ffi = ffi
        self.lib = lib
        self.path = path
        self.abi = identity
        self.logs = logs
        self.languages = tuple(
            ffi.string(lib.whisper_lang_str(i)).decode()
            for i in range(lib.whisper_lang_max_id() + 1)
        )

    @property
    def name(self) -> str:
        """The version of the build, such as `v1.8.5`; without one, the name of the file."""
        return self.abi.measurement.tag or self.path.name

    __reduce__ = not_picklable("call get_whisper_library() in the other process")

    def __repr__(self) -> str:
        return f"<WhisperLibrary {self.name} abi={self.abi.name} ({self.abi.verdict})>"


_lock = threading.Lock()
_loaded: WhisperLibrary | None = None
_kept: list[Any] = []  # what C or the linker needs for the lifetime of the process


def get_whisper_library(path: str | os.PathLike[str] | None = None) -> WhisperLibrary:
    """Return the whisper.cpp of this process, loading it on the first call.

    Args:
        path: A library file. None: the loaded one if there is one, else what `find_library` finds.

    Raises:
        LibraryNotFoundError: There is no library.
        LibraryLoadError: It cannot be loaded here or beside what is loaded, another one is
            loaded already, or the process was forked, is exiting, or is a subinterpreter.
        AbiMismatchError: No declarations are proven to fit it.
    """
    global _loaded
    use_process()
    with _lock:
        if _loaded is not None and path is None:
            return _loaded
        found = find_library(path)
        if _loaded is None:
            _loaded = _load(found)
        elif found != _loaded.path:
            raise LibraryLoadError(
                f"this process already runs {_loaded.path}; {found} would mix with it. Start "
                "another Python process for it."
            )
        return _loaded


def find_library(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the libwhisper to load, links resolved.

    Args:
        path: The file. None: LLAMA_CFFI_WHISPER_LIB, else the one of an installed package.

    Raises:
        LibraryNotFoundError: There is none.
    """
    given = path if path is not None else os.environ.get(_VARIABLE) or None
    if given is not None:
        file = as_path("library", given)
        if not file.is_file():
            origin = "library=" if path is not None else _VARIABLE
            raise LibraryNotFoundError(
                f"{file} ({origin}) is not a file; give the libwhisper itself, such as "
                "libwhisper.so.1"
            )
        return file.resolve()
    for package in _PACKAGES:
        files = [file for file in _files_of(package) if _NAME.fullmatch(file.name)]
        # The copy beside the libraries that it needs, which auditwheel and its kin have made.
        files.sort(key=lambda file: (".libs" not in str(file) and ".dylibs" not in str(file), file))
        if files:
            return files[0].resolve()
    raise LibraryNotFoundError(
        "there is no libwhisper: install pywhispercpp, whose wheel has one (pip install "
        f"'llama-cffi[whisper]'), or give library=PATH or {_VARIABLE}=PATH"
    )


def _files_of(package: str) -> list[Path]:
    try:
        listed = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [path for file in listed if (path := Path(str(file.locate()))).is_file()]


def _load(path: Path) -> WhisperLibrary:
    exports = frozenset(n for n in exported_symbols(path) if n.startswith("whisper_"))
    if missing := sorted(_REQUIRED - exports):
        raise AbiMismatchError(
            f"{path} is not a whisper.cpp library of v1.6.0 or later: it does not export "
            f"{', '.join(missing)}. Name a libwhisper, or unset {_VARIABLE}."
        )
    _refuse_shared_names(path)
    compiled = cache_dir() / "declarations"
    boot_ffi = load_ffi("whisper-bootstrap", _digest(_BOOTSTRAP), lambda: _BOOTSTRAP, compiled)
    boot = _dlopen(boot_ffi, path)
    logs = _redirect_logs(boot_ffi, boot)
    _check_devices(boot_ffi, boot, path)
    written = {
        struct: probe.written_by(boot_ffi, getattr(boot, function), *numbers)
        for struct, (function, numbers) in _PROBED.items()
    }
    measured = abi.Measurement(exports, written, _tag(boot_ffi, boot, exports, path))
    identity = abi.identify(measured, cdefs.WHISPER.classes(), project=abi.WHISPER)
    abi_class = identity.abi_class
    assert abi_class is not None
    ffi = load_ffi(
        f"whisper-{abi_class.name}",
        abi_class.digest,
        lambda: cdefs.WHISPER.declarations(abi_class.name),
        compiled,
    )
    logs.set_levels(ffi.typeof("enum ggml_log_level").relements)
    lib = _dlopen(ffi, path)
    _check_defaults(ffi, lib, path)
    return WhisperLibrary(ffi, lib, path, identity, logs)


def _refuse_shared_names(path: Path) -> None:
    """Refuse a library whose ggml has the name of another that is loaded: they would mix.

    Raises:
        LibraryLoadError: With both paths.
    """
    if not _is_elf():
        return
    wanted, folder = set(_names_needed(path)), path.parent
    for file in mapped_files():
        if "ggml" not in file.name or file.parent == folder:
            continue
        try:
            with elf.open_elf(file) as loaded:
                shared = {loaded.soname(), file.name} & wanted
        except LibraryLoadError:  # deleted since, or no library
            continue
        if shared:
            raise LibraryLoadError(
                f"{path} needs {shared.pop()}, and {file} of that name is already loaded in this "
                "process: they would mix silently. Use one of them per process."
            )


def _names_needed(path: Path) -> Iterator[str]:
    """Yield the names of the libraries that *path* and those beside it need."""
    pending, seen = [path], {path.name}
    while pending:
        for name in elf.needed(pending.pop()):
            yield name
            beside = path.parent / name
            if name not in seen and beside.is_file():
                seen.add(name)
                pending.append(beside)


def _dlopen(ffi: Any, path: Path) -> Any:
    """Open the library file, locally, with the declarations of *ffi*.

    Raises:
        LibraryLoadError: The loader's own reason.
    """
    if sys.platform == "win32":
        _kept.append(os.add_dll_directory(str(path.parent)))
    now, lazy = ffi.RTLD_NOW | ffi.RTLD_LOCAL, ffi.RTLD_LAZY | ffi.RTLD_LOCAL
    try:
        return ffi.dlopen(str(path), now)
    except OSError as e:
        reasons = [str(e)]
    # Some builds have no RUNPATH, so what they need from their folder must be loaded first.
    beside = [path.parent / name for name in _names_needed(path)] if _is_elf() else []
    for file in reversed(beside):
        if file.is_file():
            try:
                _kept.append(ffi.dlopen(str(file), now))
            except OSError as e:
                reasons.append(str(e))
    # A module of Node.js or Python may lack symbols that are never called.
    for flags in (now, lazy):
        try:
            return ffi.dlopen(str(path), flags)
        except OSError as e:
            reasons.append(str(e))
    raise LibraryLoadError(
        f"cannot load {path}: {'; '.join(dict.fromkeys(reasons))}. It may be built for another "
        "system, or lack a library; `ldd` tells which."
    )


def _is_elf() -> bool:
    return sys.platform == "linux"


def _redirect_logs(ffi: Any, boot: Any) -> LogBridge:
    """Send C's log to `logging` until the interpreter exits."""
    logs = LogBridge(ffi)
    _kept.append(logs)  # C keeps the pointer even if loading fails later
    # At exit C must not call Python any more. This function ignores the line and prints nothing.
    silence = ffi.cast("void (*)(int, const char *, void *)", boot.whisper_lang_max_id)
    for name in ("whisper_log_set", "ggml_log_set"):
        with contextlib.suppress(AttributeError, ffi.error):  # not every build exports ggml's
            set_callback = getattr(boot, name)
            set_callback(logs.callback, ffi.NULL)
            atexit.register(set_callback, silence, ffi.NULL)
    return logs


def _check_devices(ffi: Any, boot: Any, path: Path) -> None:
    """Load the backends of a build that has them as plugins, as whisper.cpp asserts one.

    Raises:
        LibraryLoadError: No backend runs on this machine.
    """
    with contextlib.suppress(AttributeError, ffi.error):
        if not boot.ggml_backend_dev_count():
            boot.ggml_backend_load_all_from_path(os.fsencode(path.parent))
        if not boot.ggml_backend_dev_count():
            raise LibraryLoadError(
                f"{path.parent} has no backend that runs on this machine, not even for the CPU "
                "(libggml-cpu); use another build"
            )


def _check_defaults(ffi: Any, lib: Any, path: Path) -> None:
    """Refuse a build whose default parameters make no sense in the chosen declarations.

    Sizes do not show where a field of one byte lies among padding; a value of 0 or 1 in every
    bool, and NULL in every callback, does.

    Raises:
        AbiMismatchError: With the first such field.
    """
    params = ffi.new("struct whisper_full_params *", lib.whisper_full_default_params(0))
    raw = bytes(ffi.buffer(params))
    for name, field in ffi.typeof("struct whisper_full_params").fields:
        value = raw[field.offset : field.offset + ffi.sizeof(field.type)]
        is_callback = field.type.kind == "pointer" and field.type.item.kind == "function"
        if (field.type.cname in ("bool", "_Bool") and value > b"\1") or (
            is_callback and any(value)
        ):
            raise AbiMismatchError(
                f"{path} is not what its measurements suggest: whisper_full_params.{name} is "
                f"{value.hex()} by default. Nothing else was called; use another build."
            )


def _tag(ffi: Any, boot: Any, exports: frozenset[str], path: Path) -> str | None:
    """Return the version that the library or its file name tells, as upstream's tag."""
    if "whisper_version" in exports:
        return f"v{ffi.string(boot.whisper_version()).decode('ascii', 'replace')}"
    match = _VERSION.search(path.name)
    return f"v{match[1]}" if match else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
