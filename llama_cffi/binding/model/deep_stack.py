"""Calls into C that need a deeper stack than a thread has.

Most pre-tokenizers of llama.cpp run on std::regex, which recurses once for every character of a
run of letters, signs or white space: 20,000 "a" overflow a stack of 8 MiB. Upstream replaces
them one by one (that of qwen2 is gone since 2026).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TypeVar

from ...errors import ValidationError

__all__ = ["call_deep", "longest_run"]

T = TypeVar("T")

SAFE_RUN = 4096  # bytes; they take up to 2 MiB of stack
_MAX_RUN = 2**22
_BYTES_PER_LEVEL = 1024  # measured: 256 to 512
_RUNS = re.compile(rb"\s+|\S+")
_lock = threading.Lock()  # the stack size of new threads is a global setting


def longest_run(text: bytes) -> int:
    """Return the bytes of the longest run of white space or of anything else."""
    if len(text) <= SAFE_RUN:
        return len(text)
    return max(len(match.group()) for match in _RUNS.finditer(text))


def call_deep(function: Callable[[], T], run: int) -> T:
    """Call *function* with stack for a regex over a run of *run* bytes.

    Raises:
        ValidationError: The run is longer than 4 MiB.
    """
    if run <= SAFE_RUN:
        return function()
    if run > _MAX_RUN:
        raise ValidationError(
            f"the text has {run} bytes without a change between white space and other characters; "
            f"{_MAX_RUN} is the limit"
        )
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    with _lock:
        before = threading.stack_size(2**24 + -(-run // 4096) * 4096 * _BYTES_PER_LEVEL)
        try:
            thread.start()
        except RuntimeError as e:
            raise ValidationError(f"no thread for a text with a run of {run} bytes: {e}") from e
        finally:
            threading.stack_size(before)
    thread.join()
    return results[0]
