"""The kinds of `FetchError` that the fetcher handles differently, and the offline switch."""

from __future__ import annotations

import os

from ..errors import FetchError

__all__ = [
    "CHECK_NETWORK",
    "HttpStatusError",
    "NotOfferedError",
    "OfflineError",
    "UnreachableError",
    "is_set",
    "offline",
]

CHECK_NETWORK = (
    "Check the network, HTTPS_PROXY and the mirror settings (LLAMA_CFFI_NPM_REGISTRY, "
    "LLAMA_CFFI_GITHUB)."
)
_TRUE = frozenset({"1", "true", "yes", "on"})


class UnreachableError(FetchError):
    """A server did not answer, or only with server errors (5xx)."""


class OfflineError(FetchError):
    """The network is switched off by LLAMA_CFFI_OFFLINE."""


class NotOfferedError(FetchError):
    """A source does not have the build, version or variant."""


class HttpStatusError(FetchError):
    """A server answered with a 4xx status that no retry will change."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def offline() -> bool:
    """Return whether LLAMA_CFFI_OFFLINE switches the network off."""
    return is_set("LLAMA_CFFI_OFFLINE")


def is_set(variable: str) -> bool:
    """Return whether an environment variable switches something on: 1, true, yes or on."""
    return os.environ.get(variable, "").strip().lower() in _TRUE
