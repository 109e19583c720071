"""LoRA adapters and control vectors of a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..loading.library import Library
from .fields import fields
from .memory import defrag, reports_pos_min
from .names import is_b4980

__all__ = [
    "can_plan_graph",
    "max_graph_nodes",
    "plan_graph",
    "plans_by_counts",
    "reuses_stale_graphs",
    "set_adapters",
]


def set_adapters(library: Library, context: Any, adapters: Sequence[tuple[Any, float]]) -> bool:
    """Activate exactly these (adapter, scale) pairs; False if C refused, then none is active.

    C: llama_set_adapters_lora since b8095; before it one call per adapter, with other names until
    b4529.
    """
    lib, ffi = library.lib, library.ffi
    if library.has("llama_set_adapters_lora"):
        pointers = ffi.new("struct llama_adapter_lora *[]", [p for p, _ in adapters])
        scales = ffi.new("float[]", [s for _, s in adapters])
        return bool(lib.llama_set_adapters_lora(context, pointers, len(adapters), scales) == 0)
    if library.has("llama_set_adapter_lora"):
        clear, add = lib.llama_clear_adapter_lora, lib.llama_set_adapter_lora
    else:
        clear, add = lib.llama_lora_adapter_clear, lib.llama_lora_adapter_set
    clear(context)
    if all(add(context, pointer, scale) == 0 for pointer, scale in adapters):
        return True
    clear(context)
    return False


def max_graph_nodes(library: Library, n_tensors: int) -> int | None:
    """Return the number of nodes that a graph can hold; None if it grows with the adapters.

    C aborts on one more.
    """
    if library.has("llama_set_adapters_lora"):
        return None
    if library.has("llama_set_warmup"):  # b4980
        return max(1024, 8 * n_tensors)
    return max(8192, 5 * n_tensors)


def reuses_stale_graphs(library: Library) -> bool:
    """Whether C reuses the last graph even after adapters or control vectors changed (measured)."""
    # From b6122, which added `kv_unified`, to b8390; b9842 is correct.
    params = library.lib.llama_context_default_params()
    return "kv_unified" in fields(library, params) and not library.has("llama_model_n_layer_nextn")


def plans_by_counts(library: Library) -> bool:
    """Whether C takes any graph with the node and leaf counts of the last one for planned.

    Measured: b3889 to b4980 then look for buffer -1, and write elsewhere or assert. A control
    vector that is switched on can add as many nodes as pooling that is switched off takes away.
    """
    return not reports_pos_min(library)


def plan_graph(library: Library, context: Any) -> None:
    """Let C plan its largest graph before it computes the next one; see `plans_by_counts`.

    It does so after a defragmentation, which b4980 cannot do.
    """
    defrag(library, context)


def can_plan_graph(library: Library) -> bool:
    """Whether `plan_graph` works, or is not needed."""
    return not is_b4980(library)
