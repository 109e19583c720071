"""Which types the tensors of a model may have: one rule for each family of tensors.

llama.cpp accepts any type when it loads a tensor, and aborts in the operation that computes with
it. What converters and llama-quantize write is allowed here, and what no operation takes is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ...gguf.reader import GgufSummary, GgufTensor
from .. import compat
from ..loading.library import Library

__all__ = ["matrix_types", "wrong_tensors"]

_LAYER = re.compile(r"(?:(?:enc|dec)\.)?blk\.\d+\.")
_F32 = frozenset({"F32"})
# Types to store numbers (I8 to I64, F64) or the results of other operations: no matrices.
_NO_MATRICES = frozenset({"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"})


class _Family(NamedTuple):
    """Tensors that one kind of operation takes.

    Attributes:
        what: The family in words, for the error message.
        names: Their names without the layer; all of it matches.
        f32: Whether the operation takes only F32; otherwise every type of matrices.
        n_dims: Most dimensions that it can have; further ones are 1.
    """

    what: str
    names: re.Pattern[str]
    f32: bool
    n_dims: int = 4


def _family(what: str, names: str, f32: bool, n_dims: int = 4) -> _Family:
    return _Family(what, re.compile(names), f32, n_dims)


# The first that matches counts.
_FAMILIES = (
    _family("a matrix", r"(ffn_gate_inp_shexp|cls|cls\.output)\.weight", False),
    _family("a bias", r".*\.bias", True),
    _family("a scale", r".*\.(input_)?scales?", True),
    _family("a norm", r".*norm\d?\.(weight|bias)", True),
    _family("part of a state space model", r"ssm_(a|d)", True, n_dims=2),
    _family("a convolution", r"(ssm_conv1d|shortconv\.conv)\.weight", True, n_dims=2),
    _family("a convolution", r"ssm_conv1d_[a-z]\.weight", True),
    _family("factors of RoPE", r"rope_(freqs|factors_\w+)\.weight", True),
    _family("added to every token", r"(token_types|attn_sinks)\.weight", True, n_dims=2),
    _family("part of an RWKV layer", r"time_mix_(first|lerp_fused)\.weight", True),
    _family(
        "a matrix",
        r"(token_embd|position_embd|output|(cross_)?attn_(q|k|v|o|qkv|output|rel_b)"
        r"|ffn_(gate|up|down|gate_inp))\.weight",
        False,
        n_dims=2,
    ),
    _family(
        "a matrix",
        r"(dense_\d(_out)?|nextn\.eh_proj|attn_(gate|[qk]v?_a(_mqa)?|[qkv]v?_b)"
        r"|ffn_(gate|up|down|gate_up)_(ch|sh)?exps?"
        r"|ssm_(in|x|dt|out|ba|alpha|beta)|shortconv\.(in|out)_proj"
        r"|(time|channel)_mix_(key|value|receptance|gate|output))\.weight",
        False,
        n_dims=3,
    ),
)
# Of any other name: converters write F32 wherever there is one dimension.
_VECTOR = _family("a vector", r".*\.weight", True)


def matrix_types(library: Library) -> dict[int, str]:
    """Return the types that the build multiplies as matrices: number -> name."""
    known = compat.tensor_types(library)
    return {number: name for number, name in known.items() if name not in _NO_MATRICES}


def wrong_tensors(gguf: GgufSummary, library: Library) -> Iterator[str]:
    """Yield what is wrong with the tensors of a model."""
    known, matrices = compat.tensor_types(library), matrix_types(library)
    for tensor in gguf.tensors:
        name, kind = tensor.name, tensor.kind
        if kind not in known:  # type < GGML_TYPE_COUNT
            yield f"tensor {name} has type {kind}, which this build does not know"
            continue
        family = _family_of(tensor, known[kind])
        if family is None:
            continue
        if family.f32 and known[kind] not in _F32:
            yield f"tensor {name} has type {known[kind]}; it is {family.what}, which must be F32"
        elif not family.f32 and kind not in matrices:
            yield f"tensor {name} has type {known[kind]}, which cannot be multiplied"
        if any(n > 1 for n in tensor.shape[family.n_dims :]):
            yield f"tensor {name} has the shape {tensor.shape}; it is {family.what}"


def _family_of(tensor: GgufTensor, type_name: str) -> _Family | None:
    """Return the family of a tensor; None if nothing is known about it."""
    part = _LAYER.sub("", tensor.name)
    for family in _FAMILIES:
        if family.names.fullmatch(part):
            return family
    is_vector = len(tensor.shape) == 1 and type_name not in _NO_MATRICES  # or a table of integers
    return _VECTOR if is_vector and _VECTOR.names.fullmatch(part) else None
