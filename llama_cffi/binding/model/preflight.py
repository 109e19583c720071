"""Check what llama.cpp asserts about a model before it reads the file.

A failed assertion in C ends the process. Each check names the assertion or uncaught exception
that it stands in for; they were found by loading damaged models into every build.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import ModelLoadError
from ...gguf.reader import GgufSummary
from .. import compat
from ..loading.library import Library
from .tensor_rules import wrong_tensors

__all__ = ["check_model", "check_mtp", "is_ordinary"]

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS in every build
_UINT8, _INT8, _UINT32, _INT32, _FLOAT32, _STRING = 0, 1, 4, 5, 6, 8
_TOKEN_ARRAYS = {
    "tokenizer.ggml.tokens": {_STRING},
    "tokenizer.ggml.merges": {_STRING},
    "tokenizer.ggml.token_type": {_UINT32, _INT32},
    "tokenizer.ggml.scores": {_FLOAT32},
    "tokenizer.ggml.precompiled_charsmap": {_UINT8, _INT8},
}
_FEWEST_TOKENS = {"gpt2": 12, "bert": 104}
_TYPE_BYTE = 6

# Architectures that rotate keys in every layer (RoPE), by the beginning of their names. In others
# the key of its dimensions may be left over.
_ROPE = (
    "llama", "qwen", "gemma", "phi", "glm", "lfm2", "stablelm", "gptneox", "olmo", "command-r",
    "cohere", "internlm2", "starcoder2", "exaone", "smollm3", "ernie", "hunyuan", "seed_oss",
    "minicpm", "xverse", "orion", "baichuan", "deepseek", "mistral",
)  # fmt: skip
# Of those, the ones that rotate all of a head: n_embd_head == hparams.n_rot.
_WHOLE_ROPE = ("qwen2", "qwen2moe", "qwen3", "qwen3moe")
# Architectures whose key and value heads have one width, without keys that say otherwise.
_PLAIN_HEADS = ("llama", "gpt2", "qwen", "gemma", "phi", "bert", "stablelm", "internlm2")
_OTHER_WIDTHS = ("_swa", "_mla", "_lora_rank")
_T5_POSITIONS = 2**20
_ENCODER = re.compile(r"(\w+-)?bert(-\w+)?|eurobert")
# Architecture -> tensors that C takes as optional but always uses; of some, one or another.
_NEEDED = {
    "t5": ("enc.blk.0.attn_rel_b", "dec.blk.0.attn_rel_b"),
    "t5encoder": ("enc.blk.0.attn_rel_b",),
    "phi3": ("blk.{}.attn_qkv|blk.{}.attn_q",),
}
_STATE_SPACE = ("mamba", "mamba2")
_WIDTHS = {"embedding_length": "token_embd.weight", "ssm.inner_size": "blk.0.ssm_out.weight"}

_ORDINARY = ("llama", "qwen2", "qwen3")
_ORDINARY_VOCABULARIES = ("gpt2", "llama")
_ORDINARY_KEYS = {
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.layer_norm_rms_epsilon", "attention.value_length", "block_count", "context_length",
    "embedding_length", "feed_forward_length", "rope.dimension_count", "rope.freq_base",
    "vocab_size",
}  # fmt: skip
_WHOLE_NUMBERS = ("count", "count_kv", "length", "sections", "pattern", "window", "layers")
_MAX_GATING = 8  # builds know 3 or 4 functions
_LAYER = re.compile(r"blk\.\d+\.")
_ORDINARY_TENSOR = re.compile(
    r"(token_embd|output|output_norm|rope_freqs|(attn|ffn)_norm|attn_[qk]_norm"
    r"|attn_(q|k|v|output)|ffn_(gate|up|down))\.weight|attn_[qkv]\.bias"
)

_MTP = ("glm4moe",)
_MTP_TENSORS = ("nextn.eh_proj", "nextn.enorm", "nextn.hnorm", "ffn_gate_inp", "attn_norm")


def check_model(path: Path, gguf: GgufSummary, library: Library) -> None:
    """Refuse a model whose metadata or tensors would end the process.

    Raises:
        ModelLoadError: With the reason and the wrong value.
    """
    for reason in (
        *_vocabulary(gguf),
        *_hyperparameters(gguf, library),
        *_heads(gguf),
        *_widths(gguf),
        *wrong_tensors(gguf, library),
        *_missing(gguf),
        *_state_space(gguf, library),
    ):
        raise ModelLoadError(f"{path} cannot be loaded by build {library.name}: {reason}")


def is_ordinary(gguf: GgufSummary) -> bool:
    """Whether the rules here decide about a model, because nothing in it is unusual.

    That holds for dense models of the most usual architectures; see `tools/fuzz`.
    """
    prefix = f"{gguf.architecture}."
    keys = {key.removeprefix(prefix) for key in gguf.values if key.startswith(prefix)}
    parts = {_LAYER.sub("", tensor.name) for tensor in gguf.tensors}
    return (
        gguf.architecture in _ORDINARY
        and keys <= _ORDINARY_KEYS
        and not any(key.startswith(prefix) for key in gguf.arrays)
        and gguf.values.get("tokenizer.ggml.model") in _ORDINARY_VOCABULARIES
        and all(_ORDINARY_TENSOR.fullmatch(part) for part in parts)
    )


def check_mtp(path: Path, gguf: GgufSummary, library: Library) -> None:
    """Refuse a model whose multi-token prediction (MTP) head cannot be run here.

    It can be where the head reads the model's own embeddings (other heads are reached only
    through functions without C linkage) and the memory can drop rejected draft tokens. Of those
    architectures GLM-4.5's has been tested. C asserts the tensors.

    Raises:
        ModelLoadError: The model has no such head, its architecture is not supported, or the
            build is too old.
    """
    name, prefix = path.name, gguf.architecture
    if not compat.supports_mtp(library):
        raise ModelLoadError(
            f"{name}: this build does not run multi-token prediction heads "
            f"(LLAMA_CONTEXT_TYPE_MTP); {compat.newer_build(library)}"
        )
    if prefix not in _MTP:
        raise ModelLoadError(
            f"{name} is a {prefix} model; multi-token prediction is supported for "
            f"{', '.join(_MTP)} only. Try PromptLookup() or DraftModel(path)."
        )
    n_heads, n_layer = (
        _integer(gguf, f"{prefix}.{key}") for key in ("nextn_predict_layers", "block_count")
    )
    have = {tensor.name for tensor in gguf.tensors}
    wanted = [f"blk.{(n_layer or 0) - 1}.{part}.weight" for part in _MTP_TENSORS]
    missing = [tensor for tensor in wanted if tensor not in have]
    if n_heads != 1 or missing:
        raise ModelLoadError(
            f"{name} has no multi-token prediction head: nextn_predict_layers is {n_heads}"
            + (f", and the tensors {', '.join(missing)} are missing" if missing else "")
        )


def _vocabulary(gguf: GgufSummary) -> list[str]:
    wrong = []
    for key, kinds in _TOKEN_ARRAYS.items():
        array = gguf.arrays.get(key)
        if array is not None and array.kind not in kinds:
            wrong.append(f"{key} is an array of value type {array.kind}")
        elif array is None and key in gguf.values:
            wrong.append(f"{key} is not an array")
    if wrong:
        return wrong
    tokens = gguf.arrays.get("tokenizer.ggml.tokens")
    if tokens is not None:
        # Special tokens that the file does not name have fixed ids, which C reads without
        # checking the size of the vocabulary.
        model = str(gguf.values.get("tokenizer.ggml.model"))
        fewest = _FEWEST_TOKENS.get(model, 4)
        if tokens.count < fewest:
            wrong.append(f"its vocabulary has {tokens.count} tokens; '{model}' needs {fewest}")
        types = gguf.arrays.get("tokenizer.ggml.token_type")
        if model == "bert" and types is not None and _TYPE_BYTE in types.values:
            wrong.append("its WordPiece vocabulary has byte tokens, for which C has no text")
        # id_to_token.size() == token_to_id.size()
        if tokens.distinct != tokens.count:
            wrong.append(
                f"only {tokens.distinct} of the {tokens.count} tokens of its vocabulary differ"
            )
        # C reads both without checking their length.
        for key in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"):
            array = gguf.arrays.get(key)
            if array is not None and array.count < tokens.count:
                wrong.append(f"{key} has {array.count} entries for {tokens.count} tokens")
    merges = gguf.arrays.get("tokenizer.ggml.merges")
    if merges is not None and merges.count and not merges.shortest:
        wrong.append("tokenizer.ggml.merges has an empty entry")  # cpts_from_utf8(word).size() > 0
    return wrong


def _hyperparameters(gguf: GgufSummary, library: Library) -> list[str]:
    wrong = []
    architecture = gguf.architecture
    layers = _integer(gguf, f"{architecture}.block_count")
    if layers is not None and not 1 <= layers <= _MAX_LAYERS:
        wrong.append(f"block_count is {layers}; it must be 1 to {_MAX_LAYERS}")
    for key, value in gguf.values.items():
        # eps > 0.0f, asserted by operations that run long after the model was loaded.
        if key.endswith("epsilon") and isinstance(value, float) and not 0 < value < math.inf:
            wrong.append(f"{key} is {value}")
    for key, array in gguf.arrays.items():  # std::is_same<T, float>
        whole = key.startswith(f"{architecture}.") and key.endswith(_WHOLE_NUMBERS)
        is_label = key == f"{architecture}.classifier.output_labels"
        if (whole and array.kind in (_FLOAT32, _STRING)) or (is_label and array.kind != _STRING):
            wrong.append(f"{key} is an array of value type {array.kind}")
    scaling = gguf.values.get(f"{architecture}.rope.scaling.type")
    known = compat.rope_scaling_types(library)
    if scaling is not None and scaling not in known:
        wrong.append(f"rope.scaling.type is {scaling!r}; this build knows {', '.join(known)}")
    experts = _integer(gguf, f"{architecture}.expert_count") or 0
    used = _integer(gguf, f"{architecture}.expert_used_count") or 0
    most = compat.max_experts(library)
    if not 0 <= experts <= most:
        wrong.append(f"expert_count is {experts}; this build supports up to {most}")
    positions = _integer(gguf, f"{architecture}.context_length")
    if (
        architecture in ("t5", "t5encoder")
        and positions is not None
        and not 1 <= positions <= _T5_POSITIONS
    ):
        wrong.append(f"context_length is {positions}; it must be 1 to {_T5_POSITIONS}")
    causal = gguf.values.get(f"{architecture}.attention.causal", False)
    if _ENCODER.fullmatch(architecture) and causal is not False:  # "missing result_output tensor"
        wrong.append(f"attention.causal is {causal} for an encoder, which has no logits")
    n_mtp = _integer(gguf, f"{architecture}.nextn_predict_layers") or 0
    if layers is not None and not 0 <= n_mtp <= layers:
        wrong.append(f"nextn_predict_layers is {n_mtp} of {layers} layers")
    groups, used_groups = (
        _integer(gguf, f"{architecture}.expert_group_{key}") or 0 for key in ("count", "used_count")
    )
    if groups and (
        not 0 < groups < experts
        or (groups > 1 and (experts % groups or not 0 < used_groups < groups))
    ):
        wrong.append(f"{experts} experts are in {groups} groups, of which {used_groups} are used")
    gating = _integer(gguf, f"{architecture}.expert_gating_func") or 0
    if not 0 <= gating <= _MAX_GATING:
        wrong.append(f"expert_gating_func is {gating}; it must be 0 to {_MAX_GATING}")
    width = _integer(gguf, f"{architecture}.embedding_length_out")
    inner = _integer(gguf, f"{architecture}.embedding_length")
    if width not in (None, inner, *(t.shape[1] for t in gguf.tensors if len(t.shape) > 1)):
        wrong.append(f"embedding_length_out is {width}, and no tensor has as many rows")
    each = gguf.arrays.get(f"{architecture}.expert_used_count")
    if each is not None:
        if not all(0 <= n <= experts for n in each.items):
            wrong.append(f"expert_used_count is {max(each.items)} of {experts}")
    elif not 0 <= used <= experts or (experts and not used):
        wrong.append(f"expert_used_count is {used} of {experts}")
    return wrong


def _heads(gguf: GgufSummary) -> Iterator[str]:
    """Yield what does not fit together in the attention heads."""
    prefix = gguf.architecture
    heads, kv_heads = (
        _by_layer(gguf, f"{prefix}.attention.{key}") for key in ("head_count", "head_count_kv")
    )
    if not any(heads or (1,)) and prefix.startswith((*_ROPE, *_PLAIN_HEADS)):
        yield "head_count is 0"  # C divides by it
    for n_head, n_kv in zip(heads, kv_heads or heads, strict=False):
        if n_kv and n_head % n_kv:  # ne12 % ne02 == 0
            yield f"{n_head} attention heads cannot share {n_kv} KV heads evenly"
            break
    n_rot = _integer(gguf, f"{prefix}.rope.dimension_count")
    n_embd = _integer(gguf, f"{prefix}.embedding_length") or 0
    width = _integer(gguf, f"{prefix}.attention.key_length")
    if width is None and len(set(heads)) == 1 and heads[0]:
        width = n_embd // heads[0]
    if n_rot and width and prefix.startswith(_ROPE):
        fewest = width if prefix in _WHOLE_ROPE else 0
        if n_rot % 2 or not fewest <= n_rot <= width:
            yield f"rope.dimension_count is {n_rot} for attention heads of {width}"
    if not prefix.startswith(_PLAIN_HEADS) or any(
        key.endswith(_OTHER_WIDTHS) for key in gguf.values
    ):
        return
    other = _integer(gguf, f"{prefix}.attention.value_length")
    plain = n_embd // heads[0] if heads and heads[0] else width
    if (width or plain) != (other or plain):  # n_embd_head == hparams.n_embd_head_k
        yield f"key heads are {width or plain} wide and value heads {other or plain}"
    rows = {t.name: t.shape[1] for t in gguf.tensors if len(t.shape) > 1}
    for layer, n_kv in enumerate(kv_heads or heads):
        name = f"blk.{layer}.attn_k.weight"
        if width and rows.get(name, n_kv * width) != n_kv * width:
            yield f"{name} has {rows[name]} rows for {n_kv} KV heads of {width}"
            return


def _missing(gguf: GgufSummary) -> Iterator[str]:
    """Yield tensors that C uses although it loads models without them."""
    needed = _NEEDED.get(gguf.architecture, ())
    have = {tensor.name for tensor in gguf.tensors} if needed else set()
    n_layer = _integer(gguf, f"{gguf.architecture}.block_count") or 0
    for choice in needed:
        for layer in range(min(n_layer, _MAX_LAYERS) if have else 0):
            names = [f"{name}.weight".format(layer) for name in choice.split("|")]
            if have.isdisjoint(names):
                yield f"the tensor {' or '.join(names)} is missing"
                return


def _state_space(gguf: GgufSummary, library: Library) -> Iterator[str]:
    """Yield why the build cannot run the model's state-space layers."""
    if not compat.loads_state_space_models(library):
        for tensor in gguf.tensors:
            if ".ssm_conv1d." in tensor.name:
                yield f"it has state-space layers ({tensor.name}), which need b4234 or later"
                return
    if (
        gguf.architecture == "mamba"
        and compat.mixes_up_f16_states(library)
        and any(".ssm_" in t.name and t.type_name == "F16" for t in gguf.tensors)
    ):
        yield (
            "its F16 weights do not work with this CPU's AMX in builds from b6122 to before b7324; "
            "use a newer build, or LLAMA_CFFI_CPU_VARIANT=icelake"
        )


def _widths(gguf: GgufSummary) -> Iterator[str]:
    """Yield widths that C compares with each other before it looks at the tensors."""
    if gguf.architecture not in _STATE_SPACE:
        return
    shapes = {tensor.name: tensor.shape for tensor in gguf.tensors}
    for key, name in _WIDTHS.items():
        width = _integer(gguf, f"{gguf.architecture}.{key}")
        if shapes and width is not None and width != shapes.get(name, (0,))[0]:
            yield f"{key} is {width}, and {name} {shapes.get(name, 'is missing')}"


def _by_layer(gguf: GgufSummary, key: str) -> tuple[int, ...]:
    """Return a number for each layer that has one; empty if the file has none."""
    array = gguf.arrays.get(key)
    if array is not None:
        return array.items
    value = _integer(gguf, key)
    n_layer = _integer(gguf, f"{gguf.architecture}.block_count") or 0
    return () if value is None else (value,) * min(max(n_layer, 1), _MAX_LAYERS)


def _integer(gguf: GgufSummary, key: str) -> int | None:
    """Return an integer of the metadata; C itself refuses other types."""
    value = gguf.values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
