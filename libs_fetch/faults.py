"""Kinds of fetch failures that the code tells apart, and the offline switch."""

from __future__ import annotations

import os

from llama_cffi.errors import FetchError

__all__ = ["HttpStatusError", "NotOfferedError", "OfflineError", "UnreachableError", "offline"]

_TRUE = frozenset({"1", "true", "yes", "on"})


class UnreachableError(FetchError):
    """A server did not answer, or answered only with errors of its own (5xx)."""


class OfflineError(FetchError):
    """The network is switched off by LLAMA_CFFI_OFFLINE."""


class NotOfferedError(FetchError):
    """A source answered that it has no such build, version or variant."""


class HttpStatusError(FetchError):
    """A server answered with a final 4xx status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def offline() -> bool:
    """Tell whether LLAMA_CFFI_OFFLINE switches the network off."""
    return os.environ.get("LLAMA_CFFI_OFFLINE", "").strip().lower() in _TRUE
