"""The logger of C's messages, by llama-cpp-python's names."""

from __future__ import annotations

import logging

__all__ = ["logger", "set_verbose"]

logger = logging.getLogger("llama_cffi.native")


def set_verbose(verbose: bool) -> None:
    """Log all messages of C, or only its errors; none is printed."""
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR)
