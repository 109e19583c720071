"""Loading a model, and what a build can load."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from ..library import Library
from .fields import assign, fields
from .names import call

__all__ = ["load_model", "max_experts", "model_params", "rope_scaling_types", "tensor_types"]


def model_params(library: Library, *, use_mmap: bool, use_mlock: bool, **values: Any) -> Any:
    """Build `llama_model_params` from the build's defaults; None leaves a default.

    `use_mmap` and `use_mlock` became one `load_mode` at b10361.
    """
    params = library.lib.llama_model_default_params()
    if "use_mmap" in fields(library, params):
        values |= {"use_mmap": use_mmap, "use_mlock": use_mlock}
    else:
        modes = library.ffi.typeof("enum llama_load_mode").relements
        wanted = {
            (True, True): ("LLAMA_LOAD_MODE_MMAP_MLOCK", "LLAMA_LOAD_MODE_MLOCK"),
            (True, False): ("LLAMA_LOAD_MODE_MMAP",),
            (False, True): ("LLAMA_LOAD_MODE_MLOCK",),
            (False, False): ("LLAMA_LOAD_MODE_NONE",),
        }[use_mmap, use_mlock]
        values["load_mode"] = next(modes[name] for name in wanted if name in modes)
    assign(params, values)
    return params


def load_model(library: Library, path: bytes, params: Any) -> Any:
    """Load a model; NULL when it failed. C: llama_model_load_from_file."""
    return call(library, "llama_model_load_from_file")(path, params)


def rope_scaling_types(library: Library) -> list[str]:
    """Return the names that `rope.scaling.type` may have."""
    names: Mapping[str, int] = library.ffi.typeof("enum llama_rope_scaling_type").relements
    prefix = "LLAMA_ROPE_SCALING_TYPE_"
    found = sorted((v, n) for n, v in names.items() if v >= 0 and "MAX" not in n)
    return [name.removeprefix(prefix).lower() for _, name in found]


def tensor_types(library: Library) -> dict[int, str]:
    """Return the tensor types of the build, by number."""
    names: Mapping[int, str] = library.ffi.typeof("enum ggml_type").elements
    return {
        number: name.removeprefix("GGML_TYPE_")
        for number, name in names.items()
        if name != "GGML_TYPE_COUNT"
    }


def max_experts(library: Library) -> int:
    """Return LLAMA_MAX_EXPERTS, which no function tells: measured by loading models."""
    with contextlib.suppress(library.ffi.error):
        library.ffi.typeof("enum llama_lazy_mode")  # v0.4.0
        return 1024
    if library.has("llama_model_n_embd_inp"):  # b7324
        return 512
    if library.has("llama_model_is_diffusion"):  # b6122
        return 384
    return 256 if library.has("llama_model_load_from_file") else 160  # b4435
