"""How many threads to use, and the persistent ggml thread pool that a context runs on.

The prebuilt libraries have no OpenMP: without an attached pool ggml starts threads for every
graph, and small models decode up to twenty times slower.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import LlamaError
from ...validation import integer
from ..loading.library import Library
from ..native_object import Handle

__all__ = ["MAX_THREADS", "ThreadPool", "physical_cores", "thread_count", "usable_cpus"]

MAX_THREADS = 512  # GGML_MAX_N_THREADS: the pool's mask of processors has no more entries


def usable_cpus() -> set[int]:
    """The logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Count the physical cores among `usable_cpus`; hyper-threads slow matrix work down."""
    siblings = set()
    for cpu in usable_cpus():
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text().strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))


def thread_count(name: str, wanted: int) -> int:
    """Return how many threads to run: *wanted*, or the physical cores for 0.

    Never more than `usable_cpus`: ggml's threads wait for each other by spinning, and 512 of them
    on two processors take minutes for one token.

    Raises:
        ValidationError: It is negative or no integer; *name* says which argument.
    """
    return min(integer(name, wanted, 0) or physical_cores(), len(usable_cpus()), MAX_THREADS)


class ThreadPool(Handle):
    """A persistent ggml thread pool, attached to one context.

    Raises:
        ValidationError: n_threads is not 1 to 512.
        LlamaError: The threads could not be started.
    C: ggml_threadpool_new, found through the CPU backend's registry where it is a module.
    """

    def __init__(self, library: Library, n_threads: int) -> None:
        n_threads = integer("n_threads", n_threads, 1, MAX_THREADS)
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


def _procedure(library: Library, name: str, kind: str) -> Any:
    ffi, lib = library.ffi, library.lib
    if library.has("ggml_backend_reg_count"):
        for i in range(lib.ggml_backend_reg_count()):
            found = lib.ggml_backend_reg_get_proc_address(
                lib.ggml_backend_reg_get(i), name.encode()
            )
            if found:
                return ffi.cast(kind, found)
    return ffi.cast(kind, ffi.addressof(lib, name))
