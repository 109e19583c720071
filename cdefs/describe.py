"""Derive a class's table entry from its declarations: functions, and struct layouts by cffi."""

from __future__ import annotations

import hashlib
import re
from types import MappingProxyType
from typing import Any

import _cffi_backend
import cffi

from ..errors import ValidationError
from . import AbiClass, Layout
from .parsing import c_ast, parse

__all__ = ["complete_struct", "describe"]

# Headers whose functions are in the main libraries of every build. (ggml-opt.h is not: the static
# build in llama-cpp-cffi's wheels lacks that object file.)
_ALWAYS = {"ggml.h", "ggml-alloc.h", "ggml-backend.h", "gguf.h", "llama.h", "whisper.h"}
# Declared in one of those headers, but missing in some libraries.
_MAY_LACK = {
    "ggml_threadpool_get_n_threads",  # b3889, b3995: defined under a misspelt name
    "ggml_graph_export",  # b4234 to b4980: the definitions were removed, the declarations not
    "ggml_graph_import",
    "llama_max_parallel_sequences",  # this and the next two: not linked into xllamacpp's wheels
    "llama_model_quantize",
    "llama_model_quantize_default_params",
}


def describe(text: str, name: str = "user", builds: tuple[str, ...] = ()) -> AbiClass:
    """Return the table entry of the declarations *text*.

    Sizes and offsets are this platform's, which are those of every 64-bit platform, as the
    declarations use fixed-width types only.

    Args:
        text: Declarations, as `generate` returns them.
        name: Name of the class.
        builds: Upstream tags with these declarations.

    Raises:
        ValidationError: *text* is not what `generate` writes, or cffi rejects it.
    """
    ffi = cffi.FFI()
    try:
        ffi.cdef(text)
    except (cffi.CDefError, cffi.FFIError) as e:
        raise ValidationError(f"cffi rejects these declarations: {e}") from e
    functions, optional, layouts = set(), set(), {}
    headers = _header_of_line(text)
    for node in parse(text).ext:
        if isinstance(node, c_ast.Decl) and isinstance(node.type, c_ast.FuncDecl):
            functions.add(node.name)
            if headers[node.coord.line] not in _ALWAYS or node.name in _MAY_LACK:
                optional.add(node.name)
        elif (struct := complete_struct(node)) is not None:
            spelling = f"struct {struct.name}" if struct.name else node.name
            layouts[struct.name or node.name] = _layout(ffi.typeof(spelling))
    return AbiClass(
        name,
        builds,
        frozenset(functions),
        frozenset(optional),
        MappingProxyType(layouts),
        hashlib.sha256(text.encode()).hexdigest()[:16],
    )


def complete_struct(node: Any) -> Any:
    """Return the struct that a top-level declaration or typedef defines; None if it does not."""
    inner: Any = node.type
    if isinstance(node, c_ast.Typedef):
        inner = getattr(inner, "type", None)
    return inner if isinstance(inner, c_ast.Struct) and inner.decls is not None else None


def _header_of_line(text: str) -> list[str]:
    """Return the header of each line, by line number."""
    headers = [""]
    for line in text.splitlines():
        match = re.fullmatch(r"// ---- (\S+)", line)
        headers.append(match[1] if match else headers[-1])
    return headers


def _layout(ctype: Any) -> Layout:
    return Layout(_size(ctype), bytes(_mask(ctype)))


def _size(ctype: Any) -> int:
    return int(_cffi_backend.sizeof(ctype))


def _mask(ctype: Any) -> bytearray:
    """Mark the bytes of a type that belong to a scalar; in a union, to one of any member."""
    if ctype.kind == "array":
        return bytearray(bytes(_mask(ctype.item)) * ctype.length)
    if ctype.kind not in ("struct", "union"):
        return bytearray(b"\1" * _size(ctype))
    mask = bytearray(_size(ctype))
    for _, field in ctype.fields:
        for i, marked in enumerate(_mask(field.type), start=field.offset):
            mask[i] |= marked
    return mask
