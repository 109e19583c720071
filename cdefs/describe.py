"""Declarations -> the table's facts about them: function names, and struct layouts by cffi."""

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

# Headers whose functions live in every build of the main libraries. (ggml-opt.h is not among them:
# the static build in llama-cpp-cffi's wheels lacks that object file.)
_ALWAYS = {"ggml.h", "ggml-alloc.h", "ggml-backend.h", "gguf.h", "llama.h"}
# Declared in one of those headers, yet missing in good libraries.
_MAY_LACK = {
    "ggml_threadpool_get_n_threads",  # b3889, b3995: defined under a misspelt name
    "ggml_graph_export",  # b4234 to b4980: the definitions went, the declarations stayed
    "ggml_graph_import",
    "llama_max_parallel_sequences",  # these three: the linker drops them from xllamacpp's wheels
    "llama_model_quantize",
    "llama_model_quantize_default_params",
}


def describe(text: str, name: str = "user", builds: tuple[str, ...] = ()) -> AbiClass:
    """Return the table entry of the declarations *text*.

    Sizes and offsets are those of this platform; they are the same on every 64-bit platform
    because the declarations use fixed-width types only.

    Args:
        text: What `generate` returned.
        name: Name of the class.
        builds: Upstream tags that have these declarations.

    Raises:
        ValidationError: The text is not what `generate` writes, or cffi refuses it.
    """
    ffi = cffi.FFI()
    try:
        ffi.cdef(text)
    except (cffi.CDefError, cffi.FFIError) as e:
        raise ValidationError(f"cffi refuses these declarations: {e}") from e
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
    """Return the struct that a top-level declaration or typedef defines, if it does."""
    inner: Any = node.type
    if isinstance(node, c_ast.Typedef):
        inner = getattr(inner, "type", None)
    return inner if isinstance(inner, c_ast.Struct) and inner.decls is not None else None


def _header_of_line(text: str) -> list[str]:
    """Return, for each line number, the header whose section the line is in."""
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
    """Mark the bytes of a type that belong to a scalar; a union's are those of any member."""
    if ctype.kind == "array":
        return bytearray(bytes(_mask(ctype.item)) * ctype.length)
    if ctype.kind not in ("struct", "union"):
        return bytearray(b"\1" * _size(ctype))
    mask = bytearray(_size(ctype))
    for _, field in ctype.fields:
        for i, marked in enumerate(_mask(field.type), start=field.offset):
            mask[i] |= marked
    return mask
