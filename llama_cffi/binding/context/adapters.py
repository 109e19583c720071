"""LoRA adapters and control vectors: changes to a model that a context can switch on."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import LlamaError, ModelLoadError, ValidationError
from ...gguf.reader import GgufSummary, GgufTensor, check_gguf, read_gguf
from ...validation import integer, real
from .. import compat
from ..model.model import Model
from ..native_object import Handle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .context import Context

__all__ = ["LoraAdapter", "activate", "apply_control_vector", "load_control_vector"]

_STRING, _FLOAT32 = 8, 6
_KINDS = {
    "general.type": _STRING,
    "general.architecture": _STRING,
    "adapter.type": _STRING,
    "adapter.lora.alpha": _FLOAT32,
}
_MAX_SCALE = 1e6
# Nodes of a graph for each tensor of the model: measured for llama, more with experts.
_NODES, _MOE_NODES = 4, 6
_MAX_NAME = 63  # GGML_MAX_NAME without its NUL
_STORAGE_KINDS = range(24, 29)  # I8 to I64 and F64: no matrix operation takes them
_INVOCATION = "adapter.alora.invocation_tokens"
_DIRECTION = re.compile(r"direction\.(\d+)")


class LoraAdapter(Handle):
    """A LoRA adapter for one model; `Context.set_adapters` switches it on.

    Args:
        model: The model that it was trained for; closes this adapter when it closes.
        path: A GGUF file as convert_lora_to_gguf.py writes it.

    Raises:
        ModelLoadError: The file is damaged, no adapter, or for another model.
    C: llama_adapter_lora_init
    """

    def __init__(
        self, model: Model, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]
    ) -> None:
        library = model.library
        self.path = Path(os.fsdecode(path)).expanduser()
        gguf = check_gguf(self.path)
        for what in _wrong(gguf, model):
            raise ModelLoadError(f"{self.path} cannot be used with {model.path.name}: {what}")
        with library.logs.capture() as lines:
            init = compat.call(library, "llama_adapter_lora_init")
            held = model.hold()
            ptr = init(model.ptr, os.fsencode(self.path))
            del held
        if not ptr:
            why = "; ".join(line.split(": ", 1)[-1] for line in lines[-2:])
            raise ModelLoadError(
                f"{self.path} cannot be used with {model.path.name}: {why or 'no reason given'}"
            )
        super().__init__(ptr, compat.call(library, "llama_adapter_lora_free"), parent=model)
        library.logs.raise_interrupt()
        self.model = model
        self.n_pairs = len(gguf.tensors) // 2
        self.active_in: weakref.WeakSet[Context] = weakref.WeakSet()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the file says of itself: key -> int, float, bool, str, or a list of those.

        Raises:
            ModelLoadError: The file was removed or damaged since.
        """
        return read_gguf(self.path).metadata

    @property
    def invocation_tokens(self) -> list[int]:
        """The tokens from which on an activated LoRA is meant to be switched on; else empty.

        Raises:
            ModelLoadError: As for `metadata`.
        """
        return list(self.metadata.get(_INVOCATION, ()))

    def close(self) -> None:
        """Switch the adapter off where it is on, and free it. Calling it again does nothing."""
        for context in [c for c in self.active_in if not c.closed]:
            context.set_adapters({a: s for a, s in context.adapters.items() if a is not self})
        super().close()

    def __repr__(self) -> str:
        return f"<LoraAdapter {self.path.name}{' closed' if self.closed else ''}>"


def _wrong(gguf: GgufSummary, model: Model) -> Iterator[str]:
    """What C would abort on, now or when it computes; it refuses the rest itself."""
    for key, kind in _KINDS.items():
        if gguf.kinds.get(key, kind) != kind or key in gguf.arrays:
            yield f"{key} has the value type {gguf.kinds.get(key, 'array')}"
    known = compat.tensor_types(model.library)
    of_model = {t.name: t for t in model.gguf.tensors}
    pairs: dict[str, dict[str, GgufTensor]] = {}
    for tensor in gguf.tensors:
        if len(tensor.name.encode()) > _MAX_NAME:
            yield f"the name of the tensor {tensor.name} is longer than {_MAX_NAME} bytes"
        if tensor.kind not in known or tensor.kind in _STORAGE_KINDS:
            yield f"tensor {tensor.name} has type {tensor.type_name}, which cannot be multiplied"
        name, _, half = tensor.name.rpartition(".lora_")
        pairs.setdefault(name, {})[half] = tensor
    for name, pair in pairs.items():
        base = of_model.get(name)
        if base is None or not {"a", "b"} <= pair.keys():
            continue  # C says so, or the tensor is in another part of a split model
        a, b = pair["a"].shape, pair["b"].shape
        if name == "token_embd.weight":
            if "output.weight" not in of_model:  # it is the output too, the other way round
                yield "it changes token_embd.weight, which this model also uses for its output"
            if a[0] != b[0]:
                yield f"its {name} has ranks {a[0]} and {b[0]}"
        if not a[2:] == b[2:] == base.shape[2:]:
            yield f"its {name} has the shapes {a} and {b}, the model's {base.shape}"


def activate(context: Context, adapters: Mapping[LoraAdapter, float]) -> None:
    """Be `Context.set_adapters`."""
    library = context.library
    adapters = {a: real("scale", s, -_MAX_SCALE, _MAX_SCALE) for a, s in adapters.items()}
    for adapter in adapters:
        if not isinstance(adapter, LoraAdapter) or adapter.model is not context.model:
            raise ValidationError(f"{adapter!r} was made for another model than the context")
    _check_room(context.model, adapters)
    pairs = [(adapter.ptr, scale) for adapter, scale in adapters.items()]
    with library.logs.capture() as lines:
        done = compat.set_adapters(library, context.ptr, pairs)
    context.keep_adapters(adapters if done else {})
    if not done:
        why = "; ".join(line.split(": ", 1)[-1] for line in lines) or "no reason given"
        raise ValidationError(f"llama.cpp refused the adapters, none is active now: {why}")


def _check_room(model: Model, adapters: Iterable[LoraAdapter]) -> None:
    """Refuse more adapters than a graph has room for: C ends the process on one node too many."""
    n_tensors, n_pairs = len(model.gguf.tensors), sum(a.n_pairs for a in adapters)
    room = compat.max_graph_nodes(model.library, n_tensors)
    if room is None or not n_pairs:
        return
    experts = model.gguf.values.get(f"{model.gguf.architecture}.expert_count", 0)
    nodes = (_MOE_NODES if experts else _NODES) * n_tensors + 4 * n_pairs
    leafs = n_tensors + 2 * n_pairs
    if nodes > room or nodes + leafs > 2 ** (room - 1).bit_length():  # obj_new, hash_set.size
        raise ValidationError(
            f"these adapters change {n_pairs} tensors, which takes about {nodes} nodes, and a "
            f"graph has {room}; take fewer: {compat.newer(model.library)}"
        )


def apply_control_vector(
    context: Context, vector: NDArray[np.float32] | None, layer_start: int, layer_end: int | None
) -> None:
    """Be `Context.set_control_vector`."""
    library, model = context.library, context.model
    apply = compat.call(library, "llama_set_adapter_cvec")
    if vector is None:
        apply(context.ptr, library.ffi.NULL, 0, model.n_embd, -1, -1)
        return
    import numpy as np

    data = np.ascontiguousarray(vector, np.float32)
    last = model.n_layer - 1
    finite = bool(np.isfinite(data).all())
    if data.shape != (last, model.n_embd) or not last or not finite:
        raise ValidationError(
            f"a control vector of {model.path.name} holds {last} x {model.n_embd} finite numbers, "
            f"not {data.shape}{'' if finite else ' with infinite ones or NaN'}"
        )
    layer_start = integer("layer_start", layer_start, 1, last)
    layer_end = integer("layer_end", last if layer_end is None else layer_end, layer_start, last)
    numbers = library.ffi.from_buffer("float[]", data)
    code = apply(context.ptr, numbers, data.size, model.n_embd, layer_start, layer_end)
    if code:
        raise LlamaError(f"llama.cpp could not set the control vector ({code})")


def load_control_vector(
    model: Model, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]
) -> NDArray[np.float32]:
    """Read the control vector of *path* for `Context.set_control_vector`.

    Shapes: (n_layer - 1, n_embd) float32; row i is what is added after layer i + 1, zero for
    layers that the file does not have.

    Args:
        model: The model that it was made for.
        path: A GGUF file with tensors `direction.1`, `direction.2` and so on.

    Raises:
        ModelLoadError: The file is damaged, has no direction, or fits another model.
    """
    import numpy as np

    file = Path(os.fsdecode(path)).expanduser()
    n_layer, n_embd = model.n_layer, model.n_embd
    found = {int(m[1]): t for t in check_gguf(file).tensors if (m := _DIRECTION.fullmatch(t.name))}
    if not found:
        raise ModelLoadError(f"{file} is no control vector: it has no tensor direction.1")
    vector = np.zeros((n_layer - 1, n_embd), np.float32)
    for layer, tensor in found.items():
        if not 1 <= layer < n_layer or tensor.shape != (n_embd,) or tensor.type_name != "F32":
            raise ModelLoadError(
                f"{file} is a control vector of another model: {tensor.name} is {tensor.type_name} "
                f"of {tensor.shape}; {model.path.name} has layers 1 to {n_layer - 1} of {n_embd}"
            )
        data = np.fromfile(file, "<f4", n_embd, offset=tensor.offset)
        vector[layer - 1] = data
    return vector
