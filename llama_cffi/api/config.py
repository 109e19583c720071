"""LlamaConfig: the settings of a `Llama`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ..errors import ValidationError
from ..generation.context_policy import DROP_TURNS, POLICIES
from ..memory_plan import fit, options_of
from ..validation import check_choice, check_int, checked_arguments, reject_unknown, shown

if TYPE_CHECKING:
    from ..binding.context.params import ContextOptions
    from ..binding.model.files import Override
    from ..generation.media import ProjectorSource
    from ..generation.model_source import ModelOptions, ModelSource
    from ..progress import Progress
    from ..scheduler import Drafter

__all__ = [
    "MODEL_FIELDS",
    "LlamaConfig",
    "LlamaOptions",
    "MoreLlamaOptions",
    "config_of",
    "fit_config",
]

_ALIASES = {"parallel": "n_parallel", "pool_size": "n_parallel"}

_CONTEXT = (
    "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "offload_kqv", "flash_attn", "type_k", "type_v",
    "swa_full", "op_offload", "attention", "rope_scaling", "yarn_ext_factor", "yarn_attn_factor",
    "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx", "no_perf",
)  # fmt: skip
_ZERO_IS_NONE = ("rope_freq_base", "rope_freq_scale")
_NONE_IS_ZERO = ("n_threads", "n_threads_batch")
MODEL_FIELDS = (
    "n_gpu_layers", "use_mmap", "use_mlock", "check_tensors", "check", "main_gpu", "tensor_split",
    "split_mode", "n_cpu_moe", "override_tensors", "kv_overrides", "progress",
)  # fmt: skip
_POOLING = ("none", "mean", "cls", "last", "rank")
_LEAST = {
    "n_ctx": 0, "n_batch": 1, "n_ubatch": 1, "n_seq_max": 1, "n_parallel": 1, "cache_ram": -1,
    "cache_disk": -1, "n_kv_tokens": 1, "image_min_tokens": 1, "image_max_tokens": 1,
}  # fmt: skip
# What a field's type is at run time, and in words.
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "int": (Integral, "an integer"),
    "bool": (Integral, "True or False"),
    "float": (Real, "a number"),
    "str": (str, "a str"),
    "os.PathLike[str]": (os.PathLike, "a path"),
    "ProjectorSource": ((str, os.PathLike), "a path"),
    "Sequence[float]": (Sequence, "a list of numbers"),
    "Mapping[str, Override]": (Mapping, "a dict of metadata keys and values"),
    "Mapping[str, float]": (Mapping, "a dict of LoRA files and scales"),
    "Mapping[str, str]": (Mapping, "a dict of patterns and devices"),
    "Literal['auto']": (str, "'auto'"),
    "None": (type(None), "None"),
}


class MoreLlamaOptions(TypedDict, total=False):
    """`LlamaOptions` except `n_parallel`."""

    n_ctx: int | Literal["auto"] | None
    n_batch: int
    n_ubatch: int | None
    n_seq_max: int
    n_threads: int | None
    n_threads_batch: int | None
    n_gpu_layers: int | Literal["auto"]
    offload_kqv: bool
    embeddings: bool
    pooling: str | None
    chat_format: str | None
    mmproj: ProjectorSource | None
    image_min_tokens: int | None
    image_max_tokens: int | None
    seed: int
    use_mmap: bool
    use_mlock: bool
    check_tensors: bool
    check: str | None
    main_gpu: int
    tensor_split: Sequence[float] | None
    split_mode: str | None
    n_cpu_moe: int
    override_tensors: Mapping[str, str] | None
    kv_overrides: Mapping[str, Override] | None
    flash_attn: bool | None
    type_k: str | None
    type_v: str | None
    swa_full: bool | None
    op_offload: bool | None
    attention: str | None
    rope_scaling: str | None
    rope_freq_base: float
    rope_freq_scale: float
    yarn_ext_factor: float | None
    yarn_attn_factor: float | None
    yarn_beta_fast: float | None
    yarn_beta_slow: float | None
    yarn_orig_ctx: int | None
    no_perf: bool
    context_policy: str
    n_kv_tokens: int | None
    draft: Drafter | None
    cache_ram: int | None
    cache_dir: str | os.PathLike[str] | None
    cache_disk: int
    lora_path: str | os.PathLike[str] | None
    lora_scale: float
    adapters: Mapping[str, float] | None
    check_memory: bool
    progress: Progress
    logits_all: bool
    verbose: bool


class LlamaOptions(MoreLlamaOptions, total=False):
    """The fields of `LlamaConfig` as arguments of `Llama`."""

    n_parallel: int


@dataclass
class LlamaConfig:
    """Settings of a `Llama`; each field is an argument of `Llama` too.

    Attributes:
        model_path: A GGUF file, `hf:owner/repo:file`, or a loaded `Model`.
        n_ctx: Context size: tokens of prompt and answer together; 0: the model's; None: 4096, or
            the model's if that is less; "auto": the largest up to the model's that fits into the
            free memory, see `plan`. More than the model was trained for gives a warning.
        n_batch: Most prompt tokens per decode.
        n_ubatch: Most tokens computed together; None: see `ContextParams`.
        n_seq_max: Number of sequences in the KV cache; generation uses the first.
        n_threads: Number of threads; 0: see `ContextParams`.
        n_threads_batch: Number of threads for prompts; 0: n_threads.
        n_gpu_layers: Layers on the GPU; -1: all; "auto": as many as fit, see `plan`.
        offload_kqv: Keep the KV cache and attention on the GPU.
        embeddings: Enable `embed` and `rerank`.
        pooling: See `Embedder`; None: the model's, or `mean` if it has none, so that a text has one
            vector.
        chat_format: Name of a built-in chat template of llama.cpp, or source of a Jinja template;
            None: the model's own template.
        mmproj: The projector of a model that takes pictures or sounds: a GGUF file or
            `hf:owner/repo:file`; None: the one beside the model or in its repository on the hub,
            loaded with the first picture or sound.
        image_min_tokens: Least tokens of a picture, for models with pictures of any size; None:
            the model's.
        image_max_tokens: Most tokens of a picture, likewise.
        seed: Makes the answers reproducible: each call without a seed draws the next one of the
            sequence that begins here; -1: a random one.
        use_mmap: Map the file instead of reading it.
        use_mlock: Keep the weights in RAM.
        check_tensors: See `Model`.
        check: See `Model`.
        main_gpu: See `Model`.
        tensor_split: See `Model`.
        split_mode: See `Model`.
        n_cpu_moe: See `Model`.
        override_tensors: See `Model`.
        kv_overrides: See `Model`.
        flash_attn: See `ContextParams`.
        type_k: See `ContextParams`.
        type_v: See `ContextParams`.
        swa_full: See `ContextParams`.
        op_offload: See `ContextParams`.
        attention: See `ContextParams`.
        rope_scaling: See `ContextParams`.
        rope_freq_base: See `ContextParams`; 0: the model's.
        rope_freq_scale: See `ContextParams`; 0: the model's.
        yarn_ext_factor: See `ContextParams`.
        yarn_attn_factor: See `ContextParams`.
        yarn_beta_fast: See `ContextParams`.
        yarn_beta_slow: See `ContextParams`.
        yarn_orig_ctx: See `ContextParams`.
        no_perf: Do not measure the timings of `perf`.
        context_policy: What to do when the context is full; see `Engine`. `drop_oldest_turns` drops
            the oldest turns of conversations and refuses other prompts that are too long.
        n_parallel: Number of answers generated together, in one batch, each with n_ctx tokens; see
            `InferenceEngine`. Above 1, the methods for state and KV cache are not available.
        n_kv_tokens: Tokens of the KV cache that all answers share, for prompts of very different
            lengths, see `InferenceEngine`; None: n_ctx for each of n_parallel. The methods for
            state and KV cache are not available with it.
        draft: Speculative decoding: `PromptLookup()` or `DraftModel(path)` propose draft tokens,
            for the same answers in fewer steps. The methods for state and KV cache are not
            available then.
        cache_ram: MiB of RAM for prompts that leave the KV cache, see `InferenceEngine`; 0: none,
            -1: no limit, None: chosen by the machine's memory, and none for one answer at a time.
            The methods for state and KV cache are not available with it, nor with `cache_dir`.
        cache_dir: A folder that keeps these prompts on disk, beyond the end of the process.
        cache_disk: Most MiB of the files in `cache_dir`; -1: no limit.
        lora_path: A LoRA adapter to load.
        lora_scale: Scale of the adapter.
        adapters: LoRA adapters to load, and their scales. As with *draft*, the methods for state
            and KV cache are not available then.
        check_memory: Refuse to load what cannot fit into the memory, and warn of what may not, see
            `plan`.
        progress: Progress of loading: True shows a bar on stderr, a function gets 0.0 to 1.0; see
            `Model`.
        logits_all: Accepted for compatibility; log-probabilities do not need it.
        verbose: Accepted for compatibility. Messages of llama.cpp go to the logger
            `llama_cffi.native`; nothing is printed. See `set_log_level`.

    Raises:
        ValidationError: A field has the wrong type, or a count is too small.
    """

    model_path: ModelSource | None = None
    n_ctx: int | Literal["auto"] | None = None
    n_batch: int = 2048
    n_ubatch: int | None = None
    n_seq_max: int = 1
    n_threads: int | None = 0
    n_threads_batch: int | None = 0
    n_gpu_layers: int | Literal["auto"] = -1
    offload_kqv: bool = True
    embeddings: bool = False
    pooling: str | None = None
    chat_format: str | None = None
    mmproj: ProjectorSource | None = None
    image_min_tokens: int | None = None
    image_max_tokens: int | None = None
    seed: int = -1
    use_mmap: bool = True
    use_mlock: bool = False
    check_tensors: bool = False
    check: str | None = None
    main_gpu: int = 0
    tensor_split: Sequence[float] | None = None
    split_mode: str | None = None
    n_cpu_moe: int = 0
    override_tensors: Mapping[str, str] | None = None
    kv_overrides: Mapping[str, Override] | None = None
    flash_attn: bool | None = None
    type_k: str | None = None
    type_v: str | None = None
    swa_full: bool | None = None
    op_offload: bool | None = None
    attention: str | None = None
    rope_scaling: str | None = None
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    yarn_orig_ctx: int | None = None
    no_perf: bool = False
    context_policy: str = "error"
    n_parallel: int = 1
    n_kv_tokens: int | None = None
    draft: Drafter | None = None
    cache_ram: int | None = None
    cache_dir: str | os.PathLike[str] | None = None
    cache_disk: int = 8192
    lora_path: str | os.PathLike[str] | None = None
    lora_scale: float = 1.0
    adapters: Mapping[str, float] | None = None
    check_memory: bool = True
    progress: Progress = None
    logits_all: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value, declared = getattr(self, field.name), str(field.type)
            kinds = [_KINDS.get(kind, (object, kind)) for kind in declared.split(" | ")]
            fits = isinstance(value, tuple(kind for kind, _ in kinds))
            if declared.startswith("Sequence"):
                fits &= not isinstance(value, str)
            if "'auto'" in declared and isinstance(value, str):
                fits = value == "auto"
            if not fits or (declared.startswith("bool") and value not in (False, True, None)):
                words = " or ".join(text for _, text in kinds).replace(
                    "True or False or", "True, False or"
                )
                raise ValidationError(f"{field.name} must be {words}, got {shown(value)}")
        for name, low in _LEAST.items():
            if (value := getattr(self, name)) not in (None, "auto"):
                check_int(name, value, low)

        if self.pooling is not None:
            check_choice("pooling", self.pooling, _POOLING)
        check_choice("context_policy", self.context_policy, (*POLICIES, DROP_TURNS))

    def context_options(self) -> ContextOptions:
        """Return the fields that are arguments of `Context`."""
        found: Any = {
            **{name: getattr(self, name) for name in _CONTEXT},
            **{name: getattr(self, name) or None for name in _ZERO_IS_NONE},
            **{name: getattr(self, name) or 0 for name in _NONE_IS_ZERO},
        }
        return found  # type: ignore[no-any-return]

    def model_options(self) -> ModelOptions:
        """Return the fields that are arguments of `Model`."""
        found: Any = {name: getattr(self, name) for name in MODEL_FIELDS}
        found["load_mtp"] = getattr(self.draft, "reads_hidden", False)
        return found  # type: ignore[no-any-return]


if not TYPE_CHECKING:  # for a misspelt field, the error that `Llama` raises
    LlamaConfig.__init__ = checked_arguments()(LlamaConfig.__init__)


def config_of(config: LlamaConfig | None, options: Mapping[str, Any]) -> LlamaConfig:
    """Return *config*, or the defaults, with *options* overriding its fields.

    Raises:
        UnknownOptionError: A field does not exist; the message suggests the nearest name.
        ValidationError: A field has the wrong type.
    """
    if config is not None and not isinstance(config, LlamaConfig):
        hint = f"; did you mean n_ctx={config}?" if isinstance(config, int) else ""
        raise ValidationError(f"config must be a LlamaConfig, got {shown(config)}{hint}")
    options = {_ALIASES.get(name, name): value for name, value in options.items()}
    reject_unknown(options, [field.name for field in fields(LlamaConfig)], "Llama", _ALIASES)
    return replace(config or LlamaConfig(), **options)


def fit_config(source: ModelSource, config: LlamaConfig) -> tuple[ModelSource, LlamaConfig]:
    """Return the model and *config* with what is `"auto"` chosen by the free memory.

    Args:
        source: The model.
        config: The settings.

    Returns:
        The model, of which a name on the hub has become a path, and the settings.

    Raises:
        OutOfMemoryError: The model cannot fit, and `check_memory` is on.
        ModelLoadError: The file is missing or damaged.
        FetchError: The model cannot be fetched.
    """
    fitted = fit(source, options_of(config), check_memory=config.check_memory)
    if (fitted.n_ctx, fitted.n_gpu_layers) == (config.n_ctx, config.n_gpu_layers):
        return fitted.source, config
    return fitted.source, replace(config, n_ctx=fitted.n_ctx, n_gpu_layers=fitted.n_gpu_layers)
