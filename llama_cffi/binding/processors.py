"""The number of threads to use, and how long threads wait for a processor."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..errors import ValidationError
from ..libs_fetch.machine import physical_cores, usable_cpus
from ..validation import check_int

__all__ = ["MAX_THREADS", "run_queue_waits", "thread_count"]

MAX_THREADS = 512  # GGML_MAX_N_THREADS, the entries of the pool's CPU mask
_VARIABLE = "LLAMA_CFFI_N_THREADS"


def thread_count(name: str, wanted: int, tuned: int = 0) -> int:
    """Return the number of threads to run: *wanted*, or the default for 0.

    The default is LLAMA_CFFI_N_THREADS, else *tuned*, else the physical cores that this process may
    use; hyper-threads slow ggml down. Never more than `usable_cpus`: ggml's threads wait for each
    other by spinning, and 512 of them on two processors take minutes for one token.

    Args:
        name: Name of the argument, for the error message.
        wanted: The number that was asked for.
        tuned: The number that `tune` has measured to be the best; 0: it has not.

    Raises:
        ValidationError: It, or the variable, is negative or not an integer.
    """
    wanted = check_int(name, wanted, 0) or _from_environment() or tuned or physical_cores()
    return min(wanted, usable_cpus(), MAX_THREADS)


def _from_environment() -> int:
    text = os.environ.get(_VARIABLE, "").strip()
    try:
        return check_int(_VARIABLE, int(text or 0), 0)
    except ValueError:
        raise ValidationError(
            f"{_VARIABLE}={text!r} is not a number of threads: use 1 or more, or unset it"
        ) from None


def run_queue_waits() -> dict[int, float]:
    """Return for each thread of this process how long it was ready but not run, in seconds.

    Empty where the system does not count it (other than Linux).
    """
    tasks, waits = Path("/proc/self/task"), {}
    try:
        for thread in os.listdir(tasks):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                fields = (tasks / thread / "schedstat").read_text(encoding="ascii").split()
                waits[int(thread)] = int(fields[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return {}
    return waits
