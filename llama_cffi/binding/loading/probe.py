"""Measure a build whose declarations are not known yet.

Only functions whose arguments are integers and pointers, of the same type in every known class,
are called here (`BOOTSTRAP`; a test compares them over all classes).
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

__all__ = [
    "BOOTSTRAP",
    "REQUIRED",
    "check_operations",
    "probe_device_props",
    "probe_params",
    "tensor_bytes",
]

# Declarations for what runs before the build is known. The default-params functions return their
# struct through a hidden pointer; `probe_params` calls them through casts of their address.
BOOTSTRAP = """
typedef struct { unsigned char bytes[512]; } probe_t;
void llama_model_default_params(void);
void llama_context_default_params(void);
void llama_model_quantize_default_params(void);
void llama_log_set(void (*callback)(int, const char *, void *), void *user_data);
void ggml_log_set(void (*callback)(int, const char *, void *), void *user_data);
void ggml_backend_load_all_from_path(const char *folder);
void *ggml_backend_load(const char *file);
const char *ggml_op_name(int op);
size_t ggml_tensor_overhead(void);
size_t ggml_backend_dev_count(void);
void *ggml_backend_dev_get(size_t index);
void ggml_backend_dev_get_props(void *device, void *props);
"""

# Without these nothing can be measured; every build since b3889 exports them.
REQUIRED = frozenset(
    {
        "llama_model_default_params",
        "llama_context_default_params",
        "llama_log_set",
        "ggml_op_name",
        "ggml_tensor_overhead",
        "ggml_backend_dev_count",
        "ggml_backend_dev_get",
        "ggml_backend_dev_get_props",
    }
)
_PROBED = {
    "llama_model_params": "llama_model_default_params",
    "llama_context_params": "llama_context_default_params",
    "llama_model_quantize_params": "llama_model_quantize_default_params",
}
_PROBE_BYTES = 512
_OBJECT_BYTES = 32
_FILLS = (0xAA, 0x55)
_X86 = {"x86_64", "amd64", "x64"}


def probe_params(ffi: Any, lib: Any, exports: frozenset[str]) -> dict[str, bytes]:
    """Measure which bytes the default-params functions write, those that the build exports.

    The callee stores its result through a hidden pointer for every struct above 16 bytes, so a
    prefilled buffer shows exactly what it wrote, whatever the struct really is.

    Returns:
        Struct name -> 512 flags, 1 = written.
    C: llama_model_default_params, llama_context_default_params,
        llama_model_quantize_default_params
    """
    probe = _through_register if platform.machine().lower() in _X86 else _through_callback
    return {
        struct: _written(lambda fill, f=function: probe(ffi, getattr(lib, f), fill))
        for struct, function in _PROBED.items()
        if function in exports
    }


def probe_device_props(ffi: Any, lib: Any) -> bytes | None:
    """Measure which bytes `ggml_backend_dev_get_props` writes; None when there is no device."""
    if not lib.ggml_backend_dev_count():
        return None
    device = lib.ggml_backend_dev_get(0)

    def call(fill: int) -> bytes:
        buffer = ffi.new("unsigned char[]", bytes([fill]) * _PROBE_BYTES)
        lib.ggml_backend_dev_get_props(device, buffer)
        return bytes(ffi.buffer(buffer))

    return _written(call)


def tensor_bytes(lib: Any) -> int:
    """Return the size of `struct ggml_tensor` in bytes; GGML_MAX_NAME changes it.

    C: ggml_tensor_overhead, which adds a `struct ggml_object` of 32 bytes in every class.
    """
    return int(lib.ggml_tensor_overhead()) - _OBJECT_BYTES


def check_operations(ffi: Any, boot_ffi: Any, boot: Any, readable: Callable[[int], bool]) -> str:
    """Compare `enum ggml_op` of the chosen class with the names that the build gives.

    The numbers of operations move without any symbol or struct showing it.

    Args:
        ffi: The class's declarations.
        boot_ffi: The bootstrap declarations, with *boot* opened through them.
        boot: The library.
        readable: Whether an address lies in the library, asked before it is read.

    Returns:
        What differs first; empty when all agree.
    C: ggml_op_name
    """
    names: dict[int, str] = ffi.typeof("enum ggml_op").elements
    for number, name in sorted(names.items()):
        declared = name.removeprefix("GGML_OP_")
        if declared == "COUNT":
            break
        text = boot.ggml_op_name(number)
        if not readable(int(boot_ffi.cast("uintptr_t", text))):
            return f"operation {number} is {declared} in the class and does not exist in the build"
        own = boot_ffi.string(text).decode("ascii", "replace")
        if own != declared:
            return f"operation {number} is {declared} in the class and {own} in the build"
    return ""


def _through_register(ffi: Any, function: Any, fill: int) -> bytes:
    """Pass the buffer as first argument: the hidden pointer of the x86-64 calling conventions."""
    buffer = ffi.new("unsigned char[]", bytes([fill]) * _PROBE_BYTES)
    ffi.cast("void (*)(void *)", function)(buffer)
    return bytes(ffi.buffer(buffer))


def _through_callback(ffi: Any, function: Any, fill: int) -> bytes:
    """Let libffi place the hidden pointer (AArch64: x8), with result memory filled just before.

    cffi allocates the result of a call and frees it after; a callback of the same signature called
    just before leaves its bytes in the block that the next call gets.
    """
    full = ffi.new("probe_t *", [bytes([fill]) * _PROBE_BYTES])[0]
    before = ffi.callback("probe_t (*)(void)", lambda: full)
    call = ffi.cast("probe_t (*)(void)", function)
    before()
    result = call()
    return bytes(ffi.buffer(ffi.addressof(result)))


def _written(call: Any) -> bytes:
    results = [call(fill) for fill in _FILLS]
    return bytes(
        not all(r[i] == fill for r, fill in zip(results, _FILLS, strict=True))
        for i in range(_PROBE_BYTES)
    )
