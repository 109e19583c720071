"""Damaged models: files that must be refused, by the checks here or by C."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValue
from gguf import GGUFValueType as Kind

from support.tiny_gguf import write_tiny

Edit = Callable[[gguf.GGUFWriter], object]


def put(key: str, value: Any, kind: Kind | None = None, items: Kind | None = None) -> Edit:
    """Set a metadata key, with its previous type unless *kind* is given."""

    def edit(writer: gguf.GGUFWriter) -> None:
        keys = writer.kv_data[0]
        keys[key] = GGUFValue(value, kind or keys[key].type, items)

    return edit


def drop(key: str) -> Edit:
    return lambda writer: writer.kv_data[0].pop(key)


def tokens(change: Callable[[list[Any]], list[Any]], key: str = "tokens") -> Edit:
    """Change an array of the vocabulary."""

    def edit(writer: gguf.GGUFWriter) -> None:
        value = writer.kv_data[0][f"tokenizer.ggml.{key}"]
        value.value = change(list(value.value))

    return edit


def tensor(name: str, **fields: Any) -> Edit:
    """Change an entry of the tensor table, but not the data."""

    def edit(writer: gguf.GGUFWriter) -> None:
        for field, value in fields.items():
            setattr(writer.tensors[0][name], field, value)

    return edit


def as_type(name: str, numpy_type: type, kind: int) -> Edit:
    """Convert a tensor to another type, consistently."""

    def edit(writer: gguf.GGUFWriter) -> None:
        info = writer.tensors[0][name]
        info.tensor = info.tensor.astype(numpy_type)
        info.dtype, info.nbytes = gguf.GGMLQuantizationType(kind), info.tensor.nbytes

    return edit


Q = "blk.0.attn_q.weight"
HEADS = "llama.attention.head_count"
EPSILON = "llama.attention.layer_norm_rms_epsilon"

# Refused with ModelLoadError by every build.
REFUSED: dict[str, Edit] = {
    "no block_count": drop("llama.block_count"),
    "no vocabulary": drop("tokenizer.ggml.tokens"),
    "no tokenizer": drop("tokenizer.ggml.model"),
    "no embedding_length": drop("llama.embedding_length"),
    "another architecture": put("general.architecture", "gpt-neox-nonsense"),
    "0 blocks": put("llama.block_count", 0),
    "2^31 blocks": put("llama.block_count", 2**31),
    "odd embedding_length": put("llama.embedding_length", 63),
    "0 heads of text": put(HEADS, "x", Kind.STRING),
    "epsilon 0": put(EPSILON, 0.0),
    "epsilon -1": put(EPSILON, -1.0),
    "epsilon NaN": put(EPSILON, float("nan")),
    "unknown rope scaling": put("llama.rope.scaling.type", "nonsense", Kind.STRING),
    "experts, none used": put("llama.expert_count", 5, Kind.UINT32),
    "no experts, five used": put("llama.expert_used_count", 5, Kind.UINT32),
    "2^32-1 experts": put("llama.expert_count", 2**32 - 1, Kind.UINT32),
    "alignment 1": put("general.alignment", 1, Kind.UINT32),
    "alignment 33": put("general.alignment", 33, Kind.UINT32),
    "alignment of text": put("general.alignment", "x", Kind.STRING),
    "alignment of 64 bits": put("general.alignment", 32, Kind.UINT64),
    "all tokens equal": tokens(lambda t: ["a"] * len(t)),
    "tokens are numbers": tokens(lambda t: list(range(len(t)))),
    "too few tokens": tokens(lambda t: t[:100]),
    "one token": tokens(lambda t: t[:1]),
    "token types are text": tokens(lambda t: ["x"] * len(t), "token_type"),
    "too few token types": tokens(lambda t: t[:5], "token_type"),
    "merges are numbers": tokens(lambda t: [1, 2], "merges"),
    "an empty merge": tokens(lambda t: [""], "merges"),
    "scores are text": put("tokenizer.ggml.scores", ["a"] * 259, Kind.ARRAY),
    "too few scores": put("tokenizer.ggml.scores", [0.0], Kind.ARRAY),
    "WordPiece with byte tokens": lambda writer: (
        put("tokenizer.ggml.model", "bert")(writer),
        tokens(lambda t: [6] * len(t), "token_type")(writer),
    ),
    "rwkv without all bytes": put("tokenizer.ggml.model", "rwkv"),
    "a missing tensor": lambda writer: writer.tensors[0].pop(Q),
    "no tensors": lambda writer: writer.tensors[0].clear(),
    "a wrong shape": tensor(Q, shape=(64, 32)),
    "a shape with a zero": tensor(Q, shape=(0, 64)),
    "a shape of 2^64": tensor(Q, shape=(2**32, 2**32)),
    "an unknown tensor type": tensor(Q, dtype=99),
    "a type of the far future": tensor(Q, dtype=2**32 - 1),
    "a row that is no whole block": tensor(Q, dtype=12),
    "embeddings of I32": as_type("token_embd.weight", np.int32, 26),
    "a matrix of F64": as_type(Q, np.float64, 28),
    "a norm of F16": as_type("output_norm.weight", np.float16, 1),
}

# May load; every call either works or raises a LlamaError.
SURVIVED: dict[str, Edit] = {
    "0 heads": put(HEADS, 0),
    "3 heads": put(HEADS, 3),
    "0 KV heads": put("llama.attention.head_count_kv", 0),
    "context_length 0": put("llama.context_length", 0),
    "0 rope dimensions": put("llama.rope.dimension_count", 0),
    "bos out of range": put("tokenizer.ggml.bos_token_id", 10**6),
    "eos out of range": put("tokenizer.ggml.eos_token_id", 2**32 - 1),
    "bos negative": put("tokenizer.ggml.bos_token_id", -1, Kind.INT32),
    "tokens of no UTF-8": tokens(lambda t: [b"\xff" + x.encode() for x in t]),
    "an empty token": tokens(lambda t: ["", *t[1:]]),
    "unknown token types": tokens(lambda t: [77] * len(t), "token_type"),
    "a vocabulary that cannot spell": put("tokenizer.ggml.model", "llama"),
    "no text at all": put("tokenizer.ggml.model", "no_vocab"),
    "template of no UTF-8": put("tokenizer.chat_template", b"\xff{{", Kind.STRING),
    "NaN weights": lambda w: w.tensors[0]["output.weight"].tensor.fill(float("nan")),
    "infinite weights": lambda w: w.tensors[0]["output.weight"].tensor.fill(float("inf")),
}


def write_edits(folder: Path, edits: dict[str, Edit]) -> dict[str, Path]:
    """Write one file for each edit."""
    folder.mkdir(exist_ok=True)
    return {
        name: write_tiny(folder / f"{i}.gguf", edit=edit)
        for i, (name, edit) in enumerate(edits.items())
    }


def cut_and_flipped(data: bytes, seed: int, flips: int) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes): invalid files, truncated files, and files with one byte changed."""
    rng = random.Random(seed)
    header = data.index(b"blk.1.ffn_down.weight") + 64
    yield "random bytes", rng.randbytes(5000)
    yield "wrong magic", b"GGML" + data[4:]
    yield "version 99", data[:4] + b"\x63\0\0\0" + data[8:]
    yield "2^63 keys", data[:16] + (2**63).to_bytes(8, "little") + data[24:]
    yield "2^60 tensors", data[:8] + (2**60).to_bytes(8, "little") + data[16:]
    at = data.index(b"general.architecture") + 24
    yield "a string of 2^62 bytes", data[:at] + (2**62).to_bytes(8, "little") + data[at + 8 :]
    at = data.index(b"tokenizer.ggml.tokens") + 29
    yield "an array of 2^61 strings", data[:at] + (2**61).to_bytes(8, "little") + data[at + 8 :]
    at = data.index(b"output_norm.weight") + 34
    yield "a tensor far outside", data[:at] + (2**50).to_bytes(8, "little") + data[at + 8 :]
    for i in range(20):
        cut = len(data) * i // 20 if i % 2 else header * i // 20
        yield f"cut at {cut}", data[:cut]
    vocabulary = range(data.index(b"tokenizer.ggml.tokens") + 60, data.index(b"tokenizer.ggml.mer"))
    places = [i for i in range(4, header) if i not in vocabulary]
    for _ in range(flips):
        place = rng.choice(places)
        changed = bytearray(data)
        changed[place] = rng.choice([changed[place] ^ (1 << rng.randrange(8)), 0, 127, 128, 255])
        yield f"flip {place}", bytes(changed)
