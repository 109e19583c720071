"""Locate, check, load, identify and bind one build of llama.cpp for this process.

`get_library()` does it once. A second, different build is refused, because two builds share the
soname of libggml-base and would mix silently. Everything here may be called from any thread; C's
own registries are filled once, under a lock.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import cdefs
from ...errors import AbiMismatchError, LibraryLoadError, ValidationError
from ...html_repr import shown_by
from ...validation import not_picklable, warn_caller
from ...variables import unknown_variables
from ..native_object import EXITING, FORKED, abandon, close_all
from ..tuned import is_on, kept
from . import abi, probe
from .declarations import load_ffi
from .logs import LogBridge
from .mtmd import mtmd_beside, why_unusable
from .process_maps import is_mapped, mapped_names, refuse_other_build

if TYPE_CHECKING:
    from ...gguf.header_check import GgufSummary
    from ...libs_fetch import InstalledBuild
    from ..ffi_types import FFI, CLibrary

__all__ = ["Device", "Library", "get_library", "library_for", "use_process"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """One compute device that a backend offers.

    Attributes:
        name: Name in llama.cpp, such as `CPU`, `CUDA0` or `Vulkan0`.
        description: Name of the hardware.
        type: `cpu`, `gpu`, `igpu`, `accel` or `meta`.
        memory_free_bytes: Free memory as reported by the backend now.
        memory_total_bytes: Total memory as reported by the backend.
    """

    name: str
    description: str
    type: str
    memory_free_bytes: int
    memory_total_bytes: int


class Library:
    """A loaded, identified and bound build of llama.cpp.

    `get_library` returns it.

    Attributes:
        ffi: The cffi `FFI` with this build's declarations, for the raw C API.
        lib: The raw C API: `library.lib.llama_time_us()`.
        build: Where the library came from.
        abi: The ABI class with its evidence, printable.
        logs: Receives C's log.
        backend_notes: Warnings logged while the backends were loaded.
        cpu_variant: The CPU variant that was loaded, such as `zen4`; empty if the build has none,
            or the system does not tell.
        no_multimodal: Why pictures and sounds do not work with this build; empty if they do.
    """

    def __init__(
        self,
        ffi: FFI,
        lib: CLibrary,
        build: InstalledBuild,
        identity: abi.AbiIdentity,
        logs: LogBridge,
        backend_notes: tuple[str, ...],
        cpu_variant: str,
        no_multimodal: str,
    ) -> None:
        assert identity.abi_class is not None
        self.ffi = ffi
        self.lib = lib
        self.build = build
        self.abi = identity
        self.logs = logs
        self.backend_notes = backend_notes
        self.cpu_variant, self.no_multimodal = cpu_variant, no_multimodal
        self._numa = "disabled"
        # C writes it into a static string: it is asked for once.
        self._system_info = str(ffi.string(lib.llama_print_system_info()).decode())
        self._functions: Set[str] = identity.abi_class.functions & identity.measurement.exports
        if no_multimodal:
            self._functions = {f for f in self._functions if not f.startswith("mtmd_")}

    def has(self, function: str) -> bool:
        """Whether this build has the C function *function*."""
        return function in self._functions

    @property
    def path(self) -> Path:
        """The library file, links resolved."""
        return Path(self.build.library)

    @property
    def devices(self) -> list[Device]:
        """Every device of every loaded backend, with its current memory.

        C: ggml_backend_dev_get_props
        """
        ffi, lib = self.ffi, self.lib
        found = []
        for i in range(lib.ggml_backend_dev_count()):
            # Oversized and zeroed: a newer build may write more than was declared.
            buffer = ffi.new("char[512]")
            props = ffi.cast("struct ggml_backend_dev_props *", buffer)
            lib.ggml_backend_dev_get_props(lib.ggml_backend_dev_get(i), props)
            kind = ffi.string(ffi.cast("enum ggml_backend_dev_type", props.type))
            found.append(
                Device(
                    ffi.string(props.name).decode(),
                    ffi.string(props.description).decode(),
                    kind.removeprefix("GGML_BACKEND_DEVICE_TYPE_").removesuffix("_FULL").lower(),
                    props.memory_free,
                    props.memory_total,
                )
            )
        return found

    def numa_init(self, strategy: str) -> None:
        """Set how this process uses NUMA nodes; call it before loading a model.

        Args:
            strategy: `disabled`, `distribute`, `isolate`, `numactl` or `mirror`.

        Raises:
            ValidationError: The strategy does not exist, or another one is already set.
        C: llama_numa_init
        """
        prefix = "GGML_NUMA_STRATEGY_"
        values = self.ffi.typeof("enum ggml_numa_strategy").relements
        known = {n.removeprefix(prefix).lower(): v for n, v in values.items() if "COUNT" not in n}
        if strategy not in known:
            raise ValidationError(
                f"NUMA strategy {strategy!r} is not one of {', '.join(sorted(known))}"
            )
        with _lock:
            if self._numa not in ("disabled", strategy):
                raise ValidationError(
                    f"NUMA strategy '{self._numa}' is set for the lifetime of this process; "
                    "start another process"
                )
            if self._numa != strategy:  # C prints to stderr if it is called twice
                self.lib.llama_numa_init(known[strategy])
                self._numa = strategy

    @property
    def name(self) -> str:
        """The tag of the build; without one, the name of the file."""
        return self.build.tag or self.path.name

    @property
    def system_info(self) -> str:
        """CPU features used by the loaded backends. C: llama_print_system_info."""
        return self._system_info

    def uses(self, feature: str) -> bool:
        """Whether the loaded CPU backend was compiled for a feature, such as `AVX512`."""
        return re.search(rf"\b{re.escape(feature)} = 1\b", self._system_info) is not None

    __reduce__ = not_picklable("call get_library() in the other process")

    def __repr__(self) -> str:
        return f"<Library {self.name} abi={self.abi.name} ({self.abi.verdict})>"

    _repr_html_ = shown_by("library")


_lock = threading.Lock()
_loaded: Library | None = None
_started = False  # whether loading has started
_SUBINTERPRETER = (
    "llama.cpp cannot be used in a subinterpreter, because callbacks and signals reach only the "
    "main one; use a thread or a process (mod_wsgi: WSGIApplicationGroup %{GLOBAL})"
)


def _in_subinterpreter() -> bool:
    for name in ("_interpreters", "_xxsubinterpreters"):  # the name until Python 3.12
        with contextlib.suppress(ImportError):
            interpreters = importlib.import_module(name)
            return bool(interpreters.get_current() != interpreters.get_main())
    return False


_ended = _SUBINTERPRETER if _in_subinterpreter() else ""  # why llama.cpp cannot be used any more


class _Unusable:
    """Replaces the C functions in a fork of their process, and at exit."""

    def __getattr__(self, name: str) -> Any:
        raise LibraryLoadError(_ended)


def _end(reason: str) -> None:
    global _ended
    _ended = reason
    if _loaded is not None:
        _loaded.lib = _Unusable()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it
    if _started:
        abandon()
        _end(FORKED)


def _at_exit() -> None:
    _end(EXITING)
    close_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
# Now and not when something is loaded: of atexit functions the last one registered runs first.
atexit.register(_at_exit)


def use_process() -> None:
    """Mark that a C library is loaded here: a fork of the process loses its objects.

    Raises:
        LibraryLoadError: The process was forked after one was loaded, the interpreter is exiting,
            or it is a subinterpreter.
    """
    global _started
    if _ended:
        raise LibraryLoadError(_ended)
    _started = True


def get_library(
    spec: str | os.PathLike[str] | None = None, *, backend: str | None = None
) -> Library:
    """Return the llama.cpp of this process, loading it on the first call.

    Args:
        spec: A build (`npm:3.22.1`, `github:b11549`, `latest`) or a library file or folder.
            None: the loaded build if there is one, else `LLAMA_CFFI_LIB`, `LLAMA_CFFI_BUILD`, the
            choice of `llama-cffi libs use`, and the default build, in this order.
        backend: `auto`, `cpu`, `cuda`, `vulkan`, `metal`; None: `LLAMA_CFFI_BACKEND`, else auto.

    Raises:
        LibraryNotFoundError: There is no library at the given path.
        LibraryLoadError: It cannot be loaded here, another build is already loaded, the process
            was forked after it was loaded, the interpreter is exiting, or it is a subinterpreter.
        FetchError: The build could not be fetched.
        AbiMismatchError: No declarations are proven to fit it.
    """
    return _get(None if spec is None else os.fspath(spec), backend, None)


def library_for(gguf: GgufSummary) -> Library:
    """Return the llama.cpp of this process, as `get_library` does, for a model.

    The first call loads it with the CPU variant that `tune` has found the fastest for the model.

    Args:
        gguf: The header of the model.
    """

    def choose(build: InstalledBuild) -> str:
        return (kept(build, gguf, offloads=False).cpu_variant or "") if is_on() else ""

    return _get(None, None, choose)


def _get(
    spec: str | None, backend: str | None, choose: Callable[[InstalledBuild], str] | None
) -> Library:
    """Return the loaded build, or load it with the CPU variant that *choose* names, if any."""
    global _loaded
    if _ended:
        raise LibraryLoadError(_ended)
    with _lock:
        if _loaded is not None and spec is None:
            return _loaded
        fetcher = _libs_fetch()
        build = fetcher.ensure(spec, backend=backend)
        if _loaded is None:
            for message in unknown_variables().values():
                warn_caller(message)
            exports = _exports(build, fetcher.exported_symbols)
            wanted = os.environ.get(_VARIANT, "").strip(), _VARIANT
            if choose is not None and not wanted[0]:
                wanted = choose(build), "the CPU variant kept by tune"
            _loaded = _load(build, exports, fetcher.cache_dir(), wanted)
        elif build.library != _loaded.path:
            raise LibraryLoadError(
                f"this process already runs {_loaded.path}; a second build ({build.library}) would "
                "mix with it. Start another Python process for it."
            )
        return _loaded


def _libs_fetch() -> Any:
    """Import the fetcher, only once a library is needed."""
    from ... import libs_fetch

    return libs_fetch


# libggml and libggml-base with any version in the name, but not the plugins of backends.
_GGML = re.compile(r"(lib)?ggml(-base)?(\.[^-]*)?\.(so|dylib|dll)[.\d]*")


def _ggml_beside(build: InstalledBuild) -> list[Path]:
    return sorted(
        {p.resolve() for p in build.folder.iterdir() if _GGML.fullmatch(p.name) and p.is_file()}
    )


def _exports(build: InstalledBuild, read: Callable[[Path], frozenset[str]]) -> frozenset[str]:
    """Read the names that libllama, and ggml and libmtmd beside it, export, from the files."""
    mtmd = mtmd_beside(build)
    files = [build.library, *_ggml_beside(build), *([] if mtmd is None else [mtmd])]
    return frozenset().union(*map(read, files))


def _load(
    build: InstalledBuild, exports: frozenset[str], cache: Path, wanted: tuple[str, str]
) -> Library:
    _require(build, "llama_", exports)
    refuse_other_build(build.library)
    use_process()
    _preload_cuda_runtime(build)
    compiled = cache / "declarations"
    bootstrap = probe.BOOTSTRAP
    boot_ffi = load_ffi("bootstrap", _digest(bootstrap.encode()), lambda: bootstrap, compiled)
    boot = _dlopen(boot_ffi, build)
    # After the linker, which names a ggml library that is missing.
    _require(build, "ggml_", exports)
    logs = _redirect_logs(boot_ffi, boot, exports)
    # libllama does not load its CPU backend by itself, and some builds crash without it.
    variant = ""
    if "ggml_backend_load_all_from_path" in exports:
        variant = _load_backends(boot_ffi, boot, build, *wanted)
    identity = _identify(build, exports, boot_ffi, boot, compiled)
    assert identity.abi_class is not None
    ffi = _bind(identity.abi_class, compiled)
    if difference := probe.check_operations(ffi, boot_ffi, boot, is_mapped):
        raise AbiMismatchError(
            f"{abi.unknown_message(identity.measurement, identity.matches)} ({difference})"
        )
    lib = _dlopen(ffi, build)
    # cffi 2.1 aborts if a function is looked up before a struct that has pointers to its type.
    _ = ffi.typeof("struct llama_sampler").fields
    with logs.capture() as notes:
        logs.set_levels(ffi.typeof("enum ggml_log_level").relements)
    lib.llama_backend_init()
    logs.raise_interrupt()
    written = probe.probe_mtmd_params(boot_ffi, boot, exports)
    reason = why_unusable(identity, written, cdefs.all_classes())
    return Library(ffi, lib, build, identity, logs, tuple(notes), variant, reason)


_VARIANT = "LLAMA_CFFI_CPU_VARIANT"
_BACKEND = re.compile(r"(?:lib)?ggml-(?!base\.).+\.(?:so|dll)")


def _load_backends(ffi: Any, boot: Any, build: InstalledBuild, wanted: str, by: str) -> str:
    """Load every backend; of the CPU's variants the wanted one, else the best. Return its name.

    Of several names, separated by commas, the first that the build has counts. *by* is who wants
    it, for messages.

    Raises:
        LibraryLoadError: The build lacks these variants, or the one does not run on this CPU.
    """
    folder, variants = build.folder, build.cpu_variants
    if not (wanted and variants):  # some builds have one CPU backend for all
        boot.ggml_backend_load_all_from_path(os.fsencode(folder))
        names = mapped_names(folder)
        return next((name for name, path in variants.items() if path.name in names), "")
    others = f"Choose another or unset it; this build has {', '.join(variants)}."
    if by != _VARIANT:
        others = "LLAMA_CFFI_TUNED=0 switches it off; run `llama-cffi tune` again."
    name = next((n for n in map(str.strip, wanted.split(",")) if n in variants), None)
    if name is None:
        raise LibraryLoadError(f"{by}={wanted!r} is not a CPU variant of this build. {others}")
    # The CPU last, as ggml does.
    for path in sorted(folder.iterdir()):
        if _BACKEND.fullmatch(path.name) and path not in variants.values():
            boot.ggml_backend_load(os.fsencode(path))
    if boot.ggml_backend_load(os.fsencode(variants[name])) == ffi.NULL:
        raise LibraryLoadError(f"{by}={name!r} does not run on this CPU. {others}")
    return name


def _require(build: InstalledBuild, prefix: str, exports: frozenset[str]) -> None:
    """Refuse a library without the functions that measuring needs."""
    missing = sorted(n for n in probe.REQUIRED - exports if n.startswith(prefix))
    if missing:
        raise AbiMismatchError(
            f"{build.library} is not a llama.cpp library of b3889 or later: it does not export "
            f"{', '.join(missing)}. Name a libllama, or unset LLAMA_CFFI_LIB."
        )


def _preload_cuda_runtime(build: InstalledBuild) -> None:
    """Load the CUDA runtime that the build's CUDA backend needs, also from NVIDIA's wheels.

    The dynamic linker does not search wheels, but uses what is already loaded under that name.
    """
    fetcher = _libs_fetch()
    for major in fetcher.cuda_majors(build.folder):
        import ctypes

        for path in fetcher.cuda_runtime(major, build.folder)[0]:
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError as e:
                _log.warning("cannot preload %s: %s", path, e)


def _redirect_logs(ffi: Any, boot: Any, exports: frozenset[str]) -> LogBridge:
    """Send C's log to `logging` until the interpreter exits."""
    logs = LogBridge(ffi)
    _kept.append(logs)  # C keeps the pointer even if loading fails later
    # At exit C must not call Python any more. ggml_op_name, called as a log callback, ignores the
    # line and prints nothing.
    silence = ffi.cast("void (*)(int, const char *, void *)", boot.ggml_op_name)
    for name in ("llama_log_set", "ggml_log_set", "mtmd_log_set", "mtmd_helper_log_set"):
        if name in exports and (set_callback := getattr(boot, name, None)) is not None:
            set_callback(logs.callback, ffi.NULL)
            atexit.register(set_callback, silence, ffi.NULL)
    return logs


# Library handles and callbacks that are kept for the lifetime of the process.
_kept: list[Any] = []


class _JoinedLibraries:
    """One namespace over several library handles.

    On Windows a handle finds only its own exports, so ggml's functions need ggml's handles;
    elsewhere the handle of libllama finds them too. It never finds those of libmtmd.
    """

    def __init__(self, handles: list[Any], missing: type[Exception]) -> None:
        self._handles, self._missing = handles, missing

    def __getattr__(self, name: str) -> Any:
        for handle in self._handles:
            with contextlib.suppress(AttributeError, self._missing):
                value = getattr(handle, name)
                setattr(self, name, value)
                return value
        raise AttributeError(f"no {name} in this build")


def _dlopen(ffi: Any, build: InstalledBuild) -> Any:
    """Open the library files, locally, with the declarations of *ffi*.

    Raises:
        LibraryLoadError: The loader's own reason, and where to look.
    """
    library, mtmd = _dlopen_llama(ffi, build), mtmd_beside(build)
    if mtmd is None:
        return library
    try:
        handle = ffi.dlopen(str(mtmd), ffi.RTLD_NOW | ffi.RTLD_LOCAL)
    except OSError as e:
        _log.warning("pictures and sounds do not work: cannot load %s: %s", mtmd, e)
        return library
    return _JoinedLibraries([library, handle], ffi.error)


def _dlopen_llama(ffi: Any, build: InstalledBuild) -> Any:
    now, lazy = ffi.RTLD_NOW | ffi.RTLD_LOCAL, ffi.RTLD_LAZY | ffi.RTLD_LOCAL
    path = str(build.library)
    if sys.platform == "win32":
        os.add_dll_directory(str(build.folder))
        ggml = [ffi.dlopen(str(p)) for p in _ggml_beside(build)]
        return _JoinedLibraries([ffi.dlopen(path), *ggml], ffi.error)
    try:
        return ffi.dlopen(path, now)
    except OSError as e:
        first = str(e)
    # Builds up to b3995 have no RUNPATH, so their ggml must be loaded first.
    for sibling in _ggml_beside(build):
        with contextlib.suppress(OSError):
            _kept.append(ffi.dlopen(str(sibling), now))
    # A Python extension module (another binding's wheel) may lack symbols that are never called.
    for flags in (now, lazy):
        try:
            return ffi.dlopen(path, flags)
        except OSError as e:
            last = str(e)
    raise LibraryLoadError(
        f"cannot load {path}: {first}"
        + (f"; then {last}" if last != first else "")
        + ". Run `llama-cffi doctor` for what is missing."
    )


def _identify(
    build: InstalledBuild, exports: frozenset[str], ffi: Any, boot: Any, cache: Path
) -> abi.AbiIdentity:
    written = probe.probe_params(ffi, boot, exports)
    props = probe.probe_device_props(ffi, boot)
    if props is None:
        raise LibraryLoadError(
            f"{build.folder} has no backend that runs on this machine (not even the CPU one: "
            "libggml-cpu-*). Fetch the build again: llama-cffi libs fetch, or name another."
        )
    written["ggml_backend_dev_props"] = props
    monolithic = not _ggml_beside(build)
    sizes = {"ggml_tensor": probe.tensor_bytes(boot)}
    measured = abi.Measurement(exports, written, build.tag, monolithic, sizes)
    forced = os.environ.get("LLAMA_CFFI_ABI") or None
    if forced == "user":
        return abi.identify_user(measured, _generate(build, cache))
    return abi.identify(measured, cdefs.all_classes(), forced=forced)


_generated: dict[str, str] = {}  # class name -> declarations generated on this machine


def _generate(build: InstalledBuild, cache: Path) -> cdefs.AbiClass:
    """Generate declarations from the build's own headers."""
    from .user_abi import generate_class

    if not (build.tag or os.environ.get("LLAMA_CFFI_HEADERS")):
        raise AbiMismatchError(
            f"the tag of {build.library} is unknown, so its headers cannot be fetched; "
            "set LLAMA_CFFI_HEADERS to their folder"
        )
    name = f"user-{build.tag or 'headers'}"
    abi_class, _generated[name] = generate_class(_libs_fetch().headers(build), name, cache)
    return abi_class


def _bind(abi_class: cdefs.AbiClass, cache: Path) -> Any:
    """Return the `FFI` of a class, generated on this machine or from the package."""
    name = abi_class.name
    return load_ffi(
        name, abi_class.digest, lambda: _generated.get(name) or cdefs.declarations(name), cache
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
