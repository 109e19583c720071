"""From exceptions to HTTP statuses: one table for all protocols."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from ..errors import (
    CancelledError,
    ClosedError,
    ContextOverflowError,
    DeadlineExceededError,
    GenerationError,
    GrammarError,
    KvCacheFullError,
    LlamaError,
    OutOfMemoryError,
    QueueFullError,
    ValidationError,
)

__all__ = ["INVALID", "ApiError", "as_api_error", "invalid", "not_supported", "openai_error"]

_log = logging.getLogger("llama_cffi.server")

INVALID = "invalid_request_error"
_GRAMMARS = ("grammar", "json_schema", "response_format", "tools")
_MOST_SHOWN = 1500  # characters of a message, which may repeat a value of the request
_FIRST_NAME = re.compile(r"[a-z_]+")


class ApiError(Exception):
    """An error as clients see it.

    Args:
        status: The HTTP status.
        message: What was wrong, and what to do next.
        type: llama-server's name of the kind of error.
        code: OpenAI's name of the error, if it has one.
        param: The field of the request that is wrong.
        more: Further fields of the error object.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str = INVALID,
        *,
        code: str | None = None,
        param: str | None = None,
        more: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if len(message) > _MOST_SHOWN:
            message = f"{message[:_MOST_SHOWN]}…"
        super().__init__(message)
        self.status, self.message, self.type = status, message, type
        self.code, self.param = code, param
        self.more = dict(more or {})
        self.headers = dict(headers or {})
        # The clients of OpenAI and Anthropic repeat requests that failed with these, each of which
        # may have run for minutes.
        if status >= 500 and status != 503:
            self.headers.setdefault("x-should-retry", "false")


class _Kind(NamedTuple):
    status: int
    type: str
    code: str | None = None


# The first class that an exception has.
_KINDS: Mapping[type[BaseException], _Kind] = {
    ContextOverflowError: _Kind(400, "exceed_context_size_error", "context_length_exceeded"),
    ClosedError: _Kind(503, "unavailable_error"),
    ValidationError: _Kind(400, INVALID),
    QueueFullError: _Kind(429, "rate_limit_error", "queue_full"),
    DeadlineExceededError: _Kind(504, "timeout_error", "timeout"),
    CancelledError: _Kind(503, "unavailable_error"),
    KvCacheFullError: _Kind(500, "server_error", "kv_cache_full"),
    OutOfMemoryError: _Kind(500, "server_error", "out_of_memory"),
    GenerationError: _Kind(500, "server_error"),
    LlamaError: _Kind(500, "server_error"),
}
_HEADERS = {429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}


def as_api_error(error: BaseException, fields: Collection[str] = ()) -> ApiError:
    """Return the error that clients see.

    Args:
        error: What was raised. The message of an exception that this package did not raise is only
            logged.
        fields: The fields of the request, of which the message may name one first.
    """
    if isinstance(error, ApiError):
        return error
    found = next((kind for class_, kind in _KINDS.items() if isinstance(error, class_)), None)
    if found is None:
        _log.error("a request failed", exc_info=error)
        name = type(error).__name__
        return ApiError(500, f"internal error ({name}); see the server's log", "server_error")
    if found.status >= 500:
        _log.warning("a request failed: %s", error)
    message, more = str(error), {}
    if isinstance(error, ContextOverflowError):
        more = {"n_prompt_tokens": error.n_tokens, "n_ctx": error.n_ctx}
    named = _FIRST_NAME.match(message)
    names = [named[0]] if named is not None else []
    if isinstance(error, GrammarError):
        names += _GRAMMARS
    param = next((name for name in names if name in fields), None)
    return ApiError(
        found.status, message, found.type,
        code=found.code, param=param, more=more, headers=_HEADERS.get(found.status),
    )  # fmt: skip


def invalid(param: str | None, message: str, status: int = 400) -> ApiError:
    """Return the error of a request that is wrong."""
    return ApiError(status, message, INVALID, param=param)


def not_supported(message: str) -> ApiError:
    """Return the error of a request for something that this server, or its model, cannot do."""
    return ApiError(501, message, "not_supported_error", code="not_supported")


def openai_error(error: ApiError) -> dict[str, object]:
    """Return OpenAI's error body."""
    facts = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": {**facts, **error.more}}
