"""The number of threads to use, and the persistent ggml thread pool of a context.

The prebuilt libraries are built without OpenMP: unless a pool is attached, ggml starts new
threads for every graph, and small models decode up to twenty times slower.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import LlamaError
from ...validation import check_int
from ..loading.library import Library
from ..native_object import NativeObject

__all__ = ["MAX_THREADS", "ThreadPool", "physical_cores", "thread_count", "usable_cpus"]

MAX_THREADS = 512  # GGML_MAX_N_THREADS, the entries of the pool's CPU mask


def usable_cpus() -> set[int]:
    """Return the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Return the number of physical cores among `usable_cpus`; hyper-threads slow ggml down."""
    siblings = set()
    for cpu in usable_cpus():
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text().strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))


def thread_count(name: str, wanted: int) -> int:
    """Return the number of threads to run: *wanted*, or the physical cores for 0.

    Never more than `usable_cpus`: ggml's threads wait for each other by spinning, and 512 of them
    on two processors take minutes for one token.

    Args:
        name: Name of the argument, for the error message.
        wanted: The number that was asked for.

    Raises:
        ValidationError: It is negative or not an integer.
    """
    return min(check_int(name, wanted, 0) or physical_cores(), len(usable_cpus()), MAX_THREADS)


class ThreadPool(NativeObject):
    """A persistent ggml thread pool, attached to one context.

    Raises:
        ValidationError: n_threads is not 1 to 512.
        LlamaError: The threads could not be started.
    C: ggml_threadpool_new, looked up through the registry if the CPU backend is a plugin.
    """

    def __init__(self, library: Library, n_threads: int) -> None:
        n_threads = check_int("n_threads", n_threads, 1, MAX_THREADS)
        ffi, lib = library.ffi, library.lib
        params = ffi.new("struct ggml_threadpool_params *")
        lib.ggml_threadpool_params_init(params, n_threads)
        create = _procedure(library, "ggml_threadpool_new", "void *(*)(void *)")
        free = _procedure(library, "ggml_threadpool_free", "void (*)(void *)")
        pool = create(params)
        if not pool:
            raise LlamaError(f"ggml could not start {n_threads} threads")
        super().__init__(ffi.cast("ggml_threadpool_t", pool), free)
        self.n_threads = n_threads


def _procedure(library: Library, name: str, ctype: str) -> Any:
    """Return a C function of the CPU backend, which may be a module that was loaded later."""
    ffi, lib = library.ffi, library.lib
    if library.has("ggml_backend_reg_count"):
        for i in range(lib.ggml_backend_reg_count()):
            found = lib.ggml_backend_reg_get_proc_address(
                lib.ggml_backend_reg_get(i), name.encode()
            )
            if found:
                return ffi.cast(ctype, found)
    return ffi.cast(ctype, ffi.addressof(lib, name))
