"""Projectors: tiny ones of several types, then changed; a picture or a sound is encoded.

    LLAMA_CFFI_LIB=LIBRARY python -m tools.fuzz projectors=5000 --builds LIBRARY

The library must have libmtmd.
"""

from __future__ import annotations

import functools
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from support.gguf_codec import ARRAY, BOOL, FLOAT, STRING, U32, Array, Gguf, Tensor, Value, decode
from support.tiny_projectors import IMAGE_KINDS, write_projector, write_text_model

from llama_cffi import LlamaError, Model
from llama_cffi.binding import MediaChunk, Projector
from tools.fuzz.gguf_edits import Edit, resize, write_cases

__all__ = ["cases", "run"]

KINDS = (*IMAGE_KINDS, "qwen2a", "both")
_NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 17, 18, 20, 24, 30, 32, 48, 64, 80, 128, 1500)
_HUGE = (1000, 8192, 65_536, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
_TYPES = (0, 0, 1, 30, 8, 2, 3, 6, 12, 24, 26, 28, 9, 15, 16, 39)
_PROJECTORS = (*KINDS[:-1], "", "GEMMA3", "qwen2.5o", "mlp", "phi4", "lfm2", "qwen3vl_merger")
_MORE_KEYS = {
    "clip.vision.projector.scale_factor": U32, "clip.vision.spatial_merge_size": U32,
    "clip.vision.n_wa_pattern": U32, "clip.vision.preproc_image_size": U32,
    "clip.vision.preproc_min_tiles": U32, "clip.vision.preproc_max_tiles": U32,
    "clip.vision.image_min_pixels": U32, "clip.vision.image_max_pixels": U32,
    "clip.audio.projector.stack_factor": U32, "clip.use_silu": BOOL, "clip.use_gelu": BOOL,
    "clip.has_vision_encoder": BOOL, "clip.has_audio_encoder": BOOL, "general.name": STRING,
    "clip.vision.mm_patch_merge_type": STRING,
}  # fmt: skip
_BLOCK = [
    f"attn_{part}.{end}" for part in ("q", "k", "v", "qkv", "out", "q_norm", "k_norm")
    for end in ("weight", "bias")
]  # fmt: skip
_BLOCK += ["ln1.weight", "ln2.bias", "ls1.weight", "ls2.weight", "ffn_gate.weight", "ffn_gate.bias"]
_TOP = ["v.class_embd", "v.patch_embd.bias", "v.patch_embd.weight.1", "v.position_embd.weight"]
_TOP += ["v.pre_ln.weight", "v.pre_ln.bias", "v.post_ln.weight", "v.norm_embd.weight"]
_TOP += [
    "a.pre_ln.weight",
    "a.post_ln.bias",
    "v.image_newline",
    "mm.2.weight",
    "mm.input_norm.weight",
]


def cases(seed: int, count: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield *count* projectors, most of them damaged."""
    yield from write_cases({kind: _valid(kind) for kind in KINDS}, OWN, seed, count, folder)


def run(path: Path) -> str:
    """Load a projector, and encode with it."""
    try:
        projector = Projector(_model(path.stem.split("-", 1)[1]), path, n_threads=1)
        with projector:
            chunks: list[list[int] | MediaChunk] = []
            if projector.supports_images:
                for width, height in ((16, 16), (37, 11)):
                    pixels = np.arange(width * height * 3, dtype=np.uint8)
                    chunks += projector.image_chunks(pixels.reshape(height, width, 3))
            if projector.supports_audio:
                chunks += projector.audio_chunks(np.sin(np.arange(3200, dtype=np.float32)))
            for chunk in chunks[:8]:
                if isinstance(chunk, MediaChunk):
                    projector.encode(chunk)
    except LlamaError as error:
        return f"{type(error).__name__}: {error}"
    return "encoded"


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp())  # within the folder of the worker, which is removed


@functools.cache
def _valid(kind: str) -> Gguf:
    return decode(write_projector(_folder() / f"{kind}.gguf", kind).read_bytes())


@functools.cache
def _model(kind: str) -> Model:
    return Model(write_text_model(_folder() / f"text-{kind}.gguf", kind), n_gpu_layers=0)


# -- Changes ----------------------------------------------------------------------------------


def _number(rng: random.Random, near: object) -> int:
    whole = near if isinstance(near, int) else 16
    close = (whole + 1, max(0, whole - 1), whole * 2, whole // 2, whole * 3)
    return rng.choice(rng.choice((close, close, _NUMBERS, _NUMBERS, _HUGE)))


def _clip_number(rng: random.Random, gguf: Gguf) -> str:
    keys = [k for k, v in gguf.keys.items() if k.startswith("clip.") and v.kind == U32]
    if not keys:
        return "no number"
    key = rng.choice(keys)
    gguf.keys[key] = Value(U32, _number(rng, gguf.keys[key].value))
    return f"{key} is {gguf.keys[key].value}"


def _one_more_key(rng: random.Random, gguf: Gguf) -> str:
    key = rng.choice(list(_MORE_KEYS))
    kind = _MORE_KEYS[key]
    value: object = _number(rng, 2)
    if kind == BOOL:
        value = rng.random() < 0.5
    elif kind == STRING:
        value = rng.choice(("", "spatial_unpad", "x"))
    gguf.keys[key] = Value(kind, value)
    return f"{key} is {value}"


def _array(rng: random.Random, gguf: Gguf) -> str:
    key = rng.choice((
        "clip.vision.image_mean", "clip.vision.image_std", "clip.vision.image_grid_pinpoints",
        "clip.vision.feature_layer", "clip.vision.wa_layer_indexes",
    ))  # fmt: skip
    is_color = key.endswith(("mean", "std"))
    kind = rng.choice((FLOAT if is_color else 5, FLOAT if is_color else 5, 0, 4, FLOAT, 12, STRING))
    length = rng.choice((0, 1, 2, 3, 3, 4, 7))
    some = ("x", b"") if kind == STRING else (0, 1, 2, 16, 77)
    if kind in (FLOAT, 12):
        some = (0.0, 0.5, -1.0, math.nan, math.inf, 1e30)  # type: ignore[assignment]
    gguf.keys[key] = Value(ARRAY, Array(kind, [rng.choice(some) for _ in range(length)]))
    return f"{key} has {length} items of type {kind}"


def _projector(rng: random.Random, gguf: Gguf) -> str:
    key = rng.choice(("clip.projector_type", "clip.vision.projector_type"))
    gguf.keys[key] = Value(STRING, rng.choice(_PROJECTORS))
    return f"{key} is {gguf.keys[key].value!r}"


def _epsilon(rng: random.Random, gguf: Gguf) -> str:
    key = f"clip.{rng.choice(('vision', 'vision', 'audio'))}.attention.layer_norm_epsilon"
    gguf.keys[key] = Value(FLOAT, rng.choice((0.0, -1e-6, math.nan, math.inf, 1e30, 1.0)))
    return f"{key} is {gguf.keys[key].value}"


def _other_type(rng: random.Random, gguf: Gguf) -> str:
    tensor = rng.choice(gguf.tensors or [Tensor(b"x", [4], 0, bytes(16))])
    tensor.kind = rng.choice(_TYPES)
    resize(tensor)
    return f"{tensor.name!r} has the type {tensor.kind}"


def _other_shape(rng: random.Random, gguf: Gguf) -> str:
    tensor = rng.choice(gguf.tensors or [Tensor(b"x", [4], 0, bytes(16))])
    at = rng.randrange(len(tensor.shape))
    match rng.randrange(4):
        case 0:
            tensor.shape[at] = max(1, _number(rng, tensor.shape[at]) % 2**20)
        case 1:
            tensor.shape.insert(0, 1)
        case 2:
            tensor.shape.append(rng.choice((1, 2)))
        case _:
            rng.shuffle(tensor.shape)
    resize(tensor)
    return f"{tensor.name!r} has the shape {tensor.shape}"


def _same_width(rng: random.Random, gguf: Gguf) -> str:
    """Change a number and every dimension that had it: a file that may well be valid."""
    old, new = rng.choice((16, 32, 64, 80)), rng.choice((8, 12, 24, 32, 48))
    for key, value in gguf.keys.items():
        if key.startswith("clip.") and value.kind == U32 and value.value == old:
            gguf.keys[key] = Value(U32, new)
    for tensor in gguf.tensors:
        tensor.shape = [new if n == old else n for n in tensor.shape]
        resize(tensor)
    return f"{new} in place of {old}"


def _more_blocks(rng: random.Random, gguf: Gguf) -> str:
    """Change the number of blocks, and copy them or not."""
    count = rng.choice((0, 0, 2, 2, 3, 200))
    for key in ("clip.vision.block_count", "clip.audio.block_count"):
        if key in gguf.keys:
            gguf.keys[key] = Value(U32, count)
    for tensor in [t for t in gguf.tensors if b".blk.0." in t.name]:
        for i in range(1, min(count, 3)):
            name = tensor.name.replace(b".0.", b".%d." % i)
            gguf.tensors.append(Tensor(name, list(tensor.shape), tensor.kind, tensor.data))
    return f"{count} blocks"


def _one_more_tensor(rng: random.Random, gguf: Gguf) -> str:
    prefix = rng.choice(("v", "v", "a"))
    name = rng.choice((f"{prefix}.blk.0.{rng.choice(_BLOCK)}", rng.choice(_TOP))).encode()
    shape = rng.choice(([16], [8], [16, 16], [16, 48], [48], [16, 32], [32], [4, 4, 3, 16], [64]))
    gguf.tensors = [tensor for tensor in gguf.tensors if tensor.name != name]
    gguf.tensors.append(Tensor(name, list(shape), rng.choice((0, 0, 0, 1)), bytes(64)))
    resize(gguf.tensors[-1])
    return f"also {name!r} of {shape}"


def _picture_size(rng: random.Random, gguf: Gguf) -> str:
    """Change the size of pictures, and the table of positions with it or not."""
    size, patch = rng.choice((8, 12, 15, 16, 18, 20, 28, 32, 64)), rng.choice((2, 3, 4, 4, 8))
    gguf.keys["clip.vision.image_size"] = Value(U32, size)
    gguf.keys["clip.vision.patch_size"] = Value(U32, patch)
    for tensor in gguf.tensors:
        if tensor.name.startswith(b"v.patch_embd.weight"):
            tensor.shape[:2] = [patch, patch]
        if tensor.name == b"v.position_embd.weight" and len(tensor.shape) > 1:
            tensor.shape[1] = max(1, (size // patch) ** 2 + rng.choice((0, 0, 0, 0, 1, -1)))
        resize(tensor)
    return f"pictures of {size} in patches of {patch}"


OWN: list[Edit] = [
    _clip_number, _clip_number, _clip_number, _one_more_key, _array, _projector, _epsilon,
    _other_type, _other_type, _other_shape, _other_shape, _same_width, _more_blocks,
    _one_more_tensor, _picture_size,
]  # fmt: skip
