"""Check what libmtmd asserts about a projector before C sees the file.

A failed assertion in C ends the process, and so does a tensor that C looks for only when it encodes
the first picture. The rules for every projector are those that hold for all encoders; the encoders
of `_RULES` were tested by changing files at random (`tools/fuzz/projectors.py`), and their tensors
are checked one by one. What libmtmd refuses with an error of its own is left to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import ModelLoadError
from .header_check import GgufSummary
from .projector_tensors import wrong_tensors

__all__ = ["check_projector", "projector_reasons"]

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING = 4, 5, 6, 7, 8
_KIND_NAMES = {_UINT32: "uint32", _INT32: "int32", _FLOAT32: "float32", _BOOL: "bool"}
_KIND_NAMES[_STRING] = "string"
# Keys that C reads -> the only value type that it accepts. Others may have any.
_KINDS = (
    (re.compile(r"clip\.(has_(vision|audio)_encoder|use_(gelu|silu))"), _BOOL),
    (
        re.compile(
            r"general\.(name|description)|clip\.((vision|audio)\.)?projector_type"
            r"|clip\.vision\.mm_patch_merge_type"
        ),
        _STRING,
    ),
    (re.compile(r"clip\.(vision|audio)\.attention\.layer_norm_epsilon"), _FLOAT32),
    (re.compile(r"clip\.minicpmv_version"), _INT32),
    (
        re.compile(
            r"clip\.(vision|audio)\.(embedding_length|feed_forward_length|block_count"
            r"|projection_dim|attention\.head_count)"
            r"|clip\.vision\.(image_size|patch_size|image_(min|max)_pixels|preproc_image_size"
            r"|preproc_(min|max)_tiles|projector\.scale_factor|spatial_merge_size|n_wa_pattern"
            r"|sam\.(head_count|block_count|embedding_length))"
            r"|clip\.audio\.(num_mel_bins|projector\.stack_factor|subsampling_factor)"
            r"|clip\.minicpmv_query_num"
        ),
        _UINT32,
    ),
)
_INTEGER_ARRAYS = (
    "clip.vision.image_grid_pinpoints",
    "clip.vision.feature_layer",
    "clip.vision.wa_layer_indexes",
)
_PINPOINTS = "clip.vision.image_grid_pinpoints"
_COLORS = ("clip.vision.image_mean", "clip.vision.image_std")
_MAX_INT = 2**31 - 1  # C keeps numbers as int
_MAX_BLOCKS = 1024  # the deepest encoders have 128
_MAX_PATCHES = 65_536
_MAX_MEL_BINS = 1024
_MAX_TILED_SIDE = 32_768  # pixels


def check_projector(path: Path, gguf: GgufSummary) -> None:
    """Refuse a projector that would end the process.

    Args:
        path: The file, for the message.
        gguf: Its header.

    Raises:
        ModelLoadError: With the reason, the wrong value, and what would be right.
    """
    for reason in projector_reasons(gguf):
        raise ModelLoadError(
            f"{path} cannot be used as a projector: {reason}. Download it again, or convert it "
            "with llama.cpp's convert_hf_to_gguf.py --mmproj."
        )


def projector_reasons(gguf: GgufSummary) -> Iterator[str]:
    """Yield why a file would end the process if libmtmd loaded it, or encoded with it.

    Args:
        gguf: The header of the file.
    """
    if gguf.architecture != "clip":
        yield (
            f"its architecture is {gguf.architecture!r}, not 'clip'; a projector is a file of its "
            "own, usually called mmproj-*.gguf"
        )
        return
    wrong_kinds = [*_wrong_kinds(gguf)]
    yield from wrong_kinds
    if wrong_kinds:
        return
    for modality in ("vision", "audio"):
        if gguf.values.get(f"clip.{modality}.projector_type") or gguf.values.get(
            f"clip.has_{modality}_encoder"
        ):
            wrong_numbers = [*_numbers(gguf, modality)]
            yield from wrong_numbers
            if not wrong_numbers:
                yield from wrong_tensors(gguf, modality)


def _wrong_kinds(gguf: GgufSummary) -> Iterator[str]:
    """Yield metadata of another type than C reads: gguf_get_val_* asserts it."""
    for key in (*gguf.values, *gguf.arrays):
        for pattern, kind in _KINDS:
            if pattern.fullmatch(key) and gguf.kinds.get(key) != kind:
                found = "an array" if key in gguf.arrays else f"of value type {gguf.kinds[key]}"
                yield f"{key} is {found}, not {_KIND_NAMES[kind]}"
    for key in (*_INTEGER_ARRAYS, *_COLORS):
        array = gguf.arrays.get(key)
        kinds = (_FLOAT32,) if key in _COLORS else (_UINT32, _INT32)
        if array is None and key in gguf.values:
            yield f"{key} is not an array"
        elif array is not None and array.kind not in kinds:
            yield f"{key} is an array of value type {array.kind}, not {_KIND_NAMES[kinds[-1]]}"
        elif array is not None and key == _PINPOINTS and array.count % 2:
            yield f"{key} has {array.count} items, which are no pairs of width and height"


def _numbers(gguf: GgufSummary, modality: str) -> Iterator[str]:
    """Yield numbers that C divides by, allocates by, or asserts to be in a range."""
    for key, value in gguf.values.items():
        if key.startswith("clip.") and isinstance(value, int) and value > _MAX_INT:
            yield f"{key} is {value}; it must be at most {_MAX_INT}"
    blocks = gguf.number(f"{modality}.block_count")
    has_attention = any(t.name.startswith(f"{modality[0]}.blk.0.attn_") for t in gguf.tensors)
    if blocks and has_attention and not gguf.number(f"{modality}.attention.head_count"):
        yield f"clip.{modality}.attention.head_count is 0; it must be at least 1"
    if blocks > _MAX_BLOCKS:
        yield f"clip.{modality}.block_count is {blocks}; it must be at most {_MAX_BLOCKS}"
    epsilon = gguf.values.get(f"clip.{modality}.attention.layer_norm_epsilon")
    if isinstance(epsilon, float) and not 0 <= epsilon < math.inf:  # eps >= 0.0f
        yield f"clip.{modality}.attention.layer_norm_epsilon is {epsilon}; it must be 0 or more"
    if modality == "audio":
        bins = gguf.number("audio.num_mel_bins")
        if bins > _MAX_MEL_BINS:
            yield f"clip.audio.num_mel_bins is {bins}; it must be at most {_MAX_MEL_BINS}"
        return
    yield from _picture_numbers(gguf)


def _picture_numbers(gguf: GgufSummary) -> Iterator[str]:
    size, patch = gguf.number("vision.image_size"), gguf.number("vision.patch_size")
    if not patch:
        yield "clip.vision.patch_size is 0; it must be at least 1"
    elif (size // patch) ** 2 > _MAX_PATCHES:
        yield (
            f"pictures of {size} pixels a side in patches of {patch} make {(size // patch) ** 2} "
            f"patches; at most {_MAX_PATCHES} can be encoded in a bearable time"
        )
    for key in _COLORS:
        array = gguf.arrays.get(key)
        if array is None:
            yield f"{key} is missing; it must be 3 numbers, for red, green and blue"
        elif array.count < 3:  # C reads 3
            yield f"{key} has {array.count} numbers; it must have 3, for red, green and blue"
        elif not all(map(math.isfinite, array.reals)):
            yield f"{key} is {array.reals}; its numbers must be finite"
        elif key.endswith("std") and not all(value > 0 for value in array.reals):
            yield f"{key} is {array.reals}; its numbers must be more than 0"
    least, most = (gguf.number(f"vision.preproc_{end}_tiles") for end in ("min", "max"))
    if (most and least > most) or most == _MAX_INT:
        yield f"clip.vision.preproc_min_tiles is {least} and preproc_max_tiles {most}"
    side = gguf.number("vision.preproc_image_size")
    if side > _MAX_TILED_SIDE:
        yield f"clip.vision.preproc_image_size is {side}; it must be at most {_MAX_TILED_SIDE}"
