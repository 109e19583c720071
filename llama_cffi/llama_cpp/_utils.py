"""What plug-ins take from llama-cpp-python's `_utils`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

__all__ = ["suppress_stdout_stderr"]


@contextmanager
def suppress_stdout_stderr(disable: bool = True) -> Iterator[None]:
    """Discard what is written to stdout and stderr in a `with` block, by C, too.

    Args:
        disable: Discard nothing.
    """
    if disable:
        yield
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        for descriptor in (1, 2):
            saved = os.dup(descriptor)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, descriptor)
            os.dup2(null.fileno(), descriptor)
        stack.enter_context(redirect_stdout(null))
        stack.enter_context(redirect_stderr(null))
        yield
