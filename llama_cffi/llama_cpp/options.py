"""Arguments: llama-cpp-python's enums and names become the fields of `LlamaConfig`.

The `TypedDict`s are the options that it does not have; tests hold them against those of `Llama`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ..api import config
from ..api.openai_options import OpenAIOptions
from ..errors import ValidationError
from ..validation import check_int

if TYPE_CHECKING:
    import os

    from ..binding.sampling.triggers import TriggerLike
    from ..generation.media import ProjectorSource
    from ..generation.prompt_progress import PromptProgress
    from ..generation.sampling_params import SamplingParams
    from ..generation.sequence import StoppingCriterion
    from ..grammars import LlamaGrammar
    from ..progress import Progress
    from ..scheduler import Drafter

__all__ = [
    "DEFAULT_SEED",
    "POOLING",
    "MoreChatCompletionOptions",
    "MoreCompletionOptions",
    "MoreLlamaOptions",
    "check_tfs",
    "config_of",
    "max_tokens_of",
    "seed_of",
]

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

# The defaults of these mean: the value of the model or of the build.
_YARN = {
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": 1.0,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_orig_ctx": 0,
}
_ENUMS: Mapping[str, tuple[str, Mapping[int, str | None]]] = {  # -> field, names
    "pooling_type": ("pooling", POOLING),
    "split_mode": ("split_mode", SPLIT_MODES),
    "rope_scaling_type": ("rope_scaling", ROPE_SCALINGS),
    "attention_type": ("attention", ATTENTIONS),
    "type_k": ("type_k", CACHE_TYPES),
    "type_v": ("type_v", CACHE_TYPES),
}
_REFUSED = {
    "numa": "start the program under numactl, as `numactl --interleave=all python ...`",
    "lora_base": "llama.cpp removed it; lora_path alone is enough",
    "rpc_servers": "the layers of a model cannot be on other machines",
    "device": "choose with n_gpu_layers, main_gpu and split_mode where the layers go",
}


class OldLlamaOptions(TypedDict, total=False):
    """Arguments of older versions of llama-cpp-python; ignored, as in its newest.

    `rpc_servers` must be None.
    """

    n_parts: int
    f16_kv: bool
    low_vram: bool
    mul_mat_q: bool
    n_gqa: int | None
    rms_norm_eps: float | None
    rpc_servers: str | None


class MoreLlamaOptions(OldLlamaOptions, total=False):
    """Fields of `LlamaConfig` that llama-cpp-python does not have, and `OldLlamaOptions`.

    `device` must be None.
    """

    n_seq_max: int
    check_tensors: bool
    check: str | None
    embeddings: bool
    pooling: str | None
    attention: str | None
    rope_scaling: str | None
    context_policy: str
    n_parallel: int
    n_kv_tokens: int | None
    draft: Drafter | None
    adapters: Mapping[str, float] | None
    check_memory: bool
    progress: Progress
    cache_ram: int | None
    cache_dir: str | os.PathLike[str] | None
    cache_disk: int
    n_cpu_moe: int
    override_tensors: Mapping[str, str] | None
    mmproj: ProjectorSource | None
    image_min_tokens: int | None
    image_max_tokens: int | None
    device: None


class MoreGenerationOptions(TypedDict, total=False):
    """Options of `llama_cffi.GenerationOptions` that llama-cpp-python does not have."""

    sampling: SamplingParams | Literal["model"] | None
    top_n_sigma: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    dynatemp_range: float | None
    dynatemp_exponent: float | None
    adaptive_target: float | None
    adaptive_decay: float | None
    penalty_last_n: int | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    dry_sequence_breakers: Sequence[str] | None
    min_keep: int | None
    ignore_eos: bool | None
    grammar_root: str | None
    grammar_triggers: Sequence[TriggerLike] | None
    structured: LlamaGrammar | None
    structured_after: str | None
    samplers: str | Sequence[str] | None
    timeout_s: float | None
    context_policy: str | None
    cache_prompt: bool | None
    reset_kv_cache: bool | None
    special: bool | None
    suppress_think: bool | None
    turn_stops: Sequence[str | bytes] | None
    json_stop: Sequence[str] | None
    skip_forced: bool | None
    post_sampling_probs: bool | None
    prompt_progress: Callable[[PromptProgress], object] | None
    n: int | None


class MoreCompletionOptions(MoreGenerationOptions, OpenAIOptions, total=False):
    """Options of `llama_cffi.CompletionOptions` that llama-cpp-python does not have."""

    best_of: int | None


class MoreChatCompletionOptions(MoreGenerationOptions, OpenAIOptions, total=False):
    """Options of `llama_cffi.ChatCompletionOptions` that llama-cpp-python does not have."""

    thinking: bool | None
    thinking_budget: int | None
    reasoning_effort: str | None
    chat_template_kwargs: Mapping[str, object] | None
    continue_final_message: bool | None
    parallel_tool_calls: bool | None
    max_completion_tokens: int | None
    stopping_criteria: Sequence[StoppingCriterion] | StoppingCriterion | None
    modalities: Sequence[str] | None
    verbosity: str | None


def config_of(arguments: Mapping[str, Any], more: Mapping[str, Any]) -> config.LlamaConfig:
    """Return the configuration that the constructor's arguments describe.

    Args:
        arguments: llama-cpp-python's, all of them.
        more: `MoreLlamaOptions`.

    Raises:
        ValidationError: An argument is out of range or not supported.
        UnknownOptionError: An argument does not exist; it is a TypeError.
    """
    given = {**arguments, **more}
    for name, advice in _REFUSED.items():
        if given.get(name):
            raise ValidationError(f"{name}={given[name]!r} is not supported: {advice}")
    n_ctx = check_int("n_ctx", given["n_ctx"], 0)
    n_batch = check_int("n_batch", given["n_batch"] or 512, 1)
    if n_ctx:
        n_batch = min(n_ctx, n_batch)
    same = arguments.keys() & config.LlamaOptions.__annotations__
    ignored = {*_REFUSED, *OldLlamaOptions.__annotations__}
    options = {
        **{name: given[name] for name in same},
        **{name: None for name, default in _YARN.items() if given[name] == default},
        **{
            field: _enum_name(argument, given[argument], names)
            for argument, (field, names) in _ENUMS.items()
        },
        "chat_format": None,  # `Llama` reads it at every call
        "n_ctx": n_ctx,
        "n_batch": n_batch,
        "n_ubatch": given["n_ubatch"],
        "seed": seed_of(given["seed"]),
        "embeddings": given["embedding"],
        **{name: value for name, value in more.items() if name not in ignored},
    }
    return config.config_of(None, options)


def seed_of(seed: int | None) -> int:
    """Return -1, which draws a seed, for None and LLAMA_DEFAULT_SEED."""
    return -1 if seed is None or seed == DEFAULT_SEED else seed


def max_tokens_of(max_tokens: int | None) -> int | None:
    """Return None, no limit, for 0 and less."""
    return None if max_tokens is None or max_tokens <= 0 else max_tokens


def check_tfs(tfs_z: float | None) -> None:
    """Refuse tail-free sampling, which llama.cpp removed in 2024.

    Raises:
        ValidationError: It is on.
    """
    if tfs_z not in (None, 1.0):
        raise ValidationError(
            f"tfs_z={tfs_z!r}: llama.cpp has no tail-free sampling any more; use min_p"
        )


def _enum_name(argument: str, value: object, names: Mapping[int, str | None]) -> str | None:
    """Return the name of a value of C's enum; a name is returned unchanged."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, int) or value not in names:
        known = ", ".join(f"{number} = {name}" for number, name in names.items())
        raise ValidationError(f"{argument}={value!r} must be one of {known}")
    return names[value]
