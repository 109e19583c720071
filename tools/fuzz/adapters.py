"""LoRA files: adapters of every matrix of a few models, then changed."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llama_cffi import Context, LlamaError, LoraAdapter
from llama_cffi.gguf.reader import read_gguf
from tools.fuzz import models
from tools.fuzz.gguf_codec import ARRAY, FLOAT, STRING, U32, Array, Gguf, Tensor, Value
from tools.fuzz.gguf_edits import Edit, resize, write_cases

__all__ = ["cases", "run"]

RANK = 4
BASES = ("llama", "llama", "tied", "experts", "mamba", "gemma2", "bert", "lfm2")


def cases(seed: int, count: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield *count* adapters, most of them damaged."""
    bases = {name: _valid(name) for name in BASES}
    yield from write_cases(bases, OWN, seed, count, folder)


def run(path: Path) -> str:
    """Load an adapter, decode with it and without it, and free it while it is active."""
    try:
        model = models.model(path.stem.split("-")[1])
        adapter = LoraAdapter(model, path)
        with Context(model, n_ctx=64, n_threads=1) as context:
            context.set_adapters({adapter: 0.5})
            models.decode(context, [1, 2, 3], 0)
            if model.has_decoder and not model.has_encoder:
                models.decode(context, [4], 3)
            context.set_adapters({})
            context.memory.clear()
            models.decode(context, [4], 0)
            context.set_adapters({adapter: -1.0})
            adapter.close()
            context.memory.clear()
            models.decode(context, [1, 2], 0)
    except LlamaError as error:
        return type(error).__name__
    return "used"


@functools.cache
def _valid(name: str) -> Gguf:
    """Return an adapter of each matrix of a model."""
    file, rng = read_gguf(models.path_of(name)), np.random.default_rng(5)
    tensors = []
    for t in file.tensors:
        if len(t.shape) < 2 or t.name.startswith(("token_", "position_")):
            continue
        if "conv" in t.name or "ssm_a" in t.name:  # these are not multiplied
            continue
        for half, shape in (
            ("a", [t.shape[0], RANK, *t.shape[2:]]),
            ("b", [RANK, t.shape[1], *t.shape[2:]]),
        ):
            data = rng.normal(0, 0.1, shape).astype(np.float32).tobytes()
            tensors.append(Tensor(f"{t.name}.lora_{half}".encode(), shape, 0, data))
    keys = {
        "general.type": Value(STRING, "adapter"),
        "general.architecture": Value(STRING, file.architecture),
        "adapter.type": Value(STRING, "lora"),
        "adapter.lora.alpha": Value(FLOAT, 8.0),
    }
    return Gguf(keys, tensors)


def _half(rng: random.Random, gguf: Gguf) -> Tensor:
    if not gguf.tensors:
        gguf.tensors.append(Tensor(b"blk.0.attn_q.weight.lora_a", [64, RANK], 0, bytes(1024)))
    return rng.choice(gguf.tensors)


def _alone(rng: random.Random, gguf: Gguf) -> str:
    half = _half(rng, gguf)
    other = half.name[:-1]
    gguf.tensors = [t for t in gguf.tensors if t is half or not t.name.startswith(other)]
    return f"{half.name!r} without its other half"


def _all_alone(rng: random.Random, gguf: Gguf) -> str:
    end = rng.choice((b"a", b"b"))
    gguf.tensors = [t for t in gguf.tensors if not t.name.endswith(end)]
    return f"no tensor ends with {end!r}"


def _other_base(rng: random.Random, gguf: Gguf) -> str:
    """Move a pair to another tensor of the model, which it fits in no, one or both dimensions."""
    half = _half(rng, gguf)
    old = half.name.rsplit(b".lora_", 1)[0]
    new = rng.choice(NAMES)
    for tensor in gguf.tensors:
        if tensor.name.startswith(old + b".lora_"):
            tensor.name = new + tensor.name[len(old) :]
            if rng.random() < 0.3:
                tensor.shape.reverse()
    return f"{old!r} is for {new!r}"


def _other_suffix(rng: random.Random, gguf: Gguf) -> str:
    half = _half(rng, gguf)
    old = half.name
    half.name = rng.choice((
        old[:-1], old[:-1] + b"c", old + b".lora_a", old + b"\0", old[:-7], old.upper(),
        old.replace(b".lora_", b"_lora."), b".lora_a", b".lora_b", b"lora_a", old + b"x" * 60,
        b"\0" + old, old.replace(b"weight", b"bias"), old.replace(b"blk.0", b"blk.00"),
        old.replace(b".0.", b".-1."), old.replace(b".0.", b".99999999999."),
    ))  # fmt: skip
    return f"{old!r} is called {half.name!r}"


def _rank(rng: random.Random, gguf: Gguf) -> str:
    """Change the rank of one half or of both."""
    half = _half(rng, gguf)
    base = half.name[:-1]
    rank = rng.choice((0, 1, 2, 3, 5, 31, 32, 64, 257, 4096))
    both = rng.random() < 0.6
    for tensor in gguf.tensors:
        if tensor is half or (both and tensor.name[:-1] == base):
            tensor.shape[1 if tensor.name.endswith(b"a") else 0] = rank
            resize(tensor)
    return f"{base!r} has the rank {rank}" + ("" if both else ", one half of it")


def _types(rng: random.Random, gguf: Gguf) -> str:
    """Change the type of one half of every pair, or of everything."""
    kind = rng.choice((1, 2, 8, 9, 10, 12, 14, 15, 16, 19, 24, 26, 27, 28, 30, 34, 39))
    end = rng.choice((b"a", b"b", b""))
    for tensor in gguf.tensors:
        if tensor.name.endswith(end):
            tensor.kind = kind
            if rng.random() < 0.5:  # whole blocks
                tensor.shape[0] = -(-tensor.shape[0] // 256) * 256
            resize(tensor)
    return f"the type {kind} for what ends with {end!r}"


def _dimensions(rng: random.Random, gguf: Gguf) -> str:
    more = rng.choice(([1], [1, 1], [2], [4], [2, 2]))
    half = _half(rng, gguf)
    base = half.name[:-1]
    both = rng.random() < 0.5
    for tensor in gguf.tensors:
        if tensor is half or (both and tensor.name[:-1] == base):
            tensor.shape[2:] = more
            resize(tensor)
    return f"{base!r} ends with the dimensions {more}"


def _alpha(rng: random.Random, gguf: Gguf) -> str:
    kind, value = rng.choice((FLOAT, FLOAT, 12, U32)), rng.choice((0, -1, 1e38, math.nan, math.inf))
    gguf.keys["adapter.lora.alpha"] = Value(kind, value)
    return f"alpha is {value} of type {kind}"


def _tokens(rng: random.Random, gguf: Gguf) -> str:
    """Make it an activated LoRA, with tokens of a kind."""
    kind = rng.choice((U32, U32, U32, 5, 10, 11, 0, FLOAT, 7, STRING))
    tokens = [
        rng.choice((0, 1, 2, 258, 259, 2**31, 2**32 - 1)) for _ in range(rng.choice((0, 1, 3)))
    ]
    value = Value(ARRAY, Array(kind, tokens)) if rng.random() < 0.8 else Value(U32, 0)
    gguf.keys["adapter.alora.invocation_tokens"] = value
    return f"invocation tokens {value}"


def _task(rng: random.Random, gguf: Gguf) -> str:
    key = rng.choice(("general.type", "adapter.type", "general.architecture"))
    name = rng.choice(("", "model", "adapter", "lora", "ia3", "llama", "mamba", "\0", "clip"))
    gguf.keys[key] = Value(STRING, name)
    return f"{key} is {name!r}"


NAMES = [
    name.encode()
    for i in ("blk.0.", "blk.1.")
    for name in (
        f"{i}attn_norm.weight", f"{i}attn_q.weight", f"{i}attn_k.weight", f"{i}attn_output.weight",
        f"{i}ffn_down.weight", f"{i}ffn_gate_inp.weight", f"{i}ffn_gate_exps.weight",
        f"{i}ffn_down_exps.weight", f"{i}ssm_in.weight", f"{i}ssm_a", f"{i}ssm_conv1d.weight",
        f"{i}ssm_dt.bias", f"{i}ssm_out.weight", f"{i}shortconv.conv.weight",
        f"{i}shortconv.in_proj.weight", "token_embd.weight", "output.weight", "output_norm.weight",
        "token_types.weight", "position_embd.weight", "rope_freqs.weight",
    )
]  # fmt: skip

OWN: list[Edit] = [
    _alone, _all_alone, _other_base, _other_base, _other_suffix, _rank, _rank, _types, _types,
    _dimensions, _alpha, _tokens, _task,
]  # fmt: skip
