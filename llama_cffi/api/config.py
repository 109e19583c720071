"""LlamaConfig: how a `Llama` is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypedDict

from ..errors import ValidationError
from ..validation import reject_unknown

if TYPE_CHECKING:
    from ..binding.context.params import ContextOptions
    from ..binding.model.files import Override
    from ..generation.model_source import ModelSource
    from ..scheduler import Drafter

__all__ = ["LlamaConfig", "LlamaOptions", "MoreLlamaOptions", "config_of"]

_ALIASES = {"parallel": "n_parallel", "pool_size": "n_parallel"}

_CONTEXT = (
    "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "offload_kqv", "flash_attn", "type_k", "type_v",
    "swa_full", "op_offload", "attention", "rope_scaling", "yarn_ext_factor", "yarn_attn_factor",
    "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx", "no_perf",
)  # fmt: skip
_ZERO_IS_NONE = ("rope_freq_base", "rope_freq_scale")
_NONE_IS_ZERO = ("n_threads", "n_threads_batch")
_KINDS: dict[str, type] = {
    "int": Integral,
    "bool": Integral,
    "float": Real,
    "str": str,
    "os.PathLike[str]": os.PathLike,
    "Sequence[float]": Sequence,
    "Mapping[str, Override]": Mapping,
    "None": type(None),
}


class MoreLlamaOptions(TypedDict, total=False):
    """`LlamaOptions` without `n_parallel`."""

    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    n_threads: int | None
    n_threads_batch: int | None
    n_gpu_layers: int
    offload_kqv: bool
    embeddings: bool
    pooling: str | None
    chat_format: str | None
    seed: int
    use_mmap: bool
    use_mlock: bool
    main_gpu: int
    tensor_split: Sequence[float] | None
    split_mode: str | None
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
    draft: Drafter | None
    lora_path: str | os.PathLike[str] | None
    lora_scale: float
    logits_all: bool
    verbose: bool


class LlamaOptions(MoreLlamaOptions, total=False):
    """The fields of `LlamaConfig` as arguments of `Llama`."""

    n_parallel: int


@dataclass
class LlamaConfig:
    """What `Llama` is made with; each field is an argument of `Llama`, too.

    Attributes:
        model_path: The GGUF file, or `hf:owner/repo:file`.
        n_ctx: Tokens of prompt and answer together; 0 = the model's own length.
        n_batch: Most prompt tokens evaluated in one call.
        n_ubatch: Most tokens computed at once.
        n_seq_max: Number of independent sequences in the cache; generation uses the first.
        n_threads: 0 = physical cores.
        n_threads_batch: Threads for prompts; 0 = n_threads.
        n_gpu_layers: Layers on the GPU; -1 = all.
        offload_kqv: Whether the cache and what reads it go to the GPU, too.
        embeddings: Whether `embed` and `rerank` can be used.
        pooling: See `Embedder`; None = the model's own, and `mean` where it has none, so that a
            text has one vector.
        chat_format: The name of one of llama.cpp's built-in chat templates, or the source of a
            Jinja template; None = the model's own.
        seed: For calls that give none; -1 draws one.
        use_mmap: Map the file instead of reading it.
        use_mlock: Keep the weights in RAM.
        main_gpu: See `Model`.
        tensor_split: See `Model`.
        split_mode: See `Model`.
        kv_overrides: See `Model`.
        flash_attn: See `ContextParams`; None = the build's choice.
        type_k: See `ContextParams`.
        type_v: See `ContextParams`.
        swa_full: See `ContextParams`.
        op_offload: See `ContextParams`.
        attention: See `ContextParams`.
        rope_scaling: See `ContextParams`.
        rope_freq_base: See `ContextParams`; 0 = the model's.
        rope_freq_scale: See `ContextParams`; 0 = the model's.
        yarn_ext_factor: See `ContextParams`.
        yarn_attn_factor: See `ContextParams`.
        yarn_beta_fast: See `ContextParams`.
        yarn_beta_slow: See `ContextParams`.
        yarn_orig_ctx: See `ContextParams`.
        no_perf: Do not measure what `perf` shows.
        context_policy: What happens when the context is full; see `Engine`. With
            `drop_oldest_turns` conversations lose their oldest turns; other prompts are refused.
        n_parallel: How many answers are generated together, in one batch, each with n_ctx tokens;
            see `InferenceEngine`. State and cache cannot be touched by hand then.
        draft: Guesses ahead: `PromptLookup()` or `DraftModel(path)`. The same answers in fewer
            steps; state and cache cannot be touched by hand then, either.
        lora_path: An adapter that is on from the start.
        lora_scale: Its strength.
        logits_all: Accepted and not needed: log-probabilities are read token by token.
        verbose: Accepted; messages of C always go to the logger `llama_cffi.native`, and nothing
            is ever printed. See `set_log_level`.

    Raises:
        ValidationError: A field is of the wrong type.
    """

    model_path: ModelSource | None = None
    n_ctx: int = 4096
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_threads: int | None = 0
    n_threads_batch: int | None = 0
    n_gpu_layers: int = -1
    offload_kqv: bool = True
    embeddings: bool = False
    pooling: str | None = None
    chat_format: str | None = None
    seed: int = -1
    use_mmap: bool = True
    use_mlock: bool = False
    main_gpu: int = 0
    tensor_split: Sequence[float] | None = None
    split_mode: str | None = None
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
    draft: Drafter | None = None
    lora_path: str | os.PathLike[str] | None = None
    lora_scale: float = 1.0
    logits_all: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value, wanted = getattr(self, field.name), str(field.type)
            kinds = tuple(_KINDS.get(kind, object) for kind in wanted.split(" | "))
            fits = isinstance(value, kinds)
            if not fits or (wanted.startswith("bool") and value not in (False, True, None)):
                raise ValidationError(f"{field.name}={value!r} is not {wanted}")

    def context_options(self) -> ContextOptions:
        """Return the fields that are arguments of `Context`."""
        found: Any = {
            **{name: getattr(self, name) for name in _CONTEXT},
            **{name: getattr(self, name) or None for name in _ZERO_IS_NONE},
            **{name: getattr(self, name) or 0 for name in _NONE_IS_ZERO},
        }
        return found  # type: ignore[no-any-return]


def config_of(config: LlamaConfig | None, options: Mapping[str, Any]) -> LlamaConfig:
    """Return *config*, or the defaults, with *options* in place of its fields.

    Raises:
        UnknownOptionError: There is no such field; the message suggests the nearest one.
        ValidationError: A field is of the wrong type.
    """
    if config is not None and not isinstance(config, LlamaConfig):
        raise ValidationError(f"config must be a LlamaConfig, got {config!r}")
    options = {_ALIASES.get(name, name): value for name, value in options.items()}
    reject_unknown(options, [field.name for field in fields(LlamaConfig)], "Llama")
    return replace(config or LlamaConfig(), **options)
