"""C functions that were renamed, and the build with faults of its own."""

from __future__ import annotations

from typing import Any

from ..loading.library import Library

__all__ = ["c_function", "is_b3889", "is_b3995", "is_b4980"]

# Current name -> older names, with the same arguments (for vocab functions, see `vocab_of`).
_RENAMED = {
    "llama_model_load_from_file": ("llama_load_model_from_file",),  # b4435
    "llama_model_free": ("llama_free_model",),  # b4435
    "llama_init_from_model": ("llama_new_context_with_model",),  # b4529
    "llama_model_n_ctx_train": ("llama_n_ctx_train",),  # b4529
    "llama_model_n_embd": ("llama_n_embd",),
    "llama_model_n_layer": ("llama_n_layer",),
    "llama_model_n_head": ("llama_n_head",),
    "llama_model_rope_freq_scale_train": ("llama_rope_freq_scale_train",),
    "llama_adapter_lora_init": ("llama_lora_adapter_init",),  # b4529
    "llama_adapter_lora_free": ("llama_lora_adapter_free",),
    # b8095, b4529
    "llama_set_adapter_cvec": ("llama_apply_adapter_cvec", "llama_control_vector_apply"),
    "llama_vocab_n_tokens": ("llama_n_vocab",),  # b4529; before, they took the model
    "llama_vocab_get_text": ("llama_token_get_text",),
    "llama_vocab_get_score": ("llama_token_get_score",),
    "llama_vocab_get_attr": ("llama_token_get_attr",),
    "llama_vocab_is_eog": ("llama_token_is_eog",),
    "llama_vocab_is_control": ("llama_token_is_control",),
    "llama_vocab_bos": ("llama_token_bos",),
    "llama_vocab_eos": ("llama_token_eos",),
    "llama_vocab_eot": ("llama_token_eot",),
    "llama_vocab_sep": ("llama_token_sep",),
    "llama_vocab_nl": ("llama_token_nl",),
    "llama_vocab_pad": ("llama_token_pad",),
    "llama_vocab_get_add_bos": ("llama_add_bos_token",),
    "llama_vocab_get_add_eos": ("llama_add_eos_token",),
    "llama_vocab_fim_pre": ("llama_token_fim_pre", "llama_token_prefix"),  # b3995, b3889
    "llama_vocab_fim_suf": ("llama_token_fim_suf", "llama_token_suffix"),
    "llama_vocab_fim_mid": ("llama_token_fim_mid", "llama_token_middle"),
}


def c_function(library: Library, name: str) -> Any:
    """Return the C function *name* under the name that it has in this build."""
    for candidate in (name, *_RENAMED.get(name, ())):
        if library.has(candidate):
            return getattr(library.lib, candidate)
    raise AttributeError(f"{library!r} has no {name}")


def is_b3889(library: Library) -> bool:
    """Whether the build is of ABI class b3889, which has faults of its own."""
    return not library.has("llama_sampler_init_xtc")


def is_b3995(library: Library) -> bool:
    """Whether the build is of ABI class b3995, which has faults of its own."""
    return library.has("llama_sampler_init_xtc") and not library.has("ggml_backend_load_all")


def is_b4980(library: Library) -> bool:
    """Whether the build is of ABI class b4980, which has faults of its own."""
    return library.has("llama_get_kv_self") and not library.has("llama_kv_self_seq_pos_min")
