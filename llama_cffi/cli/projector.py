"""What a projector of pictures and sounds is, from its header: a part of `inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["is_projector", "projector_facts"]

# Kinds whose pictures have a fixed number of tokens: patches / (this or scale_factor)².
_FIXED = {"mlp": 1, "mlp_norm": 1, "janus_pro": 1, "ldp": 2, "ldpv2": 2, "gemma3": 4}
_TILED = {"idefics3": 3, "internvl": 2}
# Kinds that take pictures of any size: pixels of a token's side, in patches.
_ANY_SIZE = {
    "qwen2vl_merger": 2, "qwen2.5vl_merger": 2, "qwen3vl_merger": 2, "pixtral": 1, "glm4v": 2,
}  # fmt: skip
_WINDOW_TOKENS = {"qwen2a": 750, "ultravox": 188, "voxtral": 375}  # of 30 s


def is_projector(values: Mapping[str, Any]) -> bool:
    """Return whether the metadata of a GGUF file is that of a projector."""
    return values.get("general.architecture") == "clip"


def projector_facts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield lines of the overview of a projector.

    Args:
        values: Its scalar metadata.
    """
    kinds = {"vision": "pictures", "audio": "sounds"}
    taken = [what for kind, what in kinds.items() if values.get(f"clip.has_{kind}_encoder") is True]
    yield "projector", f"of {' and '.join(taken)}" if taken else "of nothing: no encoder is named"
    for kind, what in kinds.items():
        if what in taken:
            name = values.get(f"clip.{kind}.projector_type", values.get("clip.projector_type"))
            yield what, ", ".join([str(name), *(_vision if kind == "vision" else _audio)(
                str(name), values)])  # fmt: skip
    for kind, what in kinds.items():
        width = _number(values, f"clip.{kind}.projection_dim")
        if what in taken and width:
            yield "for models", f"with embeddings of {width:,} numbers"
            return


def _vision(kind: str, values: Mapping[str, Any]) -> Iterator[str]:
    side, patch = (_number(values, f"clip.vision.{n}") for n in ("image_size", "patch_size"))
    if not (side and patch):
        return
    n_patches = (side // patch) ** 2
    if kind in _ANY_SIZE:
        pixels = _ANY_SIZE[kind] * patch
        yield f"of any size, a token for {pixels} x {pixels} pixels"
        return
    yield f"{side} x {side} pixels in patches of {patch}"
    scale = _number(values, "clip.vision.projector.scale_factor")
    if kind in _TILED:
        yield f"{n_patches // (scale or _TILED[kind]) ** 2:,} tokens for each tile of a picture"
    elif kind in _FIXED:
        yield f"{n_patches // (scale or _FIXED[kind]) ** 2:,} tokens for a picture"
    else:
        yield f"up to {n_patches:,} tokens for each {side} x {side} pixels"


def _audio(kind: str, values: Mapping[str, Any]) -> Iterator[str]:
    if bins := _number(values, "clip.audio.num_mel_bins"):
        yield f"{bins} mel bins"
    if kind in _WINDOW_TOKENS:
        yield f"{_WINDOW_TOKENS[kind]} tokens for each 30 s"


def _number(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    return value if isinstance(value, int) and value > 0 else 0
