"""LoRA adapters and control vectors, which a context switches on and off."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import LlamaError, ModelLoadError, ValidationError
from ...gguf.reader import GgufSummary, GgufTensor, MetadataValue, check_gguf, read_gguf
from ...validation import check_float, check_int
from .. import compat
from ..memory_limits import check_ggml_contexts
from ..model.model import Model
from ..model.tensor_rules import matrix_types
from ..native_object import NativeObject

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .context import Context

__all__ = ["LoraAdapter", "apply_control_vector", "load_control_vector", "set_adapters"]

_UINT32, _FLOAT32, _STRING = 4, 6, 8
_VALUE_TYPES = {
    "general.type": _STRING,
    "general.architecture": _STRING,
    "adapter.type": _STRING,
    "adapter.lora.alpha": _FLOAT32,
}
_MAX_SCALE = 1e6
# Graph nodes per tensor of the model: measured for llama, more with experts.
_NODES, _MOE_NODES = 4, 6
_MAX_NAME = 63  # GGML_MAX_NAME without its NUL
_INVOCATION = "adapter.alora.invocation_tokens"
_DIRECTION = "direction."
_LAYER = re.compile(r"[1-9][0-9]{0,8}")


class LoraAdapter(NativeObject):
    """A LoRA adapter for one model; `Context.set_adapters` switches it on.

    Args:
        model: The model that it was trained for; closes this adapter when it closes.
        path: A GGUF file as written by convert_lora_to_gguf.py.

    Attributes:
        path: The file.
        model: The model.
        n_pairs: Number of tensors that it changes.
        active_in: The contexts where it is active.

    Raises:
        ModelLoadError: The file is damaged, not an adapter, or for another model.
        ClosedError: The model is closed.
        OutOfMemoryError: The build can hold no more adapters, contexts and models.
    C: llama_adapter_lora_init
    """

    def __init__(
        self, model: Model, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]
    ) -> None:
        library = model.library
        self.path = Path(os.fsdecode(path)).expanduser()
        _ = model.ptr  # raises if it is closed
        gguf = check_gguf(self.path, kind="LoRA")
        for reason in _mismatches(gguf, model):
            raise ModelLoadError(f"{self.path} cannot be used with {model.path.name}: {reason}")
        check_ggml_contexts(library, "an adapter")
        with library.logs.capture() as lines:
            init = compat.c_function(library, "llama_adapter_lora_init")
            held = model.hold()
            try:
                ptr = init(model.ptr, os.fsencode(self.path))
            finally:
                del held
        if not ptr:
            reason = "; ".join(line.split(": ", 1)[-1] for line in lines[-2:])
            raise ModelLoadError(
                f"{self.path} cannot be used with {model.path.name}: {reason or 'no reason given'}"
            )
        free = compat.c_function(library, "llama_adapter_lora_free")
        super().__init__(ptr, free, parent=model, n_ggml_contexts=1 + model.offloads)
        library.logs.raise_interrupt()
        self.model = model
        self.n_pairs = sum(tensor.name.endswith(".lora_a") for tensor in gguf.tensors)
        self.active_in: weakref.WeakSet[Context] = weakref.WeakSet()

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:
        """The metadata of the file: key -> int, float, bool, str, or a list of those.

        Raises:
            ModelLoadError: The file has been removed or damaged.
        """
        return read_gguf(self.path).metadata

    @property
    def invocation_tokens(self) -> list[int]:
        """The tokens that activate an activated LoRA (aLoRA); empty for other adapters.

        Raises:
            ModelLoadError: As for `metadata`.
        """
        tokens = self.metadata.get(_INVOCATION)
        return [int(token) for token in tokens] if isinstance(tokens, list) else []

    def close(self) -> None:
        """Switch the adapter off in its contexts, and free it. A second call does nothing."""
        for context in [c for c in self.active_in if not c.closed]:
            context.set_adapters({a: s for a, s in context.adapters.items() if a is not self})
        super().close()

    def __repr__(self) -> str:
        return f"<LoraAdapter {self.path.name}{' closed' if self.closed else ''}>"


def _mismatches(gguf: GgufSummary, model: Model) -> Iterator[str]:
    """Yield what C would abort on, now or when it computes, and what it would refuse.

    Old builds leak what they refuse, and cannot load anything after 64 files.
    """
    if model.vocab_only:
        yield "the model was loaded with vocab_only=True"
    for key, value_type in _VALUE_TYPES.items():
        if gguf.kinds.get(key, value_type) != value_type or key in gguf.arrays:
            yield f"{key} has the value type {gguf.kinds.get(key, 'array')}"
    wanted = {"general.type": "adapter", "adapter.type": "lora"}
    wanted["general.architecture"] = model.gguf.architecture
    for key, value in wanted.items():
        if gguf.values.get(key, "") != value:
            yield f"its {key} is {gguf.values.get(key, '')!r}, which should be {value!r}"
    tokens = gguf.arrays.get(_INVOCATION)
    if _INVOCATION in gguf.kinds or (tokens is not None and tokens.kind != _UINT32):
        yield f"{_INVOCATION} is not an array of uint32"
    known = matrix_types(model.library)
    pairs: dict[str, dict[str, GgufTensor]] = {}
    for tensor in gguf.tensors:
        if len(tensor.name.encode()) > _MAX_NAME:
            yield f"the name of the tensor {tensor.name} is longer than {_MAX_NAME} bytes"
        if tensor.kind not in known or tensor.size_bytes is None:  # of an unknown layout
            yield f"tensor {tensor.name} has type {tensor.type_name}, which cannot be multiplied"
        name, _, half = tensor.name.rpartition(".lora_")
        if half in ("a", "b"):
            pairs.setdefault(name, {})[half] = tensor
        elif not tensor.name.endswith("_norm.weight"):  # newer builds pass over these
            yield f"tensor {tensor.name} is neither a .lora_a nor a .lora_b"
    if not pairs:
        yield "it changes no tensor"
    model_tensors = {t.name: t for t in model.gguf.tensors}
    for name, pair in pairs.items():
        yield from _pair_mismatches(name, pair, model_tensors)


def _pair_mismatches(
    name: str, pair: Mapping[str, GgufTensor], model_tensors: Mapping[str, GgufTensor]
) -> Iterator[str]:
    """Yield why A and B cannot be multiplied, or do not give the shape of the model's tensor."""
    base = model_tensors.get(name)
    if base is None:
        yield f"the model has no tensor {name}"
        return
    if len(pair) < 2:
        yield f"its {name} has only a .lora_{next(iter(pair))}"
        return
    a, b, whole = (
        (*t.shape, *[1] * (4 - len(t.shape))) for t in (pair["a"], pair["b"], base)
    )  # C's shapes have 4 dimensions
    if name == "token_embd.weight":  # transposed
        if "output.weight" not in model_tensors:  # tied: also the output, not transposed
            yield "it changes token_embd.weight, which this model also uses for its output"
        ranks, fits = (a[0], b[0]), (b[1], a[1]) == whole[:2]
    else:
        ranks, fits = (a[1], b[0]), (a[0], b[1]) == whole[:2]
    if ranks[0] != ranks[1]:
        yield f"its {name} has ranks {ranks[0]} and {ranks[1]}"
    if not (fits and a[2:] == b[2:] == whole[2:]):
        yield (
            f"its {name} has the shapes {pair['a'].shape} and {pair['b'].shape}, the model's "
            f"{base.shape}"
        )


def set_adapters(context: Context, adapters: Mapping[LoraAdapter, float]) -> None:
    """Make exactly *adapters* active. See `Context.set_adapters`."""
    library = context.library
    adapters = {a: check_float("scale", s, -_MAX_SCALE, _MAX_SCALE) for a, s in adapters.items()}
    for adapter in adapters:
        if not isinstance(adapter, LoraAdapter) or adapter.model is not context.model:
            raise ValidationError(f"{adapter!r} belongs to another model than the context")
    _check_graph_size(context.model, adapters)
    pairs = [(adapter.ptr, scale) for adapter, scale in adapters.items()]
    with library.logs.capture() as lines:
        done = compat.set_adapters(library, context.ptr, pairs)
    context.keep_adapters(adapters if done else {})
    if not done:
        reason = "; ".join(line.split(": ", 1)[-1] for line in lines) or "no reason given"
        raise ValidationError(f"llama.cpp refused the adapters, none is active now: {reason}")


def _check_graph_size(model: Model, adapters: Iterable[LoraAdapter]) -> None:
    """Refuse more adapters than a compute graph can hold: C aborts on one node too many."""
    n_tensors, n_pairs = len(model.gguf.tensors), sum(a.n_pairs for a in adapters)
    max_nodes = compat.max_graph_nodes(model.library, n_tensors)
    if max_nodes is None or not n_pairs:
        return
    experts = model.gguf.values.get(f"{model.gguf.architecture}.expert_count", 0)
    nodes = (_MOE_NODES if experts else _NODES) * n_tensors + 4 * n_pairs
    leafs = n_tensors + 2 * n_pairs
    # obj_new, hash_set.size
    if nodes > max_nodes or nodes + leafs > 2 ** (max_nodes - 1).bit_length():
        raise ValidationError(
            f"these adapters change {n_pairs} tensors, which takes about {nodes} nodes, and a "
            f"graph has {max_nodes}; use fewer adapters: {compat.newer_build(model.library)}"
        )


def apply_control_vector(
    context: Context, vector: NDArray[np.float32] | None, layer_start: int, layer_end: int | None
) -> None:
    """Apply a control vector, or none. See `Context.set_control_vector`."""
    library, model = context.library, context.model
    apply = compat.c_function(library, "llama_set_adapter_cvec")
    if vector is None:
        apply(context.ptr, library.ffi.NULL, 0, model.n_embd, -1, -1)
        return
    import numpy as np

    data = np.ascontiguousarray(vector, np.float32)
    last = model.n_layer - 1
    finite = bool(np.isfinite(data).all())
    if data.shape != (last, model.n_embd) or not last or not finite:
        raise ValidationError(
            f"a control vector of {model.path.name} must be {last} x {model.n_embd} finite "
            f"numbers, got {data.shape}{'' if finite else ' with infinite values or NaN'}"
        )
    layer_start = check_int("layer_start", layer_start, 1, last)
    layer_end = check_int("layer_end", last if layer_end is None else layer_end, layer_start, last)
    numbers = library.ffi.from_buffer("float[]", data)
    code = apply(context.ptr, numbers, data.size, model.n_embd, layer_start, layer_end)
    if code:
        raise LlamaError(f"llama.cpp could not set the control vector ({code})")


def load_control_vector(
    model: Model, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]
) -> NDArray[np.float32]:
    """Read the control vector of *path* for `Context.set_control_vector`.

    Shapes: (n_layer - 1, n_embd) float32; row i is added after layer i + 1, zero for layers that
    are not in the file.

    Args:
        model: The model that it was made for.
        path: A GGUF file with tensors `direction.1`, `direction.2` and so on.

    Raises:
        ModelLoadError: The file is damaged, not a control vector, or for another model.
    """
    import numpy as np

    file = Path(os.fsdecode(path)).expanduser()
    n_layer, n_embd = model.n_layer, model.n_embd
    found = [t for t in check_gguf(file).tensors if t.name.startswith(_DIRECTION)]
    if not found:
        raise ModelLoadError(f"{file} is not a control vector: it has no tensor direction.1")
    vector = np.zeros((n_layer - 1, n_embd), np.float32)
    for tensor in found:
        number = tensor.name.removeprefix(_DIRECTION)
        layer = int(number) if _LAYER.fullmatch(number) else 0
        if not 1 <= layer < n_layer or tensor.shape != (n_embd,) or tensor.type_name != "F32":
            raise ModelLoadError(
                f"{file} is a control vector for another model: {tensor.name[:40]} is "
                f"{tensor.type_name} {tensor.shape}; {model.path.name} needs F32 ({n_embd},) for "
                f"layers 1 to {n_layer - 1}"
            )
        data = np.fromfile(file, "<f4", n_embd, offset=tensor.offset)
        vector[layer - 1] = data
    return vector
