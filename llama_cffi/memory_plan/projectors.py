"""What a projector takes, from its header: weights, compute buffer, and the batch of a picture.

The formulae are what builds since b9842 reserve, with flash attention.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..gguf.header_check import GgufSummary, check_gguf
from .hub_headers import remote_model_files, resolve_if_here

__all__ = ["n_together", "projector_bytes", "read_projector"]

# Their pictures are decoded in one call, since all tokens of one attend to each other.
_NON_CAUSAL = ("gemma3", "gemma4uv", "gemma4v", "deepseek4v")
_GEMMA4_TOKENS = 1120
# Take pictures of any size, up to so many tokens of 2 x 2 patches.
_ANY_SIZE, _ANY_SIZE_TOKENS = ("qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger"), 4096
_FRAMES = 3000  # of a window of sound; two give one token of the encoder


def read_projector(source: str | os.PathLike[str]) -> GgufSummary:
    """Return the header of a projector: a file, or `hf:owner/repo:file`.

    Raises:
        ModelLoadError: It is missing, damaged, or no projector.
        FetchError: It cannot be fetched.
    """
    path = resolve_if_here(source)
    if path is None:
        return remote_model_files(str(source)).summary
    return check_gguf(path, kind="projector")


def projector_bytes(gguf: GgufSummary, image_max_tokens: int | None = None) -> int:
    """Return the bytes of a projector and of its compute buffer for the largest input.

    Args:
        gguf: Its header.
        image_max_tokens: See `Projector`.
    """
    vision, audio = (_numbers(gguf, f"clip.{kind}.") for kind in ("vision", "audio"))
    n_patches, n_tokens = _side(vision) ** 2, (_side(vision) // _scale(gguf)) ** 2
    if _type(gguf) in _ANY_SIZE:
        n_tokens = image_max_tokens or _ANY_SIZE_TOKENS
        n_patches = 4 * n_tokens
    n_values = 3 * vision.get("patch_size", 0) ** 2  # of a patch
    n_mel, width = audio.get("num_mel_bins", 0), audio.get("embedding_length", 0)
    n_frames = _FRAMES if width else 0
    compute = max(
        n_patches * n_values * (4 + 2),  # the pixels, and again in half precision
        _of_blocks(vision, n_patches),
        n_tokens * vision.get("projection_dim", 0) * 2 * 4,
        n_frames * max(n_mel * (4 + 3 * 2), width * (4 + 3)),
        _of_blocks(audio, n_frames // 2),
    )
    return sum(tensor.size_bytes or 0 for tensor in gguf.tensors) + compute


def n_together(gguf: GgufSummary, image_max_tokens: int | None = None) -> int:
    """Return the most tokens of a picture that are decoded in one call; 1: any number.

    Args:
        gguf: The header of the projector.
        image_max_tokens: See `Projector`.
    """
    kind = _type(gguf)
    if kind not in _NON_CAUSAL:
        return 1
    if image_max_tokens is not None:
        return image_max_tokens
    if kind.startswith("gemma4"):
        return _GEMMA4_TOKENS
    return max(1, (_side(_numbers(gguf, "clip.vision.")) // _scale(gguf)) ** 2)


def _type(gguf: GgufSummary) -> str:
    """Return the type of the encoder of pictures."""
    values = gguf.values
    return str(values.get("clip.vision.projector_type") or values.get("clip.projector_type"))


def _numbers(gguf: GgufSummary, prefix: str) -> Mapping[str, int]:
    return {
        key.removeprefix(prefix): value
        for key, value in gguf.values.items()
        if key.startswith(prefix) and isinstance(value, int)
    }


def _scale(gguf: GgufSummary) -> int:
    """Return how many patches a side become one token."""
    value = gguf.values.get("clip.vision.projector.scale_factor")
    default = 4 if _type(gguf) == "gemma3" else 1
    return value if isinstance(value, int) and value > 0 else default


def _side(vision: Mapping[str, int]) -> int:
    return vision.get("image_size", 0) // (vision.get("patch_size", 1) or 1)


def _of_blocks(numbers: Mapping[str, int], n: int) -> int:
    """Return the bytes of what a block has at once: its input, and q, k, v or the hidden layer."""
    width, hidden = (numbers.get(f"{name}_length", 0) for name in ("embedding", "feed_forward"))
    return 4 * n * max(5 * width, 2 * width + hidden)
