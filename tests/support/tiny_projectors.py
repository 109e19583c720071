"""Tiny multimodal projectors with random weights, and text models that go with them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from support.tiny_gguf import write_tiny

__all__ = ["write_projector", "write_qwen2vl_model"]


def write_projector(
    path: Path, kind: str = "janus_pro", *, n_embd: int = 64, size: int = 16, seed: int = 0
) -> Path:
    """Write a projector of a kind: `janus_pro`, `gemma3` (non-causal), `qwen2vl_merger` (M-RoPE).

    Pictures are *size* x *size* pixels in patches of 4; one block of width 16.
    """
    random = np.random.default_rng(seed)
    width, ff, patch = 16, 32, 4

    def weights(*shape: int) -> NDArray[np.float32]:
        return (random.normal(size=shape) * 0.3).astype(np.float32)

    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", kind)
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "image_size": size,
        "patch_size": patch,
        "embedding_length": width,
        "feed_forward_length": ff,
        "block_count": 1,
        "projection_dim": n_embd,
        "attention.head_count": 2,
    }
    for key, value in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    add = writer.add_tensor
    add("v.patch_embd.weight", weights(width, 3, patch, patch))
    if kind == "qwen2vl_merger":
        add("v.patch_embd.weight.1", weights(width, 3, patch, patch))
    else:
        add("v.patch_embd.bias", weights(width))
        add("v.position_embd.weight", weights((size // patch) ** 2, width))
    for name in ("q", "k", "v", "out"):
        add(f"v.blk.0.attn_{name}.weight", weights(width, width))
        add(f"v.blk.0.attn_{name}.bias", weights(width))
    for name in ("v.blk.0.ln1", "v.blk.0.ln2", "v.post_ln"):
        add(f"{name}.weight", 1 + weights(width))
        add(f"{name}.bias", weights(width))
    add("v.blk.0.ffn_up.weight", weights(ff, width))
    add("v.blk.0.ffn_up.bias", weights(ff))
    add("v.blk.0.ffn_down.weight", weights(width, ff))
    add("v.blk.0.ffn_down.bias", weights(width))
    if kind == "janus_pro":
        layers = {"mm.0": (n_embd, width), "mm.1": (n_embd, n_embd)}
    elif kind == "qwen2vl_merger":
        layers = {"mm.0": (4 * width, 4 * width), "mm.2": (n_embd, 4 * width)}
    else:
        layers = {}
        writer.add_uint32("clip.vision.projector.scale_factor", 2)
        add("mm.input_projection.weight", weights(width, n_embd))
        add("mm.soft_emb_norm.weight", 1 + weights(width))
    for name, shape in layers.items():
        add(f"{name}.weight", weights(*shape))
        add(f"{name}.bias", weights(shape[0]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_qwen2vl_model(path: Path, n_ctx: int = 2048) -> Path:
    """Write a text model with M-RoPE, for `qwen2vl_merger`."""

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_array("qwen2vl.rope.dimension_sections", [4, 6, 6, 0])

    control = ("<|vision_start|>", "<|vision_end|>")
    return write_tiny(path, architecture="qwen2vl", n_ctx=n_ctx, edit=edit, control=control)
