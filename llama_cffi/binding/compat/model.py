"""Loading a model, and what a build can load."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..loading.library import Library
from .fields import assign, fields
from .names import call

__all__ = [
    "device_list",
    "kv_overrides",
    "load_model",
    "max_experts",
    "model_number",
    "model_params",
    "rope_scaling_types",
    "takes_devices",
    "tensor_types",
]


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


def kv_overrides(library: Library, values: Mapping[str, int | float | bool | str]) -> Any:
    """Build the array of `struct llama_model_kv_override` that ends with an empty key."""
    ffi = library.ffi
    tags = ffi.typeof("enum llama_model_kv_override_type").relements
    array = ffi.new("struct llama_model_kv_override[]", len(values) + 1)
    for entry, (key, value) in zip(array, values.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, bool):
            entry.tag, entry.val_bool = tags["LLAMA_KV_OVERRIDE_TYPE_BOOL"], value
        elif isinstance(value, int):
            entry.tag, entry.val_i64 = tags["LLAMA_KV_OVERRIDE_TYPE_INT"], value
        elif isinstance(value, float):
            entry.tag, entry.val_f64 = tags["LLAMA_KV_OVERRIDE_TYPE_FLOAT"], value
        else:
            entry.tag, entry.val_str = tags["LLAMA_KV_OVERRIDE_TYPE_STR"], value.encode()
    return array


def takes_devices(library: Library) -> bool:
    """Whether a model can be told its devices: `llama_model_params.devices`, b4435."""
    return "devices" in fields(library, library.lib.llama_model_default_params())


def device_list(library: Library, indexes: Sequence[int]) -> Any:
    """Build the array of devices, by their index, that ends with NULL."""
    ffi, lib = library.ffi, library.lib
    found = [lib.ggml_backend_dev_get(i) for i in indexes]
    return ffi.new("ggml_backend_dev_t[]", [*found, ffi.NULL])


def load_model(library: Library, paths: Sequence[bytes], params: Any, listed: bool = False) -> Any:
    """Load a model from its first part, or from a list of parts; NULL when it failed.

    C: llama_model_load_from_file, llama_model_load_from_splits (b4529)
    """
    if not listed:
        return call(library, "llama_model_load_from_file")(paths[0], params)
    ffi = library.ffi
    texts = [ffi.new("char[]", path) for path in paths]
    array = ffi.new("const char *[]", texts)
    return library.lib.llama_model_load_from_splits(array, len(texts), params)


def takes_mtp(library: Library) -> bool:
    """Whether heads for the token after the next can be loaded and run: v0.5.0 at the latest."""
    params = library.lib.llama_model_default_params()
    return "load_mtp" in fields(library, params) and hasattr(library.lib, "LLAMA_CONTEXT_TYPE_MTP")


def model_number(library: Library, name: str, model: Any) -> int | None:
    """Return what `llama_model_<name>` says; None where the build does not have it."""
    try:
        return int(call(library, f"llama_model_{name}")(model))
    except AttributeError:
        return None


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
