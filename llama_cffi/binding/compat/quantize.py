"""Quantizing a model file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..loading.library import Library
from .fields import assign, fields

__all__ = ["file_types", "has_dry_run", "quantize_model"]


def file_types(library: Library) -> dict[str, int]:
    """Return the types for quantizing a model, such as `Q4_K_M`. C: enum llama_ftype."""
    names: Mapping[str, int] = library.ffi.typeof("enum llama_ftype").relements
    found = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_"): number
        for name, number in names.items()
        if name != "LLAMA_FTYPE_GUESSED"
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def has_dry_run(library: Library) -> bool:
    """Whether `quantize_model` can tell what it would write."""
    params = library.ffi.new("llama_model_quantize_params *")
    return "dry_run" in fields(library, params[0])


def quantize_model(
    library: Library, source: bytes, target: bytes, values: Mapping[str, Any]
) -> int:
    """Write a quantized copy; 0 on success. It takes minutes and cannot be stopped.

    C: llama_model_quantize
    """
    params = library.ffi.new("llama_model_quantize_params *")
    params[0] = library.lib.llama_model_quantize_default_params()
    assign(params, values)
    return int(library.lib.llama_model_quantize(source, target, params))
