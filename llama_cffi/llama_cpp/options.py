"""The constructor's arguments: llama-cpp-python's numbers and names as those of `LlamaConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..api.config import LlamaConfig
from ..errors import ValidationError
from ..validation import check_int

__all__ = ["DEFAULT_SEED", "POOLING", "config_of", "seed_of"]

DEFAULT_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: draw one

# Values of C's enums, the same in every build that has them; a test compares them.
POOLING = {-1: None, 0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
SPLIT_MODES = {0: "none", 1: "layer", 2: "row", 3: "tensor"}
ROPE_SCALINGS = {-1: None, 0: "none", 1: "linear", 2: "yarn", 3: "longrope"}
ATTENTIONS = {-1: None, 0: "causal", 1: "non_causal"}
CACHE_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 20: "iq4_nl",
    30: "bf16",
}  # fmt: skip

# The defaults of these stand for what the model or the build says.
_YARN = {
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": 1.0,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_orig_ctx": 0,
}
_SAME = (
    "n_gpu_layers", "main_gpu", "tensor_split", "use_mmap", "use_mlock", "kv_overrides",
    "n_threads", "n_threads_batch", "rope_freq_base", "rope_freq_scale", "logits_all",
    "offload_kqv", "flash_attn", "op_offload", "swa_full", "no_perf", "lora_scale", "lora_path",
    "verbose",
)  # fmt: skip
_REFUSED = {
    "vocab_only": "use llama_cffi.Model(path, vocab_only=True).vocab for the tokenizer alone",
    "numa": "start the program under numactl, as `numactl --interleave=all python ...`",
    "lora_base": "llama.cpp has no such thing any more; lora_path alone is enough",
    "device": "n_gpu_layers, main_gpu and split_mode say where the layers go",
}
# What older versions had; it changed nothing in the newest ones either.
_IGNORED = ("n_parts", "f16_kv", "low_vram", "mul_mat_q", "n_gqa", "rms_norm_eps")


def config_of(arguments: Mapping[str, Any], extra: Mapping[str, Any]) -> LlamaConfig:
    """Return the configuration that llama-cpp-python's arguments describe.

    Args:
        arguments: All of its named ones.
        extra: Others: those of its older versions, or fields of `LlamaConfig`.

    Raises:
        ValidationError: One asks for what cannot be done.
        TypeError: There is no such argument.
    """
    given = {**arguments, **extra}
    for name, advice in _REFUSED.items():
        if given.get(name):
            raise ValidationError(f"{name}={given[name]!r} is not supported: {advice}")
    more = {k: v for k, v in extra.items() if k not in (*_REFUSED, *_IGNORED)}
    n_ctx = check_int("n_ctx", given["n_ctx"], 0)
    n_batch = check_int("n_batch", given["n_batch"] or 512, 1)
    if n_ctx:
        n_batch = min(n_ctx, n_batch)
    values = {
        **{name: given[name] for name in _SAME},
        **{name: given[name] if given[name] != usual else None for name, usual in _YARN.items()},
        "n_ctx": n_ctx,
        "n_batch": n_batch,
        "n_ubatch": min(n_batch, check_int("n_ubatch", given["n_ubatch"], 1)),
        "seed": seed_of(given["seed"]),
        "embeddings": given["embedding"],
        "pooling": _named("pooling_type", given["pooling_type"], POOLING),
        "split_mode": _named("split_mode", given["split_mode"], SPLIT_MODES),
        "rope_scaling": _named("rope_scaling_type", given["rope_scaling_type"], ROPE_SCALINGS),
        "attention": _named("attention_type", given["attention_type"], ATTENTIONS),
        "type_k": _named("type_k", given["type_k"], CACHE_TYPES),
        "type_v": _named("type_v", given["type_v"], CACHE_TYPES),
    }
    return LlamaConfig(**{**values, **more})


def seed_of(seed: int | None) -> int:
    """Return a seed in which -1 stands for any."""
    return -1 if seed is None or seed == DEFAULT_SEED else seed


def _named(argument: str, value: Any, names: Mapping[int, str | None]) -> str | None:
    """Return the name of a value that C's enum has; a name stays as it is."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, int) or value not in names:
        known = ", ".join(f"{number} = {name}" for number, name in names.items())
        raise ValidationError(f"{argument}={value!r} is not one of {known}")
    return names[value]
