"""Processors of this machine, and the number of threads to use."""

from __future__ import annotations

import os
from pathlib import Path

from ..validation import check_int

__all__ = ["MAX_THREADS", "physical_cores", "thread_count", "usable_cpus"]

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
