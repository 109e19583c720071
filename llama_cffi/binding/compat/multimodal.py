"""Calls of libmtmd that differ between builds."""

from __future__ import annotations

from typing import Any

from ..loading.library import Library

__all__ = ["input_text", "mtmd_params"]


def mtmd_params(library: Library, **values: object) -> Any:
    """Return a `struct mtmd_context_params` with the build's defaults and *values*."""
    params = library.lib.mtmd_context_params_default()
    for name, value in values.items():
        setattr(params, name, value)
    return params


def input_text(library: Library, text: Any) -> Any:
    """Return a `struct mtmd_input_text` of special tokens; *text* is a C string."""
    struct = library.ffi.new("struct mtmd_input_text *")
    struct.text, struct.add_special, struct.parse_special = text, False, True
    fields = {name for name, _ in library.ffi.typeof("struct mtmd_input_text").fields}
    if "text_len" in fields:  # b10068
        struct.text_len = len(library.ffi.string(text))
    return struct
