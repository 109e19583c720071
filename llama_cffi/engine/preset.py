"""The contract of Polaris Core: defaults of `Engine`, and the variables that change them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ValidationError
from ..generation.aliases import canonical
from ..generation.text import Flusher
from ..validation import check_int
from . import environment

__all__ = ["complete", "make_flusher", "text_defaults"]

_SAFETY = 16
_JSON_STOP = ("done", "next_step")
_SAMPLING = {"temperature": 0.7, "top_p": 0.9}
_REPEAT_PENALTY = 1.1
_FLUSH_LIMITS = (
    ("flush_bytes", "FLUSH", 64),
    ("flush_tokens", "TOKFLUSH", 1),
    ("flush_ms", "MS_FLUSH", 100),
)


def complete(
    options: Mapping[str, Any], context_policy: str | None, safety: int | None
) -> dict[str, Any]:
    """Return the defaults for a call with *options*, some of them from the environment.

    Args:
        options: The options of the call.
        context_policy: The engine's context policy; None: `error`.
        safety: The engine's safety margin, tokens; None: the environment's.

    Raises:
        ValidationError: An environment variable has an invalid value.
    """
    given = canonical(options)
    found: dict[str, Any] = {
        "context_policy": context_policy or "error",
        "safety": environment.number("SAFETY", safety, _SAFETY),
        "reset_kv_cache": environment.flag("RESET_KV", None, True),
    }
    if "sampling" in given:
        return found
    sampling = {**_SAMPLING, **given}
    # With greedy decoding a penalty corrupts copied text and numbers.
    penalty = 1.0 if sampling["temperature"] == 0 else _REPEAT_PENALTY
    return {**found, **_SAMPLING, "repeat_penalty": penalty}


def text_defaults(context_policy: str | None = None) -> dict[str, Any]:
    """Return the further defaults of a call that takes and returns text.

    Args:
        context_policy: The engine's context policy; None: `truncate_left`.

    Raises:
        ValidationError: An environment variable has an invalid value.
    """
    return {
        "context_policy": context_policy or "truncate_left",
        "special": environment.flag("SPECIAL", None, True),
        "suppress_think": environment.flag("SUPPRESS_THINK", None, False),
        "json_stop": _JSON_STOP,
    }


def make_flusher(
    callback: Callable[[bytes], object], flush: tuple[int | None, int | None, int | None]
) -> Flusher:
    """Return the `Flusher` that passes an answer's bytes to *callback*.

    Args:
        callback: Receives the bytes.
        flush: Limits in bytes, tokens and milliseconds; None: the environment's.

    Raises:
        ValidationError: *callback* is not callable, or a limit is out of range.
    """
    if not callable(callback):
        raise ValidationError(f"callback must be a function, got {callback!r}")
    max_bytes, max_tokens, max_ms = (
        check_int(name, environment.number(variable, value, default), 0)
        for (name, variable, default), value in zip(_FLUSH_LIMITS, flush, strict=True)
    )
    return Flusher(callback, max_bytes=max_bytes, max_tokens=max_tokens, max_ms=max_ms)
