"""The persistent ggml thread pool of a context.

The prebuilt libraries are built without OpenMP: unless a pool is attached, ggml starts new
threads for every graph, and small models decode up to twenty times slower. Builds before b4753
do that with several threads, because their pools are not safe (`compat.keeps_threads`).
"""

from __future__ import annotations

from typing import Any

from ...errors import LlamaError
from ...validation import check_int
from ..loading.library import Library
from ..memory_limits import check_threads
from ..native_object import NativeObject
from ..processors import MAX_THREADS

__all__ = ["ThreadPool"]


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
        check_threads(n_threads - 1)  # the caller's is one of them
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
