"""One Python function for each C call whose name, arguments or struct fields differ between builds.

Other modules never check which build is loaded: they call these, or C functions that are the same
in every ABI class. Each function names the build of the change.
"""

from __future__ import annotations

from .adapter import max_graph_nodes, reuses_stale_graphs, set_adapters
from .context import (
    context_params,
    embedding_width,
    encode_supports_pooling,
    fills_window_masks,
    flash_attn_supports_f32,
    has_memory,
    init_context,
    keys_shift,
    kv_unified,
    layer_counts,
    max_ggml_contexts,
    max_sequences,
    n_classes,
    newer_build,
    polls_safely,
    pooling_name,
    pools_any_sequence,
)
from .grammar import grammar_sampler
from .memory import (
    can_shift,
    defrag,
    memory_call,
    mixes_up_states,
    needs_clear_after_failure,
    reports_pos_min,
    separates_hybrids,
    seq_pos_max,
)
from .model import (
    device_list,
    kv_overrides,
    load_model,
    loads_state_space_models,
    max_experts,
    model_number,
    model_params,
    rope_scaling_types,
    supports_devices,
    supports_mtp,
    supports_tensor_overrides,
    tensor_overrides,
    tensor_types,
)
from .names import c_function
from .quantize import file_types, quantize_model
from .sampler import sampler_dist, sampler_dry, sampler_penalties, sampler_with_interface
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
    "c_function",
    "cache_layout",
    "can_shift",
    "chat_apply_template",
    "chat_template",
    "context_params",
    "defrag",
    "device_list",
    "embedding_width",
    "encode_supports_pooling",
    "file_types",
    "fills_window_masks",
    "flash_attn_supports_f32",
    "grammar_sampler",
    "has_memory",
    "has_tokens",
    "init_context",
    "keys_shift",
    "kv_overrides",
    "kv_unified",
    "layer_counts",
    "load_model",
    "loads_state_space_models",
    "max_experts",
    "max_ggml_contexts",
    "max_graph_nodes",
    "max_sequences",
    "memory_call",
    "mixes_up_states",
    "model_number",
    "model_params",
    "n_classes",
    "needs_clear_after_failure",
    "newer_build",
    "polls_safely",
    "pooling_name",
    "pools_any_sequence",
    "quantize_model",
    "reports_pos_min",
    "reuses_stale_graphs",
    "rope_scaling_types",
    "sampler_dist",
    "sampler_dry",
    "sampler_penalties",
    "sampler_with_interface",
    "separates_hybrids",
    "seq_pos_max",
    "set_adapters",
    "special_token",
    "supports_devices",
    "supports_mtp",
    "supports_tensor_overrides",
    "tensor_overrides",
    "tensor_types",
    "token_attributes",
    "vocab_of",
    "vocab_type",
]
