"""One Python function for each C call whose name, arguments or struct fields moved between builds.

Code above never asks which build it runs on: it calls these, or a C function that is the same in
every class. Each entry names the build of the change.
"""

from __future__ import annotations

from .adapter import max_graph_nodes, reuses_stale_graphs, set_adapters
from .context import (
    context_params,
    embedding_width,
    encode_pools,
    flash_attn_takes_f32,
    has_memory,
    init_context,
    keys_shift,
    kv_unified,
    layer_counts,
    max_sequences,
    n_classes,
    newer,
    pooling_name,
    pools_any_sequence,
)
from .grammar import grammar_sampler
from .memory import (
    breaks_states,
    can_shift,
    defrag,
    has_pos_min,
    memory_call,
    mixes_states,
    separates_hybrids,
    seq_pos_max,
)
from .model import (
    device_list,
    kv_overrides,
    load_model,
    max_experts,
    model_number,
    model_params,
    rope_scaling_types,
    takes_devices,
    takes_mtp,
    tensor_types,
)
from .names import call
from .quantize import file_types, quantize_model
from .sampler import dist_needs_softmax, sampler_dry, sampler_penalties, sampler_with_interface
from .state import cache_layout
from .vocab import (
    add_sep,
    chat_apply_template,
    chat_template,
    has_tokens,
    special_token,
    token_attributes,
    vocab_of,
    vocab_type,
)

__all__ = [
    "add_sep",
    "breaks_states",
    "cache_layout",
    "call",
    "can_shift",
    "chat_apply_template",
    "chat_template",
    "context_params",
    "defrag",
    "device_list",
    "dist_needs_softmax",
    "embedding_width",
    "encode_pools",
    "file_types",
    "flash_attn_takes_f32",
    "grammar_sampler",
    "has_memory",
    "has_pos_min",
    "has_tokens",
    "init_context",
    "keys_shift",
    "kv_overrides",
    "kv_unified",
    "layer_counts",
    "load_model",
    "max_experts",
    "max_graph_nodes",
    "max_sequences",
    "memory_call",
    "mixes_states",
    "model_number",
    "model_params",
    "n_classes",
    "newer",
    "pooling_name",
    "pools_any_sequence",
    "quantize_model",
    "reuses_stale_graphs",
    "rope_scaling_types",
    "sampler_dry",
    "sampler_penalties",
    "sampler_with_interface",
    "separates_hybrids",
    "seq_pos_max",
    "set_adapters",
    "special_token",
    "takes_devices",
    "takes_mtp",
    "tensor_types",
    "token_attributes",
    "vocab_of",
    "vocab_type",
]
