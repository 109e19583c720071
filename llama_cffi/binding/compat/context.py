"""Making a context."""

from __future__ import annotations

from typing import Any

from ..library import Library
from .fields import assign, fields
from .names import call

__all__ = ["context_params", "init_context", "kv_unified", "max_sequences"]


def context_params(
    library: Library,
    *,
    flash_attn: bool | None = None,
    kv_unified: bool | None = None,
    **values: Any,
) -> Any:
    """Build `llama_context_params` from the build's defaults; None leaves a default.

    `flash_attn` is an enum since b6431 (None: the build's own choice); `kv_unified` exists since
    b6122, before it every cache was unified.
    """
    params = library.lib.llama_context_default_params()
    known = fields(library, params)
    if flash_attn is not None:
        values["flash_attn" if "flash_attn" in known else "flash_attn_type"] = int(flash_attn)
    if "kv_unified" in known:
        values["kv_unified"] = kv_unified
    assign(params, values)
    return params


def init_context(library: Library, model: Any, params: Any) -> Any:
    """Create a context; NULL when it failed. C: llama_init_from_model."""
    return call(library, "llama_init_from_model")(model, params)


def max_sequences(library: Library) -> int:
    """Return the most sequences of a context. C: llama_max_parallel_sequences, b6122."""
    if library.has("llama_max_parallel_sequences"):
        return int(library.lib.llama_max_parallel_sequences())
    return 64  # LLAMA_MAX_SEQ; older builds have no limit of their own


def kv_unified(library: Library, params: Any) -> bool:
    """Whether the sequences of a context share one cache."""
    return "kv_unified" not in fields(library, params) or bool(params.kv_unified)
