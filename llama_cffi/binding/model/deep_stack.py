"""C calls that need a deeper stack than a thread usually has.

Most pre-tokenizers of llama.cpp run on std::regex, which recurses once for every character in a
run of letters, punctuation or white space: 20,000 "a" overflow a stack of 8 MiB. Upstream
replaces them one by one (qwen2's was replaced in 2026).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TypeVar

from ...errors import ValidationError

__all__ = ["call_deep", "longest_run"]

T = TypeVar("T")

SAFE_RUN = 4096  # bytes, which take up to 2 MiB of stack
_MAX_RUN = 2**22
_BYTES_PER_LEVEL = 1024  # measured: 256 to 512
_RUNS = re.compile(rb"\s+|\S+")
_lock = threading.Lock()  # the stack size of new threads is a global setting


def longest_run(text: bytes) -> int:
    """Return the length in bytes of the longest run of white space or of anything else."""
    if len(text) <= SAFE_RUN:
        return len(text)
    return max(len(match.group()) for match in _RUNS.finditer(text))


def call_deep(function: Callable[[], T], run: int) -> T:
    """Call *function* with enough stack for a regex over a run of *run* bytes.

    Raises:
        ValidationError: The run is longer than 4 MiB.
    """
    if run <= SAFE_RUN:
        return function()
    if run > _MAX_RUN:
        raise ValidationError(
            f"the text has a run of {run} bytes of only white space or only other characters; "
            f"at most {_MAX_RUN} are allowed"
        )
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    with _lock:
        before = threading.stack_size(2**24 + -(-run // 4096) * 4096 * _BYTES_PER_LEVEL)
        try:
            thread.start()
        except RuntimeError as e:
            raise ValidationError(
                f"a run of {run} bytes needs a thread with a large stack, which failed: {e}"
            ) from e
        finally:
            threading.stack_size(before)
    thread.join()
    return results[0]
