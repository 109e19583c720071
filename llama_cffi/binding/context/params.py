"""The parameters of a context, checked before C sees them.

C ends the process on many combinations that it does not check (found in its sources and by trying
each), so they are refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from ...errors import OutOfMemoryError, ValidationError
from ...validation import check_bool, check_choice, check_float, check_int, check_type
from .. import compat
from ..memory_limits import check_bytes
from ..processors import thread_count
from .defaults import ContextDefaults, context_defaults
from .memory_estimate import CACHE_TYPES, context_bytes, memory_bytes

if TYPE_CHECKING:
    from ..loading.library import Library
    from ..model.kind import ModelKind
    from ..model.model import Model

__all__ = [
    "ContextOptions",
    "ContextParams",
    "check_attention",
    "check_embeddings",
    "defaults_of",
    "estimate_context_bytes",
    "resolve",
]

_FLOATS = ("f32", "f16", "bf16")
_BLOCK = 32
_GRAPH_BYTES = 96 * 2**20  # tensors of the graph and least buffers: measured 25 to 62 MiB
_FLAGS = (
    "check_memory", "embeddings", "flash_attn", "kv_unified", "swa_full", "offload_kqv",
    "op_offload", "no_perf", "mtp",
)  # fmt: skip
_MEAN, _RANK = 1, 4  # LLAMA_POOLING_TYPE_*
_WINDOWED = ("cohere2", "gemma2", "gemma3", "phi3")  # in builds before b5590


class MoreContextOptions(TypedDict, total=False):
    """The fields of `ContextParams` that are not about size and threads."""

    n_threads_batch: int
    embeddings: bool | None
    pooling: str | None
    attention: str | None
    flash_attn: bool | None
    kv_unified: bool | None
    swa_full: bool | None
    type_k: str | None
    type_v: str | None
    offload_kqv: bool | None
    op_offload: bool | None
    rope_scaling: str | None
    rope_freq_base: float | None
    rope_freq_scale: float | None
    yarn_ext_factor: float | None
    yarn_attn_factor: float | None
    yarn_beta_fast: float | None
    yarn_beta_slow: float | None
    yarn_orig_ctx: int | None
    no_perf: bool
    mtp: bool


class ContextOptions(MoreContextOptions, total=False):
    """The fields of `ContextParams`."""

    n_ctx: int
    n_batch: int
    n_ubatch: int | None
    n_seq_max: int
    n_threads: int
    check_memory: bool


@dataclass(frozen=True)
class ContextParams:
    """Parameters of a context; None is the default of the model or the build.

    Attributes:
        n_ctx: Context size: tokens that the cache holds over all sequences; 0 = the model's
            training length. C rounds it up (to 32 or 256, per sequence unless they share a cache).
        n_batch: Most tokens in one `decode`.
        n_ubatch: Most tokens computed together; at most n_batch. Models and poolings that need
            a whole sequence take no more than this in one batch. None: 512, or what `tune` has
            kept.
        n_seq_max: Number of independent sequences.
        n_threads: Threads for single tokens, at most the usable processors; 0: those of
            LLAMA_CFFI_N_THREADS, else what `tune` has kept, else the physical cores.
        n_threads_batch: Threads for prefill; 0 = n_threads, or what `tune` has kept.
        embeddings: Whether `decode` computes embeddings; None = only for encoders.
        pooling: How the embeddings of a sequence are combined: `none`, `mean`, `cls`, `last`, or
            `rank` for the scores of a reranker.
        attention: `causal` or `non_causal`.
        flash_attn: Flash attention, on or off; None: what `tune` has kept, else off for heads of
            less than 64 on CPUs with AVX-512, where it is slow, else the build's choice.
        kv_unified: One cache for all sequences; None = only if the model needs it.
        swa_full: Keep positions that left the sliding window.
        type_k: Type of the keys: `f32`, `f16` (C's default), `bf16`, `q8_0`, `q5_1`, `q5_0`,
            `q4_1`, `q4_0` or `iq4_nl`.
        type_v: Type of the values; quantized types need flash attention.
        offload_kqv: Keep the cache on the GPU.
        op_offload: Compute large batches on the GPU even if the weights are not there.
        rope_scaling: `none`, `linear`, `yarn` or `longrope`.
        rope_freq_base: RoPE base frequency.
        rope_freq_scale: RoPE frequency factor, 0.5 = twice the context.
        yarn_ext_factor: YaRN extrapolation mix.
        yarn_attn_factor: YaRN magnitude.
        yarn_beta_fast: YaRN low correction dimension.
        yarn_beta_slow: YaRN high correction dimension.
        yarn_orig_ctx: Tokens of the original context.
        no_perf: Do not measure times for `Context.perf`.
        mtp: Run the model's multi-token prediction head instead of the model. Each token of a
            batch then needs the model's last hidden state of the token before it, which a context
            with `embeddings` returns.
        check_memory: Refuse a context that is larger than the memory of this machine.
    """

    n_ctx: int = 0
    n_batch: int = 2048
    n_ubatch: int | None = None
    n_seq_max: int = 1
    n_threads: int = 0
    n_threads_batch: int = 0
    embeddings: bool | None = None
    pooling: str | None = None
    attention: str | None = None
    flash_attn: bool | None = None
    kv_unified: bool | None = None
    swa_full: bool | None = None
    type_k: str | None = None
    type_v: str | None = None
    offload_kqv: bool | None = None
    op_offload: bool | None = None
    rope_scaling: str | None = None
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    yarn_orig_ctx: int | None = None
    no_perf: bool = True
    mtp: bool = False
    check_memory: bool = True


def resolve(params: ContextParams, model: Model, kind: ModelKind) -> dict[str, Any]:
    """Check *params* for *model* and return what `compat.context_params` takes.

    Raises:
        ValidationError: A value is out of range or not supported by the model or the build.
        OutOfMemoryError: There is not enough memory, or a limit leaves too little to this process.
    """
    library, name = model.library, model.path.name
    counts = compat.layer_counts(library, model.gguf.architecture)
    if counts and model.n_layer not in counts:
        raise ValidationError(
            f"{name} has {model.n_layer} layers and this build supports this architecture only "
            f"with {', '.join(map(str, counts))}; {compat.newer_build(library)}"
        )
    for flag in _FLAGS:
        if (value := getattr(params, flag)) is not None:
            check_bool(flag, value)
    embeddings = not kind.logits if params.embeddings is None else bool(params.embeddings)
    defaults = defaults_of(model, kind, embeddings=embeddings)
    values = _sizes(params, model, defaults)
    attention = _enum_value(library, "llama_attention_type", "attention", params.attention)
    default = "causal" if kind.causal else "non_causal"
    check_attention((params.attention or default) == "causal", model, kind)
    pooling = _enum_value(library, "llama_pooling_type", "pooling", params.pooling)
    pooled = kind.pooling if pooling is None else pooling
    check_embeddings(embeddings, pooled, kind, name)
    if embeddings and pooled in (_MEAN, _RANK) and values["n_ubatch"] % values["n_seq_max"]:
        raise ValidationError(  # C reserves for more tokens than outputs: ggml_can_mul_mat(a, b)
            f"n_ubatch={values['n_ubatch']} must be a multiple of n_seq_max={values['n_seq_max']} "
            "with pooling mean or rank"
        )
    kv_unified = params.kv_unified
    if kind.has_encoder and kind.has_decoder and values["n_seq_max"] > 1:  # !equal_seqs()
        if kv_unified is False:
            raise ValidationError(f"{name} has an encoder and a decoder; it needs kv_unified=True")
        kv_unified = True
    if model.is_hybrid and values["n_seq_max"] > 1 and not compat.separates_hybrids(library):
        if kv_unified is False:
            raise ValidationError(
                f"{name} is a hybrid of attention and recurrent layers; this build needs "
                f"kv_unified=True for it; {compat.newer_build(library)}"
            )
        kv_unified = True
    values |= {
        "embeddings": embeddings,
        "pooling_type": pooling,
        "attention_type": attention,
        "kv_unified": kv_unified,
        "swa_full": params.swa_full,
        "offload_kqv": params.offload_kqv,
        "op_offload": params.op_offload,
        "no_perf": bool(params.no_perf),
        "ctx_type": _context_type(params, model),
        **_cache_types(params, kind, model, defaults.flash_attn),
        **_rope(params, library),
    }
    need = context_bytes(
        model.gguf, values["n_ctx"], values["n_ubatch"], params.type_k, params.type_v
    )
    have = memory_bytes(library)
    if need > have and params.check_memory:
        raise OutOfMemoryError(
            f"a context of n_ctx={values['n_ctx']} takes at least {need / 2**30:.1f} GiB and there "
            f"are {have / 2**30:.1f} GiB of memory; use a smaller n_ctx"
        )
    check_bytes(need + _GRAPH_BYTES, f"a context of n_ctx={values['n_ctx']}")
    return values


def defaults_of(model: Model, kind: ModelKind, *, embeddings: bool) -> ContextDefaults:
    """Return what a context of *model* gets where its parameters are open."""
    return context_defaults(
        model.library,
        model.gguf,
        offloads=model.offloads,
        generates=kind.logits and not embeddings,
    )


def estimate_context_bytes(
    model: Model,
    n_ctx: int = 0,
    *,
    n_ubatch: int = 512,
    type_k: str | None = None,
    type_v: str | None = None,
) -> int:
    """Return the bytes that a context takes at least: KV cache, attention mask, bookkeeping.

    The compute buffers, which depend on the build and the device, come on top: mostly some hundred
    MB. Sliding windows, latent attention and recurrent layers count as a tenth of a full cache.

    Args:
        model: The model; one loaded with `vocab_only=True` will do.
        n_ctx: Tokens in the cache, of all sequences together; 0 = as many as in training.
        n_ubatch: See `Context`.
        type_k: See `Context`.
        type_v: See `Context`.

    Raises:
        ValidationError: An argument is out of range, or such a type does not exist.
    """
    from ..model.model import Model  # which imports this module

    check_type("model", model, Model)
    trained = model.gguf.values.get(f"{model.gguf.architecture}.context_length", 0)
    n_ctx = check_int("n_ctx", n_ctx, 0) or int(trained)
    n_ubatch = min(n_ctx, check_int("n_ubatch", n_ubatch, 1))
    for field, name in (("type_k", type_k), ("type_v", type_v)):
        if name is not None:
            check_choice(field, name, CACHE_TYPES)
    return context_bytes(model.gguf, n_ctx, n_ubatch, type_k, type_v)


def check_embeddings(embeddings: bool, pooling: int, kind: ModelKind, name: str) -> None:
    """Refuse a setting of `embeddings` that C would abort on.

    Raises:
        ValidationError: Off for an encoder, on for a model with encoder and decoder, or with a
            pooling that the model does not support.
    """
    if embeddings and pooling not in (*range(-1, 4), *([_RANK] if kind.ranks else [])):
        raise ValidationError(
            f"{name} has no classification head (cls.*), which pooling='rank' needs"
            if pooling == _RANK
            else f"{name} does not support pooling {pooling}"
        )
    if not embeddings and not kind.logits:  # missing result_output tensor
        raise ValidationError(f"{name} is an encoder: it computes only embeddings")
    if embeddings and kind.has_encoder and kind.has_decoder:  # missing result_norm tensor
        raise ValidationError(
            f"{name} has an encoder and a decoder: the encoder's output goes to the decoder; "
            "create the context without embeddings"
        )


def check_attention(causal: bool, model: Model, kind: ModelKind) -> None:
    """Refuse attention that the model or the build does not compute.

    Raises:
        ValidationError: Causal for an encoder, or not causal with a sliding window before b5590.
    """
    if causal:
        if not kind.causal:
            raise ValidationError(
                f"{model.path.name} is an encoder; its attention cannot be causal"
            )
        return
    name, library = model.gguf.architecture, model.library
    windowed = name in _WINDOWED and model.gguf.values.get(f"{name}.attention.sliding_window") != 0
    if windowed and not compat.fills_window_masks(library):
        raise ValidationError(
            f"{model.path.name} has a sliding window, and builds before b5590 compute it only with "
            f"causal attention; {compat.newer_build(library)}"
        )


def _context_type(params: ContextParams, model: Model) -> int | None:
    """Return the constant for a context of the MTP head; None = of the model.

    C asserts the tensors of the head when it builds the graph.
    """
    if not params.mtp:
        return None
    if not model.has_mtp:
        raise ValidationError(
            f"{model.path.name} was loaded without its multi-token prediction head; load it with "
            "load_mtp=True, if the file has one"
        )
    if params.embeddings:
        raise ValidationError("mtp=True gives logits and no embeddings")
    return int(model.library.lib.LLAMA_CONTEXT_TYPE_MTP)


def _sizes(params: ContextParams, model: Model, defaults: ContextDefaults) -> dict[str, Any]:
    library, tuned = model.library, defaults.tuned
    n_ctx = check_int("n_ctx", params.n_ctx, 0) or model.n_ctx_train
    n_batch = min(n_ctx, check_int("n_batch", params.n_batch, 1))
    n_ubatch = defaults.n_ubatch if params.n_ubatch is None else params.n_ubatch
    n_ubatch = min(n_batch, check_int("n_ubatch", n_ubatch, 1))
    n_seq_max = check_int("n_seq_max", params.n_seq_max, 1, compat.max_sequences(library))
    if n_seq_max > min(n_batch, n_ctx):  # n_outputs_max <= cparams.n_outputs_max
        raise ValidationError(f"{n_seq_max=} needs n_batch and n_ctx of that many tokens")
    n_threads = thread_count("n_threads", params.n_threads, tuned.n_threads or 0)
    n_threads_batch = params.n_threads_batch or params.n_threads
    if not n_threads_batch and tuned.n_threads_batch is None:
        n_threads_batch = n_threads
    return {
        "n_ctx": n_ctx,
        "n_batch": n_batch,
        "n_ubatch": n_ubatch,
        "n_seq_max": n_seq_max,
        "n_threads": n_threads,
        "n_threads_batch": thread_count(
            "n_threads_batch", n_threads_batch, tuned.n_threads_batch or 0
        ),
    }


def _cache_types(
    params: ContextParams, kind: ModelKind, model: Model, default_flash_attn: bool | None
) -> dict[str, Any]:
    """Check the types of the cache; quantized values turn flash attention on."""
    flash_attn = default_flash_attn if params.flash_attn is None else params.flash_attn
    heads = {"type_k": kind.head_k, "type_v": kind.head_v}
    found: dict[str, Any] = {}
    for field, head in heads.items():
        name = getattr(params, field)
        if name is None:
            continue
        check_choice(field, name, CACHE_TYPES)
        # n_embd_head_k % ggml_blck_size(type_k) == 0
        if name not in _FLOATS and (not head or head % _BLOCK):
            raise ValidationError(
                f"{field}={name!r} needs a head size that is a multiple of {_BLOCK}; the heads of "
                f"{model.path.name} have {head or 'different sizes'}"
            )
        found[field] = _enum_value(model.library, "ggml_type", field, name)
    if params.type_v not in (None, *_FLOATS):
        if params.flash_attn is False:
            raise ValidationError(f"type_v={params.type_v!r} needs flash_attn=True")
        flash_attn = True
    f32 = "f32" in (params.type_k, params.type_v) and (flash_attn or params.type_v == "f32")
    if f32 and not compat.flash_attn_supports_f32(model.library):
        raise ValidationError(
            "this build does not support type_v='f32', nor type_k='f32' with flash attention; "
            + compat.newer_build(model.library)
        )
    return {**found, "flash_attn": flash_attn}


def _rope(params: ContextParams, library: Library) -> dict[str, Any]:
    limits = {
        "rope_freq_base": (0, 1e12),
        "rope_freq_scale": (1e-4, 1e4),
        "yarn_ext_factor": (0, 1e3),
        "yarn_attn_factor": (0, 1e3),
        "yarn_beta_fast": (0, 1e6),
        "yarn_beta_slow": (0, 1e6),
    }
    found: dict[str, Any] = {
        name: check_float(name, value, low, high, above=name == "rope_freq_base")
        for name, (low, high) in limits.items()
        if (value := getattr(params, name)) is not None
    }
    if params.yarn_orig_ctx is not None:
        found["yarn_orig_ctx"] = check_int("yarn_orig_ctx", params.yarn_orig_ctx, 1)
    found["rope_scaling_type"] = _enum_value(
        library, "llama_rope_scaling_type", "rope_scaling", params.rope_scaling
    )
    return found


def _enum_value(library: Library, enum: str, field: str, name: str | None) -> int | None:
    """Return the value of the C constant of *enum* that *name* abbreviates."""
    if name is None:
        return None
    constants: Mapping[str, int] = library.ffi.typeof(f"enum {enum}").relements
    prefix = f"{enum.upper()}_"
    known = {
        constant.removeprefix(prefix).lower(): value
        for constant, value in sorted(constants.items(), key=lambda item: item[1])
        if value >= 0 and "MAX_VALUE" not in constant
    }
    return known[check_choice(field, name, known)]
