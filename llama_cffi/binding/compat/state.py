"""The properties of a cache that a saved state depends on."""

from __future__ import annotations

from typing import Any

from ..loading.library import Library
from .fields import fields

__all__ = ["cache_layout", "position_params"]


def cache_layout(library: Library, params: Any) -> dict[str, str]:
    """Return how a context with these parameters stores keys and values, as C compares it.

    `flash_attn` decides whether values are transposed; `auto` is C's own choice (since b6431).
    """
    types = library.ffi.typeof("enum ggml_type").elements
    if "flash_attn" in fields(library, params):
        flash = int(params.flash_attn)
    else:
        flash = int(params.flash_attn_type)
    return {
        "type_k": types[params.type_k].removeprefix("GGML_TYPE_"),
        "type_v": types[params.type_v].removeprefix("GGML_TYPE_"),
        "flash_attn": {0: "off", 1: "on"}.get(flash, "auto"),
    }


def position_params(library: Library, params: Any) -> dict[str, float]:
    """Return the fields of these parameters that keys, values and kept cells depend on, by name."""
    return {
        name: getattr(params, name)
        for name in sorted(fields(library, params))
        if name.startswith(("rope_", "yarn_", "attention_", "swa_full"))
    }
