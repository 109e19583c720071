"""Projectors that would end the process are refused, with the wrong number; valid ones are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from support.gguf_codec import ARRAY, FLOAT, STRING, U32, Array, Gguf, Tensor, Value, decode
from support.tiny_gguf import write_tiny
from support.tiny_projectors import IMAGE_KINDS, write_projector

from llama_cffi.errors import ModelLoadError
from llama_cffi.gguf.header_check import check_gguf
from llama_cffi.gguf.projector_check import check_projector, projector_reasons

KINDS = (*IMAGE_KINDS, "qwen2a", "both")
Edit = Callable[[Gguf], object]


def number(key: str, value: int) -> Edit:
    return lambda file: file.keys.update({f"clip.{key}": Value(U32, value)})


def value(key: str, new: Value) -> Edit:
    return lambda file: file.keys.update({f"clip.{key}": new})


def colors(key: str, *items: float, kind: int = FLOAT) -> Edit:
    return value(f"vision.image_{key}", Value(ARRAY, Array(kind, list(items))))


def no_key(key: str) -> Edit:
    return lambda file: file.keys.pop(f"clip.{key}")


def no_tensor(name: str) -> Edit:
    def edit(file: Gguf) -> None:
        file.tensors = [t for t in file.tensors if t.name != name.encode()]

    return edit


def tensor(name: str, *shape: int, kind: int = 0) -> Edit:
    """Put a tensor of a shape, in ggml's order, in the place of another."""

    def edit(file: Gguf) -> None:
        no_tensor(name)(file)
        width = {0: 4, 1: 2, 26: 4, 8: 34 / 32}[kind]
        data = bytes(int(math.prod(shape) * width))
        file.tensors.append(Tensor(name.encode(), list(shape), kind, data))

    return edit


def both(*edits: Edit) -> Edit:
    def edit(file: Gguf) -> None:
        for one in edits:
            one(file)

    return edit


def changed(folder: Path, kind: str, edit: Edit) -> Path:
    """Write a projector, changed."""
    path = write_projector(folder / "mmproj.gguf", kind)
    file = decode(path.read_bytes())
    edit(file)
    path.write_bytes(file.encode())
    return path


def reasons(path: Path) -> list[str]:
    return [*projector_reasons(check_gguf(path))]


@pytest.mark.parametrize("kind", KINDS)
def test_valid_projectors(tmp_path: Path, kind: str) -> None:
    path = write_projector(tmp_path / "mmproj.gguf", kind)
    assert reasons(path) == []
    check_projector(path, check_gguf(path))


WRONG = [
    # Metadata of another type: an assertion of gguf_get_val_*.
    ("janus_pro", value("vision.image_size", Value(10, 16)), "image_size is of value type 10, not"),
    ("janus_pro", value("vision.block_count", Value(STRING, "1")), "value type 8, not uint32"),
    ("janus_pro", value("use_gelu", Value(U32, 1)), "clip.use_gelu is of value type 4, not bool"),
    ("janus_pro", value("projector_type", Value(U32, 1)), "value type 4, not string"),
    ("qwen2a", value("audio.num_mel_bins", Value(FLOAT, 80.0)), "value type 6, not uint32"),
    (
        "janus_pro",
        value("vision.patch_size", Value(ARRAY, Array(U32, [4]))),
        "patch_size is an array, not uint32",
    ),
    (
        "janus_pro",
        value("vision.feature_layer", Value(ARRAY, Array(STRING, ["x"]))),
        "feature_layer is an array of value type 8, not int32",
    ),
    ("janus_pro", value("vision.feature_layer", Value(U32, 1)), "feature_layer is not an array"),
    (
        "janus_pro",
        value("vision.image_grid_pinpoints", Value(ARRAY, Array(5, [16, 16, 32]))),
        "has 3 items, which are no pairs",
    ),
    # Numbers.
    ("janus_pro", number("vision.attention.head_count", 0), "head_count is 0; it must be at least"),
    (
        "gemma3",
        number("vision.attention.head_count", 3),
        "is 3, which does not divide the width 16",
    ),
    ("janus_pro", number("vision.patch_size", 0), "patch_size is 0; it must be at least 1"),
    ("janus_pro", number("vision.image_size", 8192), "make 4194304 patches; at most 65536"),
    ("janus_pro", number("vision.image_size", 3), "image_size is 3, less than a patch of 4"),
    ("janus_pro", number("vision.block_count", 10**6), "block_count is 1000000; .* at most 1024"),
    ("janus_pro", number("vision.projection_dim", 2**31), "projection_dim is 2147483648; it must"),
    ("qwen2vl_merger", number("vision.block_count", 0), "block_count is 0; this type of projector"),
    ("qwen2vl_merger", number("vision.spatial_merge_size", 3), "spatial_merge_size is 3; .* be 2"),
    ("qwen2vl_merger", number("vision.attention.head_count", 8), "heads are 2 wide, no multiple"),
    ("qwen2vl_merger", number("vision.image_min_pixels", 0), "image_min_pixels is 0; it must be"),
    ("qwen2vl_merger", number("vision.n_wa_pattern", 4), "belongs to qwen2.5vl_merger"),
    ("gemma3", number("vision.projector.scale_factor", 3), "which does not divide the 4 patches"),
    ("gemma3", number("vision.projector.scale_factor", 0), "is 0, which does not divide"),
    ("idefics3", number("vision.projector.scale_factor", 1), "is 1; it must be at least 2"),
    ("idefics3", no_key("vision.projector.scale_factor"), "is 1; it must be at least 2"),
    ("idefics3", number("vision.preproc_image_size", 2**30), "1073741824; it must be at most"),
    ("qwen2a", number("audio.block_count", 0), "clip.audio.block_count is 0"),
    ("qwen2a", number("audio.num_mel_bins", 4000), "num_mel_bins is 4000; it must be at most 1024"),
    (
        "janus_pro",
        value("vision.attention.layer_norm_epsilon", Value(FLOAT, math.nan)),
        "layer_norm_epsilon is nan",
    ),
    ("janus_pro", no_key("vision.image_mean"), "image_mean is missing; it must be 3 numbers"),
    ("janus_pro", colors("mean", 0.5, 0.5), "image_mean has 2 numbers; it must have 3"),
    ("janus_pro", colors("mean", 0.5, math.inf, 0.5), "its numbers must be finite"),
    ("janus_pro", colors("std", 0.5, 0.0, 0.5), "its numbers must be more than 0"),
    ("janus_pro", colors("std", 1, 1, 1, kind=5), "image_std is an array of value type 5, not f"),
    # Tensors.
    ("janus_pro", no_tensor("v.patch_embd.weight"), "v.patch_embd.weight is missing"),
    ("gemma3", no_tensor("v.blk.0.attn_q.weight"), "v.blk.0.attn_q.weight is missing"),
    ("qwen2vl_merger", no_tensor("v.blk.0.attn_k.bias"), "v.blk.0.attn_k.bias is missing"),
    ("qwen2vl_merger", no_tensor("v.patch_embd.weight.1"), "v.patch_embd.weight.1 is missing"),
    ("qwen2vl_merger", tensor("v.patch_embd.bias", 16), "v.patch_embd.bias is none of this type"),
    ("qwen2a", tensor("a.blk.0.attn_k.bias", 16), "a.blk.0.attn_k.bias is none of this type"),
    ("qwen2a", no_tensor("a.blk.0.ln1.bias"), "a.blk.0.ln1.bias is missing"),
    ("qwen2a", no_tensor("a.position_embd.weight"), "a.position_embd.weight is missing"),
    ("qwen2a", tensor("a.position_embd.weight", 16, 100), "has 100 rows; 30 s of sound need 1500"),
    ("qwen2a", tensor("a.conv1d.1.weight", 3, 80, 16, kind=26), "has type I32; it must be F16 or"),
    ("idefics3", number("vision.preproc_image_size", 8192), "more than 64 tiles of 16 pixels"),
    ("janus_pro", number("vision.block_count", 2), "v.blk.1.attn_q.weight is missing"),
    ("janus_pro", tensor("v.blk.0.ffn_down.weight", 30, 16), r"shape \(30, 16\), not \(32, 16\)"),
    ("janus_pro", tensor("v.blk.0.attn_v.weight", 16, 8), r"shape \(16, 8\), not \(16, 16\)"),
    ("janus_pro", tensor("v.patch_embd.weight", 4, 4, 1, 16), r"not \(4, 4, 3, 16\)"),
    ("janus_pro", tensor("mm.1.bias", 32), r"mm.1.bias has the shape \(32,\), not \(64,\)"),
    ("idefics3", tensor("mm.model.fc.weight", 32, 64), r"\(32, 64\), not \(64, 64\)"),
    ("janus_pro", tensor("v.position_embd.weight", 16, 9), "has 9 rows for 4 x 4 patches"),
    ("janus_pro", tensor("v.position_embd.weight", 8, 16), "its rows must be 16 wide"),
    ("janus_pro", tensor("v.blk.0.ln1.weight", 16, kind=1), "has type F16; it must be F32"),
    ("janus_pro", tensor("mm.0.weight", 16, 64, kind=26), "has type I32; it must be a type that"),
    ("gemma3", tensor("mm.input_projection.weight", 64, 16, kind=8), "it must be BF16 or F16 or"),
    ("both", no_tensor("v.blk.0.attn_out.weight"), "v.blk.0.attn_out.weight is missing"),
    ("both", no_tensor("a.blk.0.attn_v.bias"), "a.blk.0.attn_v.bias is missing"),
    # Types that C knows and that are not tested one by one.
    ("janus_pro", value("projector_type", Value(STRING, "mlp")), "mm.2.weight or mm.3.weight is m"),
    (
        "janus_pro",
        both(value("projector_type", Value(STRING, "phi4")), no_tensor("v.patch_embd.weight")),
        "v.patch_embd.weight is missing",
    ),
    (
        "janus_pro",
        both(
            value("projector_type", Value(STRING, "internvl")),
            tensor("v.blk.0.attn_q.bias", 16, kind=26),
        ),
        "v.blk.0.attn_q.bias has type I32; it must be F32",
    ),
]


@pytest.mark.parametrize(("kind", "edit", "reason"), WRONG)
def test_what_would_end_the_process(tmp_path: Path, kind: str, edit: Edit, reason: str) -> None:
    path = changed(tmp_path, kind, edit)
    with pytest.raises(ModelLoadError, match=reason) as caught:
        check_projector(path, check_gguf(path))
    assert str(caught.value).startswith(f"{path} cannot be used as a projector: ")
    assert "convert_hf_to_gguf.py --mmproj" in str(caught.value)


RIGHT = [
    # 384 pixels in patches of 14, as in SigLIP: what is left over at the edges is not seen.
    ("janus_pro", number("vision.image_size", 18)),
    ("janus_pro", number("vision.projection_dim", 5)),  # C looks at the tensors
    ("janus_pro", tensor("mm.0.weight", 16, 64, kind=1)),
    ("qwen2vl_merger", number("vision.feed_forward_length", 0)),  # old files
    ("qwen2vl_merger", number("vision.image_size", 560)),
    ("gemma3", value("vision.feature_layer", Value(ARRAY, Array(5, [-1])))),
    ("qwen2vl_merger", number("vision.spatial_merge_size", 2)),
    ("qwen2a", tensor("a.conv1d.1.weight", 3, 80, 16)),
    (
        "gemma3",  # ffn_up and ffn_down the other way round, as in old files
        both(
            tensor("v.blk.0.ffn_up.weight", 32, 16), tensor("v.blk.0.ffn_down.weight", 16, 32),
            tensor("v.blk.0.ffn_up.bias", 16), tensor("v.blk.0.ffn_down.bias", 32),
        ),
    ),
    (
        "janus_pro",
        both(
            tensor("v.blk.0.attn_qkv.weight", 16, 48), tensor("v.blk.0.attn_qkv.bias", 48),
            *(no_tensor(f"v.blk.0.attn_{part}.weight") for part in "qkv"),
        ),
    ),
    ("janus_pro", value("projector_type", Value(STRING, "of-next-year"))),
    ("janus_pro", value("projector_type", Value(STRING, "internvl"))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "edit"), RIGHT)
def test_what_works(tmp_path: Path, kind: str, edit: Edit) -> None:
    assert reasons(changed(tmp_path, kind, edit)) == []


def test_a_text_model_is_no_projector(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model.gguf")
    assert reasons(path) == [
        "its architecture is 'llama', not 'clip'; a projector is a file of its own, usually called "
        "mmproj-*.gguf"
    ]


def test_a_truncated_projector(tmp_path: Path) -> None:
    path = write_projector(tmp_path / "mmproj.gguf")
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ModelLoadError, match="truncated or corrupt: its tensors need"):
        check_gguf(path, kind="projector")
