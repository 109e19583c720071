"""The memory that a limit leaves to this process: ulimit -v or -d, or a batch system's.

Where C++ gets no memory it throws std::bad_alloc, and where C gets no thread it asserts; both end
the process. So calls that need much are checked first. Without a limit this costs nothing: a
system without memory kills processes instead. Old builds also have a limit of their own.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from typing import TYPE_CHECKING

from ..errors import LlamaError, OutOfMemoryError
from . import compat
from .native_object import ggml_contexts

if TYPE_CHECKING:
    from .loading.library import Library

__all__ = ["bytes_left", "check_bytes", "check_ggml_contexts", "check_threads", "is_limited"]

_MIB = 2**20
_TOTAL, _DATA = 0, 5  # fields of /proc/self/statm, in pages
_SPARE_CONTEXTS = 10  # for one object, and while C loads files and builds graphs


def is_limited() -> bool:
    """Whether the memory of this process is limited."""
    return bool(_limits())


def bytes_left() -> int | None:
    """Return the bytes that this process may still allocate; None without a limit."""
    limits = _limits()
    if not limits:
        return None
    with open("/proc/self/statm", "rb") as file:
        pages = file.read().split()
    size = os.sysconf("SC_PAGE_SIZE")
    return max(0, min(limit - int(pages[field]) * size for field, limit in limits.items()))


def check_bytes(n_bytes: int, what: str) -> None:
    """Refuse a call that needs more memory than is left.

    Args:
        n_bytes: Upper bound of what it allocates.
        what: The call, for the error message.

    Raises:
        OutOfMemoryError: With both numbers.
    """
    left = bytes_left()
    if left is not None and left < n_bytes:
        raise OutOfMemoryError(
            f"{what} takes up to {-(-n_bytes // _MIB)} MiB, and the limit of this process leaves "
            f"{left // _MIB} MiB (ulimit -v, ulimit -d); raise it, or give a smaller input"
        )


def check_threads(n_threads: int) -> None:
    """Start that many threads and end them again, because C asserts that its threads start.

    Raises:
        LlamaError: They do not start.
    """
    end = threading.Event()
    threads = [threading.Thread(target=end.wait, daemon=True) for _ in range(n_threads)]
    started = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as e:
        raise LlamaError(
            f"this process can start {len(started)} of {n_threads} threads ({e}); its limits of "
            "memory, threads or processes are reached: use fewer n_threads, or raise them "
            "(ulimit -v, ulimit -u, pids.max)"
        ) from e
    finally:
        end.set()
        for thread in started:
            thread.join()


def check_ggml_contexts(library: Library, what: str) -> None:
    """Refuse one more object than the build has ggml contexts for: C uses NULL then.

    Raises:
        OutOfMemoryError: With the number in use.
    """
    most = compat.max_ggml_contexts(library)
    if most is None or ggml_contexts() <= most - _SPARE_CONTEXTS:
        return
    gc.collect()  # dropped objects that form cycles
    used = ggml_contexts()
    if used > most - _SPARE_CONTEXTS:
        raise OutOfMemoryError(
            f"{what} takes ggml contexts, and {used} of the {most} that builds before b4234 have "
            "are in use; close models, contexts or adapters that are not needed; "
            + compat.newer_build(library)
        )


def _limits() -> dict[int, int]:
    """Return field of statm -> its limit in bytes. Only Linux enforces and reports both."""
    if sys.platform != "linux":
        return {}
    import resource

    kinds = {_TOTAL: resource.RLIMIT_AS, _DATA: resource.RLIMIT_DATA}
    soft = {field: resource.getrlimit(kind)[0] for field, kind in kinds.items()}
    return {field: limit for field, limit in soft.items() if limit != resource.RLIM_INFINITY}
