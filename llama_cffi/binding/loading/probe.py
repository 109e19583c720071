"""Measure a build whose declarations are not known yet.

Only functions of integers and pointers that have the same type in every known class are called
here (`BOOTSTRAP`; a test compares them over all classes).
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
    "probe_mtmd_params",
    "probe_params",
    "tensor_bytes",
    "written_by",
]

# Declarations of what is called before the build is known. The default-params functions return
# their struct through a hidden pointer; `probe_params` casts their address and calls that.
BOOTSTRAP = """
typedef struct { unsigned char bytes[512]; } probe_t;
void llama_model_default_params(void);
void llama_context_default_params(void);
void llama_model_quantize_default_params(void);
void mtmd_context_params_default(void);
void mtmd_log_set(void (*callback)(int, const char *, void *), void *user_data);
void mtmd_helper_log_set(void (*callback)(int, const char *, void *), void *user_data);
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

# Needed for measuring; every build since b3889 exports them.
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
_MTMD = "mtmd_context_params_default"
_PROBE_BYTES = 512
_OBJECT_BYTES = 32
_FILLS = (0xAA, 0x55)
_X86 = {"x86_64", "amd64", "x64"}


def probe_params(ffi: Any, lib: Any, exports: frozenset[str]) -> dict[str, bytes]:
    """Measure which bytes the default-params functions write, for those that are exported.

    A function returns a struct of more than 16 bytes through a hidden pointer to a buffer of the
    caller, so a prefilled buffer shows exactly what it wrote, whatever the struct really is.

    Returns:
        Struct name -> 512 flags, 1 = written.
    C: llama_model_default_params, llama_context_default_params,
        llama_model_quantize_default_params
    """
    return {
        struct: written_by(ffi, getattr(lib, function))
        for struct, function in _PROBED.items()
        if function in exports
    }


def probe_mtmd_params(ffi: Any, lib: Any, exports: frozenset[str]) -> bytes | None:
    """Measure which bytes `mtmd_context_params_default` writes; None if there is none."""
    function = getattr(lib, _MTMD, None) if _MTMD in exports else None
    return None if function is None else written_by(ffi, function)


def written_by(ffi: Any, function: Any, *numbers: int) -> bytes:
    """Return 512 flags, 1 = written: the bytes of a struct that *function* returns by value.

    Args:
        ffi: The bootstrap declarations.
        function: A function that returns a struct of more than 16 bytes.
        *numbers: Its arguments, of type int or enum.
    """
    probe = _through_register if platform.machine().lower() in _X86 else _through_callback
    return _written(lambda fill: probe(ffi, function, fill, *numbers))


def probe_device_props(ffi: Any, lib: Any) -> bytes | None:
    """Measure which bytes `ggml_backend_dev_get_props` writes; None if there is no device."""
    if not lib.ggml_backend_dev_count():
        return None
    device = lib.ggml_backend_dev_get(0)

    def call(fill: int) -> bytes:
        buffer = ffi.new("unsigned char[]", bytes([fill]) * _PROBE_BYTES)
        lib.ggml_backend_dev_get_props(device, buffer)
        return bytes(ffi.buffer(buffer))

    return _written(call)


def tensor_bytes(lib: Any) -> int:
    """Return the size of `struct ggml_tensor` in bytes, which depends on GGML_MAX_NAME.

    C: ggml_tensor_overhead, which includes a `struct ggml_object` of 32 bytes in every class.
    """
    return int(lib.ggml_tensor_overhead()) - _OBJECT_BYTES


def check_operations(ffi: Any, boot_ffi: Any, boot: Any, is_mapped: Callable[[int], bool]) -> str:
    """Compare `enum ggml_op` of the chosen class with the names that the build reports.

    The numbers of operations change between builds without any trace in symbols or structs.

    Args:
        ffi: The declarations of the class.
        boot_ffi: The bootstrap declarations.
        boot: The library, opened with *boot_ffi*.
        is_mapped: Whether an address can be read.

    Returns:
        The first difference; empty if all agree.
    C: ggml_op_name
    """
    names: dict[int, str] = ffi.typeof("enum ggml_op").elements
    for number, name in sorted(names.items()):
        declared = name.removeprefix("GGML_OP_")
        if declared == "COUNT":
            break
        pointer = boot.ggml_op_name(number)
        if not is_mapped(int(boot_ffi.cast("uintptr_t", pointer))):
            return f"operation {number} is {declared} in the class and does not exist in the build"
        reported = boot_ffi.string(pointer).decode("ascii", "replace")
        if reported != declared:
            return f"operation {number} is {declared} in the class and {reported} in the build"
    return ""


def _through_register(ffi: Any, function: Any, fill: int, *numbers: int) -> bytes:
    """Pass the buffer as first argument, which is the hidden pointer on x86-64."""
    buffer = ffi.new("unsigned char[]", bytes([fill]) * _PROBE_BYTES)
    ffi.cast(f"void (*)({', '.join(['void *', *('int' for _ in numbers)])})", function)(
        buffer, *numbers
    )
    return bytes(ffi.buffer(buffer))


def _through_callback(ffi: Any, function: Any, fill: int, *numbers: int) -> bytes:
    """Let libffi pass the hidden pointer (AArch64: x8), to memory that was filled just before.

    cffi allocates the result of a call and frees it afterwards. A callback of the same signature,
    called just before, leaves its bytes in the block that the next call gets.
    """
    full = ffi.new("probe_t *", [bytes([fill]) * _PROBE_BYTES])[0]
    signature = f"probe_t (*)({', '.join('int' for _ in numbers) or 'void'})"
    before = ffi.callback(signature, lambda *_: full)
    call = ffi.cast(signature, function)
    before(*numbers)
    result = call(*numbers)
    return bytes(ffi.buffer(ffi.addressof(result)))


def _written(call: Any) -> bytes:
    results = [call(fill) for fill in _FILLS]
    return bytes(
        not all(r[i] == fill for r, fill in zip(results, _FILLS, strict=True))
        for i in range(_PROBE_BYTES)
    )
