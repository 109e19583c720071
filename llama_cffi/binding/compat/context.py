"""Creating a context, and the limits of a build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import ValidationError
from ..loading.library import Library
from .fields import assign, fields
from .names import c_function, is_b3889, is_b3995, is_b4980

__all__ = [
    "MemoryLayout",
    "context_params",
    "embedding_width",
    "encode_supports_pooling",
    "fills_window_masks",
    "flash_attn_supports_f32",
    "has_memory",
    "init_context",
    "keeps_threads",
    "keys_shift",
    "kv_unified",
    "layer_counts",
    "max_ggml_contexts",
    "max_sequences",
    "memory_layout",
    "n_classes",
    "newer_build",
    "polls_safely",
    "pooling_name",
    "pools_any_sequence",
]


def context_params(
    library: Library,
    *,
    flash_attn: bool | None = None,
    kv_unified: bool | None = None,
    **values: Any,
) -> Any:
    """Return `llama_context_params` from the build's defaults; None keeps a default.

    `flash_attn` is an enum since b6431 (None: the build's own choice). `kv_unified` exists since
    b6122; before, every cache was unified. `op_offload` and `swa_full` are newer than b4980.

    Raises:
        ValidationError: A value is for a field that this build does not have.
    """
    params = library.lib.llama_context_default_params()
    known = fields(library, params)
    if flash_attn is not None:
        values["flash_attn" if "flash_attn" in known else "flash_attn_type"] = int(flash_attn)
    if "kv_unified" in known:
        values["kv_unified"] = kv_unified
    for name in ("op_offload", "swa_full"):
        if name not in known and values.pop(name, None) is not None:
            raise ValidationError(f"this build has no {name}; {newer_build(library)}")
    assign(params, values)
    return params


def flash_attn_supports_f32(library: Library) -> bool:
    """Whether flash attention works with an F32 cache; before b6431 it calls NULL."""
    return "flash_attn_type" in fields(library, library.lib.llama_context_default_params())


def keys_shift(library: Library, type_k: str, head: int) -> bool:
    """Whether C can rotate keys of this type; otherwise it aborts or reads NULL (measured)."""
    if type_k in ("f16", "f32"):
        return True
    return type_k != "bf16" and flash_attn_supports_f32(library) and head % 64 == 0


def newer_build(library: Library) -> str:
    """Return the advice to use a newer build, to put after the reason in a message."""
    return f"it is {library.name}; a newer one: LLAMA_CFFI_BUILD=latest"


def init_context(library: Library, model: Any, params: Any) -> Any:
    """Create a context; NULL if it failed. C: llama_init_from_model.

    b3995 asserts when it plans a graph that pools by mean, and computes one well. b3889 takes its
    buffers for 32 bytes larger than they are, which the row numbers of pooling can be: it plans
    for pooling even if embeddings are switched on only later. It plans for the encoder alone, and
    for few tokens the decoder can need those 32 bytes more: it plans for 64 tokens at least.
    """
    init = c_function(library, "llama_init_from_model")
    if is_b3889(library) and library.lib.llama_model_has_encoder(model):
        params.n_batch = max(params.n_batch, 64)
        params.n_ubatch = max(params.n_ubatch, 64)
    if not (params.embeddings and is_b3995(library)):
        ptr = init(model, params)
        if ptr and is_b3889(library) and _pools_later(library, ptr, model, params):
            library.lib.llama_free(ptr)
            params.embeddings = True
            ptr = init(model, params)
            params.embeddings = False
            if ptr:
                library.lib.llama_set_embeddings(ptr, False)
        return ptr
    params.embeddings = False
    ptr = init(model, params)
    params.embeddings = True
    if ptr:
        library.lib.llama_set_embeddings(ptr, True)
    return ptr


def _pools_later(library: Library, context: Any, model: Any, params: Any) -> bool:
    # Contexts of recurrent models cannot switch embeddings on, see `plans_by_counts`.
    if params.embeddings or library.lib.llama_model_is_recurrent(model):
        return False
    pooling = pooling_name(library, library.lib.llama_pooling_type(context))
    return pooling in ("mean", "cls", "last")


def max_sequences(library: Library) -> int:
    """Return the maximum of n_seq_max. C: llama_max_parallel_sequences, b6122."""
    if library.has("llama_max_parallel_sequences"):
        return int(library.lib.llama_max_parallel_sequences())
    return 64  # LLAMA_MAX_SEQ; older builds have no limit


def max_ggml_contexts(library: Library) -> int | None:
    """Return how many ggml contexts can exist, GGML_MAX_CONTEXTS; None since b4234.

    Measured: a model and an adapter hold one each, and a context two, three with a control vector.
    """
    return None if library.has("ggml_backend_load_all") else 64


def kv_unified(library: Library, params: Any) -> bool:
    """Whether the sequences of a context share one cache."""
    return "kv_unified" not in fields(library, params) or bool(params.kv_unified)


def has_memory(library: Library, context: Any) -> bool:
    """Whether a context has a memory. Before b5640 encoders had one too."""
    return not library.has("llama_get_memory") or bool(library.lib.llama_get_memory(context))


def pools_any_sequence(library: Library) -> bool:
    """Whether pooling accepts any sequence id; before b6122 C asserts seq_id < n_tokens."""
    return "kv_unified" in fields(library, library.lib.llama_context_default_params())


def encode_supports_pooling(library: Library) -> bool:
    """Whether `llama_encode` pools; C asserts lctx.embd != nullptr in the oldest builds."""
    return library.has("llama_model_n_cls_out")  # b5640


def encodes_with_rank_pooling(library: Library) -> bool:
    """Whether `llama_encode` works with `rank` pooling and no embeddings; b4980 asserts."""
    return not is_b4980(library)


def shifts_with_mean_pooling(library: Library) -> bool:
    """Whether positions can shift while embeddings are pooled by mean.

    b4980 asserts (`ggml_can_mul_mat`) when it then plans its graph again.
    """
    return not is_b4980(library)


def embedding_width(library: Library, model: Any) -> int:
    """Return the width of an embedding. C: llama_model_n_embd_out, b7698."""
    if library.has("llama_model_n_embd_out"):
        return int(library.lib.llama_model_n_embd_out(model))
    return int(c_function(library, "llama_model_n_embd")(model))


def n_classes(library: Library, model: Any) -> int:
    """Return the number of scores of `rank` pooling. C: llama_model_n_cls_out, b5640."""
    if library.has("llama_model_n_cls_out"):
        return int(library.lib.llama_model_n_cls_out(model))
    return 1


def pooling_name(library: Library, pooling: int) -> str:
    """Return the name of a constant of `enum llama_pooling_type`."""
    names: dict[int, str] = library.ffi.typeof("enum llama_pooling_type").elements
    return names.get(pooling, str(pooling)).removeprefix("LLAMA_POOLING_TYPE_").lower()


def keeps_threads(library: Library) -> bool:
    """Whether several threads can be kept for the next graph.

    Before b4753 a thread that leaves the last barrier of a graph late reads the next graph there,
    and waits at a barrier for ever (llama.cpp #11736).
    """
    return library.has("llama_sampler_init")


def polls_safely(
    library: Library, *, threads: bool, states: bool, sequences: bool, pooled: bool
) -> bool:
    """Whether C may poll an abort flag while it computes. Measured, and read in its sources.

    Args:
        library: The build.
        threads: Several compute. From b3889 to b4600 one that sees the flag a barrier early leaves,
            and the others wait for it; b4753 does not.
        states: A recurrent memory. From b4234 to b5640 it is left with cells that belong to no
            sequence, or C reads sequence ids behind their end.
        sequences: There are several. b5590 removes all but the first.
        pooled: Embeddings of sequences. b5590 and b5640 read sequence ids as above.
    """
    if library.has("llama_model_is_diffusion"):  # b6122
        return True
    if threads and not keeps_threads(library):
        return False
    if library.has("llama_kv_self_seq_pos_min"):  # b5590
        return not (states or pooled or (sequences and not library.has("llama_get_memory")))
    return not (states and library.has("llama_kv_cache_can_shift"))  # b4234


def layer_counts(library: Library, architecture: str) -> tuple[int, ...]:
    """Return the numbers of layers that C accepts; it aborts on others. Empty = any."""
    if architecture == "baichuan":
        return (32, 40)
    if architecture == "gemma2" and not library.has("llama_model_n_cls_out"):  # until b5640
        return (26, 42, 46)
    return ()


def fills_window_masks(library: Library) -> bool:
    """Whether C fills the mask of a sliding window when attention is not causal.

    Before b5590 it does not: Phi-3, which has no other mask, reads NULL until b4753.
    """
    return library.has("llama_kv_self_seq_pos_min") or library.has("llama_memory_seq_pos_min")


@dataclass(frozen=True)
class MemoryLayout:
    """How a build lays out the memory of a context; the defaults are those of v0.5.0.

    Attributes:
        flash_attn: Whether flash attention is on by default.
        pads_to: Cells of a sequence are a multiple of this with flash attention.
        pads_to_plain: The same without it.
        streams: Whether sequences may have caches of their own.
        windows: Whether layers with a sliding window may keep only that.
        half_masks: Whether the mask of flash attention has 16 bits; else it has 32, and a copy 16.
    """

    flash_attn: bool = True
    pads_to: int = 256
    pads_to_plain: int = 256
    streams: bool = True
    windows: bool = True
    half_masks: bool = True


def memory_layout(library: Library) -> MemoryLayout:
    """Return how the build lays out the memory of a context, measured."""
    known = fields(library, library.lib.llama_context_default_params())
    is_new = hasattr(library.lib, "LLAMA_CONTEXT_TYPE_MTP")
    return MemoryLayout(
        flash_attn="flash_attn_type" in known,
        pads_to_plain=256 if library.has("llama_model_is_hybrid") else 32,
        streams="kv_unified" in known,
        windows="swa_full" in known,
        half_masks=is_new,
    )
