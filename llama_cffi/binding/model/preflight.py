"""Check what llama.cpp asserts about a model before it reads the file.

A failed assertion in C ends the process. Each check names the assertion or uncaught exception
that it stands in for; they were found by loading damaged models into every build.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from ...errors import ModelLoadError
from ...gguf.reader import GgufSummary
from .. import compat
from ..loading.library import Library

__all__ = ["check_model", "check_mtp"]

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
_F32 = 0
# I8 to I64 and F64: storage types without matrix operations.
_STORAGE_KINDS = range(24, 29)
_MATRIX = re.compile(r"(token_embd|output|.*\.(attn|ffn)_(q|k|v|qkv|output|gate|up|down))\.weight")

_MTP = ("glm4moe",)
_MTP_TENSORS = ("nextn.eh_proj", "nextn.enorm", "nextn.hnorm", "ffn_gate_inp", "attn_norm")


def check_model(path: Path, gguf: GgufSummary, library: Library) -> None:
    """Refuse a model whose metadata or tensors would end the process.

    Raises:
        ModelLoadError: With the reason and the wrong value.
    """
    for reason in (*_vocabulary(gguf), *_hyperparameters(gguf, library), *_tensors(gguf, library)):
        raise ModelLoadError(
            f"{path} cannot be loaded by build {library.build.tag or library.path.name}: {reason}"
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
    scaling = gguf.values.get(f"{architecture}.rope.scaling.type")
    known = compat.rope_scaling_types(library)
    if scaling is not None and scaling not in known:
        wrong.append(f"rope.scaling.type is {scaling!r}; this build knows {', '.join(known)}")
    experts = _integer(gguf, f"{architecture}.expert_count") or 0
    used = _integer(gguf, f"{architecture}.expert_used_count") or 0
    most = compat.max_experts(library)
    if not 0 <= experts <= most:
        wrong.append(f"expert_count is {experts}; this build supports up to {most}")
    by_layer = f"{architecture}.expert_used_count" in gguf.arrays
    if not by_layer and (not 0 <= used <= experts or (experts and not used)):
        wrong.append(f"expert_used_count is {used} of {experts}")
    return wrong


def _tensors(gguf: GgufSummary, library: Library) -> list[str]:
    wrong = []
    known = compat.tensor_types(library)
    for name, shape, kind in ((t.name, t.shape, t.kind) for t in gguf.tensors):
        if kind not in known:  # type < GGML_TYPE_COUNT
            wrong.append(f"tensor {name} has type {kind}, which this build does not know")
        elif kind in _STORAGE_KINDS and _MATRIX.fullmatch(name):
            wrong.append(f"tensor {name} has type {known[kind]}, which cannot be multiplied")
        elif kind != _F32 and len(shape) == 1 and name.endswith("norm.weight"):
            wrong.append(f"tensor {name} has type {known[kind]}; norms are F32")
        elif ".ssm_conv1d." in name and not compat.loads_state_space_models(library):
            return [f"it has state-space layers ({name}), which need b4234 or later"]
    return wrong


def _integer(gguf: GgufSummary, key: str) -> int | None:
    """Return an integer of the metadata; C itself refuses other types."""
    value = gguf.values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
