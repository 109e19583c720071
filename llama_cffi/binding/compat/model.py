"""Loading a model, and what a build supports."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ..loading.library import Library
from .fields import assign, fields
from .names import c_function, is_b3995

__all__ = [
    "device_list",
    "kv_overrides",
    "load_model",
    "loads_state_space_models",
    "max_experts",
    "mixes_up_f16_states",
    "model_number",
    "model_params",
    "plans_memory",
    "rope_scaling_types",
    "supports_devices",
    "supports_tensor_overrides",
    "tensor_overrides",
    "tensor_types",
]


# Array of overrides -> its strings, which C reads as long as the array.
_patterns_of: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()


def model_params(library: Library, *, use_mmap: bool, use_mlock: bool, **values: Any) -> Any:
    """Return `llama_model_params` from the build's defaults; None keeps a default.

    `use_mmap` and `use_mlock` were replaced by `load_mode` in b10361.
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


def plans_memory(library: Library) -> bool:
    """Whether a model can be loaded without its weights to measure its contexts.

    `llama_model_params.no_alloc`, b7698. A context of such a model must not decode.
    """
    return "no_alloc" in fields(library, library.lib.llama_model_default_params())


def kv_overrides(library: Library, values: Mapping[str, int | float | bool | str]) -> Any:
    """Return an array of `struct llama_model_kv_override`, terminated by an empty key."""
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


def supports_devices(library: Library) -> bool:
    """Whether the devices of a model can be chosen: `llama_model_params.devices`, b4435."""
    return "devices" in fields(library, library.lib.llama_model_default_params())


def device_list(library: Library, indexes: Sequence[int]) -> Any:
    """Return an array of the devices with these indexes, terminated by NULL."""
    ffi, lib = library.ffi, library.lib
    found = [lib.ggml_backend_dev_get(i) for i in indexes]
    return ffi.new("ggml_backend_dev_t[]", [*found, ffi.NULL])


def supports_tensor_overrides(library: Library) -> bool:
    """Whether single tensors can be placed: `llama_model_params.tensor_buft_overrides`, b5590."""
    params = library.lib.llama_model_default_params()
    return "tensor_buft_overrides" in fields(library, params)


def tensor_overrides(library: Library, pairs: Sequence[tuple[str, int]]) -> Any:
    """Return an array of patterns and the buffer types of devices, terminated by NULL."""
    ffi, lib = library.ffi, library.lib
    array = ffi.new("struct llama_model_tensor_buft_override[]", len(pairs) + 1)
    patterns = [ffi.new("char[]", pattern.encode()) for pattern, _ in pairs]
    for entry, pattern, (_, device) in zip(array, patterns, pairs, strict=False):
        entry.pattern = pattern
        entry.buft = lib.ggml_backend_dev_buffer_type(lib.ggml_backend_dev_get(device))
    _patterns_of[array] = patterns
    return array


def load_model(library: Library, paths: Sequence[bytes], params: Any, listed: bool = False) -> Any:
    """Load a model from its first part, or from a list of parts; NULL if it failed.

    C: llama_model_load_from_file, llama_model_load_from_splits (b4529)
    """
    if not listed:
        return c_function(library, "llama_model_load_from_file")(paths[0], params)
    ffi = library.ffi
    strings = [ffi.new("char[]", path) for path in paths]
    array = ffi.new("const char *[]", strings)
    return library.lib.llama_model_load_from_splits(array, len(strings), params)


def supports_mtp(library: Library) -> bool:
    """Whether multi-token prediction heads can be loaded and run: v0.5.0 at the latest."""
    params = library.lib.llama_model_default_params()
    return "load_mtp" in fields(library, params) and hasattr(library.lib, "LLAMA_CONTEXT_TYPE_MTP")


def model_number(library: Library, name: str, model: Any) -> int | None:
    """Return the result of `llama_model_<name>`; None if the build does not have it."""
    try:
        return int(c_function(library, f"llama_model_{name}")(model))
    except AttributeError:
        return None


def mixes_up_f16_states(library: Library) -> bool:
    """Whether C aborts on F16 weights of Mamba where the CPU has AMX.

    From b6122 to before b7324 (measured on b6122 and b6673) they get a buffer of AMX, which cannot
    compute with them.
    """
    is_between = library.has("llama_model_is_diffusion") and not library.has(
        "llama_model_n_embd_inp"
    )
    return is_between and library.uses("AMX_INT8")


def loads_state_space_models(library: Library) -> bool:
    """Whether models with `ssm_conv1d` tensors can be loaded: b3995 calls ggml with NULL."""
    return not is_b3995(library)


def rope_scaling_types(library: Library) -> list[str]:
    """Return the values that `rope.scaling.type` may have."""
    names: Mapping[str, int] = library.ffi.typeof("enum llama_rope_scaling_type").relements
    prefix = "LLAMA_ROPE_SCALING_TYPE_"
    found = sorted((v, n) for n, v in names.items() if v >= 0 and "MAX" not in n)
    return [name.removeprefix(prefix).lower() for _, name in found]


def tensor_types(library: Library) -> dict[int, str]:
    """Return the tensor types of the build: number -> name."""
    names: Mapping[int, str] = library.ffi.typeof("enum ggml_type").elements
    return {
        number: name.removeprefix("GGML_TYPE_")
        for number, name in names.items()
        if name != "GGML_TYPE_COUNT"
    }


def max_experts(library: Library) -> int:
    """Return LLAMA_MAX_EXPERTS, which no function reports (measured by loading models)."""
    with contextlib.suppress(library.ffi.error):
        library.ffi.typeof("enum llama_lazy_mode")  # v0.4.0
        return 1024
    if library.has("llama_model_n_embd_inp"):  # b7324
        return 512
    if library.has("llama_model_is_diffusion"):  # b6122
        return 384
    return 256 if library.has("llama_model_load_from_file") else 160  # b4435
