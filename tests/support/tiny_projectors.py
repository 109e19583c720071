"""Tiny multimodal projectors with random weights, and text models that go with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from support.tiny_gguf import write_tiny

__all__ = ["IMAGE_KINDS", "write_projector", "write_text_model"]

IMAGE_KINDS = ("janus_pro", "gemma3", "idefics3", "qwen2vl_merger")
WIDTH, FF, PATCH, HEADS = 16, 32, 4, 2
# Texts that libmtmd looks up in the vocabulary, or writes around pictures and sounds.
_CONTROL = {
    "idefics3": (
        "<fake_token_around_image>", "<global-img>", "<image>", "\n", "\n\n",
        *(f"<row_{y}_col_{x}>" for y in range(1, 7) for x in range(1, 7)),
    ),
    "qwen2vl_merger": ("<|vision_start|>", "<|vision_end|>"),
    "gemma3": ("<start_of_image>", "<end_of_image>"),
    "qwen2a": ("<|audio_bos|>", "<|audio_eos|>"),
}  # fmt: skip
_SCALE = {"gemma3": 2, "idefics3": 2}
Edit = Callable[[gguf.GGUFWriter], object]


class _Weights:
    """Adds random tensors to a file."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int) -> None:
        self._writer, self._random = writer, np.random.default_rng(seed)

    def __call__(self, name: str, *shape: int, around: float = 0.0, half: bool = False) -> None:
        values: NDArray[np.float32] = (around + self._random.normal(size=shape) * 0.3).astype(
            np.float32
        )
        self._writer.add_tensor(name, values.astype(np.float16) if half else values)

    def layer(self, name: str, n_out: int, n_in: int, bias: bool = True) -> None:
        """Add the weight of a linear layer, and its bias."""
        self(f"{name}.weight", n_out, n_in)
        if bias:
            self(f"{name}.bias", n_out)

    def norm(self, name: str) -> None:
        """Add weight and bias of a layer norm."""
        self(f"{name}.weight", WIDTH, around=1.0)
        self(f"{name}.bias", WIDTH)

    def block(self, prefix: str, biased_keys: bool = True) -> None:
        """Add a transformer block."""
        for part in ("q", "k", "v", "out"):
            self.layer(f"{prefix}.attn_{part}", WIDTH, WIDTH, part != "k" or biased_keys)
        self.norm(f"{prefix}.ln1")
        self.norm(f"{prefix}.ln2")
        self.layer(f"{prefix}.ffn_up", FF, WIDTH)
        self.layer(f"{prefix}.ffn_down", WIDTH, FF)


def write_projector(
    path: Path,
    kind: str = "janus_pro",
    *,
    n_embd: int = 64,
    size: int = 16,
    seed: int = 0,
    edit: Edit | None = None,
) -> Path:
    """Write a projector.

    `janus_pro` is causal, `gemma3` is not, `idefics3` has tiles, `qwen2vl_merger` M-RoPE; `qwen2a`
    takes sounds, and `both` is `qwen2vl_merger` and `qwen2a` in one file. Pictures have *size* x
    *size* pixels in patches of 4; one block of width 16. *edit* may change the writer's
    `kv_data[0]` and `tensors[0]` before they are written.
    """
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.use_gelu", True)
    weights = _Weights(writer, seed)
    if kind == "both":
        _vision(writer, weights, "qwen2vl_merger", n_embd, size, "clip.vision.projector_type")
        _audio(writer, weights, n_embd, "clip.audio.projector_type")
    elif kind == "qwen2a":
        _audio(writer, weights, n_embd, "clip.projector_type")
    else:
        _vision(writer, weights, kind, n_embd, size, "clip.projector_type")
    if edit is not None:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _numbers(writer: gguf.GGUFWriter, prefix: str, n_embd: int, **more: int) -> None:
    numbers = {
        "embedding_length": WIDTH,
        "feed_forward_length": FF,
        "block_count": 1,
        "projection_dim": n_embd,
        "attention.head_count": HEADS,
        **more,
    }
    for key, value in numbers.items():
        writer.add_uint32(f"{prefix}.{key}", value)
    writer.add_float32(f"{prefix}.attention.layer_norm_epsilon", 1e-6)


def _vision(
    writer: gguf.GGUFWriter, weights: _Weights, kind: str, n_embd: int, size: int, key: str
) -> None:
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string(key, kind)
    _numbers(writer, "clip.vision", n_embd, image_size=size, patch_size=PATCH)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    weights("v.patch_embd.weight", WIDTH, 3, PATCH, PATCH)
    if kind == "qwen2vl_merger":
        weights("v.patch_embd.weight.1", WIDTH, 3, PATCH, PATCH)
    else:
        weights("v.patch_embd.bias", WIDTH)
        weights("v.position_embd.weight", (size // PATCH) ** 2, WIDTH)
    weights.block("v.blk.0")
    weights.norm("v.post_ln")
    if kind in _SCALE:
        writer.add_uint32("clip.vision.projector.scale_factor", _SCALE[kind])
    if kind == "janus_pro":
        weights.layer("mm.0", n_embd, WIDTH)
        weights.layer("mm.1", n_embd, n_embd)
    elif kind == "qwen2vl_merger":
        weights.layer("mm.0", 4 * WIDTH, 4 * WIDTH)
        weights.layer("mm.2", n_embd, 4 * WIDTH)
    elif kind == "idefics3":
        weights("mm.model.fc.weight", n_embd, 4 * WIDTH)
        writer.add_uint32("clip.vision.preproc_image_size", 4 * size)
    else:
        weights("mm.input_projection.weight", WIDTH, n_embd)
        weights("mm.soft_emb_norm.weight", WIDTH, around=1.0)


def _audio(writer: gguf.GGUFWriter, weights: _Weights, n_embd: int, key: str) -> None:
    writer.add_bool("clip.has_audio_encoder", True)
    writer.add_string(key, "qwen2a")
    _numbers(writer, "clip.audio", n_embd, num_mel_bins=80)
    weights("a.conv1d.1.weight", WIDTH, 80, 3, half=True)
    weights("a.conv1d.1.bias", WIDTH, 1)
    weights("a.conv1d.2.weight", WIDTH, WIDTH, 3, half=True)
    weights("a.conv1d.2.bias", WIDTH, 1)
    weights("a.position_embd.weight", 1500, WIDTH)
    weights.block("a.blk.0", biased_keys=False)
    weights.norm("a.post_ln")
    weights.layer("mm.a.fc", n_embd, WIDTH)


def write_text_model(path: Path, kind: str, n_ctx: int = 2048, n_embd: int = 64) -> Path:
    """Write a text model with the control tokens, and M-RoPE if necessary, of a projector."""
    is_mrope = kind in ("qwen2vl_merger", "both")

    def edit(writer: gguf.GGUFWriter) -> None:
        if is_mrope:
            writer.add_array("qwen2vl.rope.dimension_sections", [4, 6, 6, 0])

    control = _CONTROL.get(kind, ())
    if kind == "both":
        control = (*_CONTROL["qwen2vl_merger"], *_CONTROL["qwen2a"])
    architecture = "qwen2vl" if is_mrope else "llama"
    return write_tiny(
        path, architecture=architecture, n_embd=n_embd, n_ctx=n_ctx, edit=edit, control=control
    )
