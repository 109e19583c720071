"""The forward pass of tiny projectors in numpy: `janus_pro` and `qwen2vl_merger`.

Shapes: a picture is (height, width, 3) uint8 of whole patches, so that nothing is resized.
Sources: SigLIP, https://arxiv.org/abs/2303.15343; Qwen2-VL, https://arxiv.org/abs/2409.12191.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

__all__ = ["janus_pro", "qwen2vl"]

Array = NDArray[np.float64]
_EPS, _HEADS, _PATCH, _MERGE = 1e-6, 2, 4, 2
_ROPE_BASE = 10_000.0


def janus_pro(path: Path, pixels: NDArray[np.uint8]) -> Array:
    """Return the embeddings, (patches, n_embd)."""
    weights = _weights(path)
    patches = _patches(pixels)
    rows = patches @ _flat(weights["v.patch_embd.weight"]).T + weights["v.patch_embd.bias"]
    rows = rows + weights["v.position_embd.weight"]
    rows = _norm(_block(rows, weights), weights, "v.post_ln")
    return _linear(_gelu(_linear(rows, weights, "mm.0")), weights, "mm.1")


def qwen2vl(path: Path, pixels: NDArray[np.uint8]) -> Array:
    """Return the embeddings, (patches / 4, n_embd); each of 2 x 2 patches."""
    weights = _weights(path)
    height, width = (n // _PATCH for n in pixels.shape[:2])
    # The patches of a group of 2 x 2 follow each other.
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    order = (y * width + x).reshape(height // _MERGE, _MERGE, width // _MERGE, _MERGE)
    order = order.transpose(0, 2, 1, 3).ravel()
    # A still picture is two equal frames, each with its own part of the convolution.
    both = weights["v.patch_embd.weight"] + weights["v.patch_embd.weight.1"]
    rows = (_patches(pixels) @ _flat(both).T)[order]
    rows = _block(rows, weights, (y.ravel()[order], x.ravel()[order]))
    rows = _norm(rows, weights, "v.post_ln").reshape(-1, _MERGE * _MERGE * rows.shape[1])
    return _linear(_gelu(_linear(rows, weights, "mm.0")), weights, "mm.2")


def _weights(path: Path) -> Mapping[str, Array]:
    return {t.name: t.data.astype(np.float64) for t in gguf.GGUFReader(path).tensors}


def _flat(kernel: Array) -> Array:
    return kernel.reshape(len(kernel), -1)


def _patches(pixels: NDArray[np.uint8]) -> Array:
    """Return the patches, each as channels, rows and columns, from -1 to 1."""
    height, width = (n // _PATCH for n in pixels.shape[:2])
    values = (pixels / 255.0 - 0.5) / 0.5
    blocks = values.reshape(height, _PATCH, width, _PATCH, 3)
    return blocks.transpose(0, 2, 4, 1, 3).reshape(height * width, -1)


def _linear(rows: Array, weights: Mapping[str, Array], name: str) -> Array:
    return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(rows: Array, weights: Mapping[str, Array], name: str) -> Array:
    centred = rows - rows.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + _EPS)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _gelu(rows: Array) -> Array:
    return 0.5 * rows * (1 + np.tanh(np.sqrt(2 / np.pi) * (rows + 0.044715 * rows**3)))


def _block(
    rows: Array, weights: Mapping[str, Array], places: tuple[Array, Array] | None = None
) -> Array:
    """One block of a transformer; with *places*, rows and columns, queries and keys are rotated."""
    name = "v.blk.0"
    inner = _norm(rows, weights, f"{name}.ln1")
    q, k, v = (_linear(inner, weights, f"{name}.attn_{part}") for part in "qkv")
    heads = [part.reshape(len(rows), _HEADS, -1).transpose(1, 0, 2) for part in (q, k, v)]
    if places is not None:
        heads[:2] = [_rotated(part, places) for part in heads[:2]]
    scores = heads[0] @ heads[1].transpose(0, 2, 1) / np.sqrt(heads[0].shape[-1])
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ heads[2]
    rows = rows + _linear(mixed.transpose(1, 0, 2).reshape(rows.shape), weights, f"{name}.attn_out")
    inner = _gelu(_linear(_norm(rows, weights, f"{name}.ln2"), weights, f"{name}.ffn_up"))
    return rows + _linear(inner, weights, f"{name}.ffn_down")


def _rotated(part: Array, places: tuple[Array, Array]) -> Array:
    """Rotate: the first half of the pairs by the row, the other half by the column."""
    half = part.shape[-1] // 2
    n = half // 2
    frequency = _ROPE_BASE ** (-np.arange(n) / n)
    angles = np.concatenate([p[:, None] * frequency for p in places], axis=1)
    a, b = part[..., :half], part[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
