"""Models of many architectures with one thing wrong that would end the process."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from gguf import GGMLQuantizationType, quants

from .architectures import WRITE
from .gguf_codec import ARRAY, FLOAT, STRING, TYPES, U32, Array, Gguf, Tensor, Value, decode

__all__ = ["WRONG", "converted", "original", "write_wrong"]

Edit = Callable[[Gguf], object]


@functools.cache
def original(architecture: str) -> bytes:
    """Return the file of a tiny model that works."""
    with tempfile.TemporaryDirectory() as folder:
        WRITE[architecture](Path(folder) / "model.gguf")
        return (Path(folder) / "model.gguf").read_bytes()


def converted(architecture: str, kind: GGMLQuantizationType) -> bytes:
    """Return a model as a converter writes it: its matrices have another type."""
    gguf = decode(original(architecture))
    for tensor in gguf.tensors:
        name, rows = tensor.name.decode(), tensor.shape[1:]
        if not rows or not name.endswith(".weight") or name.endswith("norm.weight"):
            continue
        if any(part in name for part in ("token_types", "position_embd", "conv", "gate_inp.")):
            continue
        if tensor.shape[0] % TYPES[kind][0] == 0:
            set_type(tensor, kind)
    return gguf.encode()


def set_type(tensor: Tensor, kind: int) -> None:
    """Convert an F32 tensor, or fill it with zeros if its type cannot be written here."""
    import numpy as np

    data = np.frombuffer(tensor.data, np.float32).reshape(tensor.shape[::-1])
    kind = GGMLQuantizationType(kind)
    try:
        tensor.data = quants.quantize(data, kind).tobytes()
    except NotImplementedError:
        width = quants.quant_shape_to_byte_shape(data.shape, kind)
        tensor.data = bytes(int(np.prod(width)))
    tensor.kind = kind


def type_of(name: str, kind: GGMLQuantizationType) -> Edit:
    """Give every tensor whose name ends so another type."""

    def edit(gguf: Gguf) -> None:
        found = [t for t in gguf.tensors if t.name.decode().endswith(name)]
        assert found
        for tensor in found:
            set_type(tensor, kind)

    return edit


def put(key: str, value: object, kind: int = U32) -> Edit:
    return lambda gguf: gguf.keys.update({key: Value(kind, value)})


def without(name: str) -> Edit:
    def edit(gguf: Gguf) -> None:
        before = len(gguf.tensors)
        gguf.tensors = [t for t in gguf.tensors if not t.name.decode().endswith(name)]
        assert len(gguf.tensors) < before

    return edit


def token(change: Callable[[list[bytes]], bytes]) -> Edit:
    def edit(gguf: Gguf) -> None:
        items = gguf.keys["tokenizer.ggml.tokens"].value.items
        items[-1] = change(items)

    return edit


def shape(name: str, *dims: int) -> Edit:
    def edit(gguf: Gguf) -> None:
        (tensor,) = (t for t in gguf.tensors if t.name.decode() == name)
        tensor.data *= -(-4 * functools.reduce(int.__mul__, dims) // len(tensor.data))
        tensor.shape = list(dims)

    return edit


F16, BF16, Q4_0, Q8_0, Q8_1, I8, I32, F64 = (
    GGMLQuantizationType[name]
    for name in ("F16", "BF16", "Q4_0", "Q8_0", "Q8_1", "I8", "I32", "F64")
)
KV, MERGES = "attention.head_count_kv", "tokenizer.ggml.merges"

# What is wrong -> architecture, change, and what the error says.
WRONG: dict[str, tuple[str, Edit, str]] = {
    "a bias of F16": ("gpt2", type_of("attn_qkv.bias", F16), "a bias, which must be F32"),
    "a bias of BF16": ("bert", type_of("attn_q.bias", BF16), "a bias, which must be F32"),
    "a quantized bias": ("rank", type_of("cls.bias", Q8_0), "a bias, which must be F32"),
    "a bias of integers": ("qwen2moe", type_of("attn_k.bias", I32), "a bias, which must be F32"),
    "a norm of F16": ("gemma3", type_of("attn_k_norm.weight", F16), "a norm, which must be F32"),
    "a norm of two rows": ("mamba2", type_of("ssm_norm.weight", BF16), "a norm, which must"),
    "token types of F16": ("bert", type_of("token_types.weight", F16), "which must be F32"),
    "a matrix of I8": ("t5", type_of("attn_o.weight", I8), "I8, which cannot be multiplied"),
    "positions of I8": ("gpt2", type_of("position_embd.weight", I8), "cannot be multiplied"),
    "relative positions of F64": ("t5", type_of("attn_rel_b.weight", F64), "cannot be multiplied"),
    "a matrix of Q8_1": ("llama", type_of("attn_v.weight", Q8_1), "Q8_1, which cannot be mul"),
    "an expert of F64": ("qwen2moe", type_of("up_shexp.weight", F64), "cannot be multiplied"),
    "a convolution of F16": ("mamba", type_of("ssm_conv1d.weight", F16), "a convolution"),
    "another one of BF16": ("lfm2", type_of("shortconv.conv.weight", BF16), "a convolution"),
    "a decay of F16": ("mamba", type_of("ssm_a", F16), "state space model, which must be F32"),
    "a state space matrix of F64": ("mamba2", type_of("ssm_out.weight", F64), "cannot be mult"),
    "a token twice up to a NUL": ("llama", token(lambda t: t[5] + b"\0"), "258 of the 259 tokens"),
    "an empty merge up to a NUL": (
        "llama",
        put(MERGES, Array(STRING, [b"\0 \0"]), ARRAY),
        "an empty entry",
    ),
    "no needed tensor": ("phi3", without("blk.1.attn_qkv.weight"), "blk.1.attn_qkv.weight"),
    "no relative positions": ("t5", without("attn_rel_b.weight"), "attn_rel_b.weight is missing"),
    "T5 without positions": ("t5", put("t5.context_length", 0), "context_length is 0"),
    "another key width": ("gpt2", put("gpt2.attention.key_length", 16), "key heads are 16 wide"),
    "too many dimensions of RoPE": ("gemma3", put("gemma3.rope.dimension_count", 64), "of 32"),
    "fewer than a head has": ("qwen3", put("qwen3.rope.dimension_count", 16), "of 32"),
    "an odd number of them": ("qwen3", put("qwen3.rope.dimension_count", 31), "of 32"),
    "other KV heads in a layer": (
        "gemma3",
        put(f"gemma3.{KV}", Array(5, [2, 1, 2, 2, 2, 2]), ARRAY),
        "blk.1.attn_k.weight has 64 rows for 1 KV heads",
    ),
    "KV heads that do not divide": ("qwen3", put(f"qwen3.{KV}", 3), "cannot share 3 KV heads"),
    "KV heads of floats": ("lfm2", put(f"lfm2.{KV}", Array(FLOAT, [0, 2]), ARRAY), "value type 6"),
    "no heads": ("phi3", put("phi3.attention.head_count", 0), "head_count is 0"),
    "another state width": ("mamba", put("mamba.embedding_length", 48), "embedding_length is 48"),
    "experts in too many groups": ("glm4moe", put("glm4moe.expert_group_count", 31), "31 groups"),
    "more heads than layers": ("glm4moe", put("glm4moe.nextn_predict_layers", 9), "9 of 3 layers"),
    "an encoder that generates": ("bert", put("bert.attention.causal", 1, 7), "no logits"),
    "a table of embeddings of 3 axes": (
        "llama",
        shape("token_embd.weight", 64, 259, 2),
        "has the shape (64, 259, 2)",
    ),
    "a state space of 3 axes": (
        "mamba",
        shape("blk.1.ssm_a", 2, 16, 128),
        "blk.1.ssm_a has the shape (2, 16, 128)",
    ),
    "labels of numbers": (
        "phi3",
        put("phi3.classifier.output_labels", Array(5, []), ARRAY),
        "phi3.classifier.output_labels is an array of value type 5",
    ),
    "2^32-1 parts": ("llama", put("split.count", 2**32 - 1), "split.count has the value type 4"),
    "parts of text": ("llama", put("split.count", "x", STRING), "split.count has the value type 8"),
    "a bool of 77": ("llama", put("tokenizer.ggml.add_bos_token", 77, 7), "a bool of the value 77"),
    "NaN parts": ("llama", put("split.count", float("nan"), FLOAT), "split.count has the value"),
}


def write_wrong(folder: Path) -> dict[str, Path]:
    """Write one file for each entry of `WRONG`."""
    files = {}
    for i, (name, (architecture, edit, _)) in enumerate(WRONG.items()):
        gguf = decode(original(architecture))
        edit(gguf)
        files[name] = folder / f"{architecture}-{i}.gguf"
        files[name].write_bytes(gguf.encode())
    return files
