"""The tensors of projectors: which ones libmtmd computes with, their shapes and types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .header_check import GgufSummary, GgufTensor

__all__ = ["wrong_tensors"]

# A dimension is a number, or a name that stands for the same number within one table.
_Shape = tuple["int | str", ...]
_Shapes = Mapping[str, _Shape]

_F32 = frozenset({"F32"})
_CONVOLUTIONS = frozenset({"F32", "F16"})
_TRANSPOSED = frozenset({"F32", "F16", "BF16"})
# Types to store numbers or the results of other operations: no matrices.
_NO_MATRICES = frozenset({"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"})
_BLOCK = re.compile(r"[av]\.blk\.\d+\.(attn_(q|k|v|qkv|out)|ffn_(up|gate|down)|ln[12])\.")
_SOUND_POSITIONS = 1500  # 30 s
_MAX_TILES = 64  # a side; models have up to 6


@dataclass(frozen=True)
class _Rule:
    """What the tensors of a type of projector must be.

    Attributes:
        modality: What it encodes.
        needed: Tensors that must exist.
        forbidden: Tensors that must not exist.
        biased: Parts of the attention that need a bias.
        merge: The key of how many patches a side become one, and its default.
        has_positions: Whether a table of positions is added to the patches.
        needs_blocks: Whether C aborts without a transformer block.
        is_old: Whether old files have ffn_up and ffn_down the other way round, which C undoes.
    """

    modality: str
    needed: _Shapes
    forbidden: tuple[str, ...] = ()
    biased: tuple[str, ...] = ()
    merge: tuple[str, int] = ("vision.projector.scale_factor", 1)
    has_positions: bool = True
    needs_blocks: bool = False
    is_old: bool = True


_PATCHES: _Shapes = MappingProxyType({"v.patch_embd.weight": ("patch", "patch", 3, "n")})
_QWEN = _Rule(
    "vision",
    {
        **_PATCHES,
        "v.patch_embd.weight.1": ("patch", "patch", 3, "n"),
        "mm.0.weight": ("merged", "inner"),
        "mm.0.bias": ("inner",),
        "mm.2.weight": ("inner", "out"),
        "mm.2.bias": ("out",),
    },
    forbidden=("v.patch_embd.bias", "v.class_embd"),
    biased=("q", "k", "v"),
    merge=("vision.spatial_merge_size", 2),
    has_positions=False,
    needs_blocks=True,
)
_RULES = {
    "janus_pro": _Rule(
        "vision",
        {
            **_PATCHES,
            "mm.0.weight": ("n", "inner"),
            "mm.0.bias": ("inner",),
            "mm.1.weight": ("inner", "out"),
            "mm.1.bias": ("out",),
        },
        is_old=False,
    ),
    "gemma3": _Rule(
        "vision",
        {
            **_PATCHES,
            "mm.input_projection.weight": ("out", "n"),
            "mm.soft_emb_norm.weight": ("n",),
        },
        merge=("vision.projector.scale_factor", 4),
    ),
    "idefics3": _Rule("vision", {**_PATCHES, "mm.model.fc.weight": ("merged", "out")}),
    "qwen2vl_merger": _QWEN,
    "qwen2a": _Rule(
        "audio",
        {
            "a.conv1d.1.weight": (3, "mel", "n"),
            "a.conv1d.1.bias": (1, "n"),
            "a.conv1d.2.weight": (3, "n", "n"),
            "a.conv1d.2.bias": (1, "n"),
            "a.position_embd.weight": ("n", "positions"),
            "mm.a.fc.weight": ("n", "out"),
            "mm.a.fc.bias": ("out",),
        },
        biased=("q", "v"),
        needs_blocks=True,
        is_old=False,
    ),
}
_PATCH = ("v.patch_embd.weight",)
_LLAVA = (*_PATCH, "v.position_embd.weight")
# Other types -> tensors that C takes as optional but always uses; of some, one or another.
_NEEDED = {
    "mlp": (*_LLAVA, "mm.0.weight", "mm.2.weight|mm.3.weight"),
    **dict.fromkeys(("ldp", "ldpv2", "adapter"), _LLAVA),
    "qwen3vl_merger": (
        *_PATCH, "v.patch_embd.weight.1", "v.patch_embd.bias", "v.position_embd.weight",
    ),
    "gemma3nv": ("v.conv_stem.conv.weight",),
    "yasa2": (*_PATCH, "v.stage.0.blk.0.dw.weight"),
    **dict.fromkeys(
        (
            "resampler", "internvl", "pixtral", "lightonocr", "llama4",
            "kimivl", "kimik25", "lfm2", "phi4", "qwen2.5vl_merger", "glm4v", "cogvlm", "dots_ocr",
            "paddleocr", "step3vl", "youtuvl", "nemotron_v2_vl", "hunyuanocr", "hunyuanvl",
        ),
        _PATCH,
    ),
}  # fmt: skip


def wrong_tensors(gguf: GgufSummary, modality: str) -> Iterator[str]:
    """Yield what is wrong with the tensors of an encoder, whose metadata is right.

    Args:
        gguf: The header of the file.
        modality: `vision` or `audio`.
    """
    kind = gguf.values.get("clip.projector_type") or gguf.values.get(
        f"clip.{modality}.projector_type"
    )
    if kind == "qwen2.5o":  # C's name of a file with both
        kind = "qwen2.5vl_merger" if modality == "vision" else "qwen2a"
    rule = _RULES.get(str(kind))
    if rule is not None and rule.modality == modality:
        yield from _Encoder(gguf, rule).wrong()
        return
    have = {tensor.name for tensor in gguf.tensors}
    for choice in _NEEDED.get(str(kind), ()) if modality == "vision" else ():
        if have.isdisjoint(choice.split("|")):
            yield f"the tensor {choice.replace('|', ' or ')} is missing"
    for tensor in gguf.tensors:
        if tensor.name.startswith(modality[0]) and _BLOCK.match(tensor.name):
            yield from _wrong_type(tensor)


class _Encoder:
    """The tensors of an encoder of a known type."""

    def __init__(self, gguf: GgufSummary, rule: _Rule) -> None:
        self.gguf, self.rule = gguf, rule
        self.tensors = {tensor.name: tensor for tensor in gguf.tensors}
        number = gguf.number
        self.n = number(f"{rule.modality}.embedding_length")
        self.heads = number(f"{rule.modality}.attention.head_count")
        self.patch = number("vision.patch_size")
        key, default = rule.merge
        self.merge = number(key) if f"clip.{key}" in gguf.values else default
        self.sizes = {
            "n": self.n,
            "patch": self.patch,
            "mel": number("audio.num_mel_bins"),
            "merged": self.n * self.merge**2,
        }

    def wrong(self) -> Iterator[str]:
        """Yield what is wrong."""
        modality, letter = self.rule.modality, self.rule.modality[0]
        blocks = self.gguf.number(f"{modality}.block_count")
        if not self.n or (blocks and self.n % (self.heads or self.n + 1)):
            yield (
                f"clip.{modality}.attention.head_count is {self.heads}, which does not divide "
                f"the width {self.n} (clip.{modality}.embedding_length)"
            )
            return
        if not blocks and self.rule.needs_blocks:
            yield f"clip.{modality}.block_count is 0; this type of projector needs at least 1"
        yield from self._merging()
        for name in self.rule.forbidden:
            if name in self.tensors:
                yield f"the tensor {name} is none of this type of projector"
        for name, shape in self.rule.needed.items():
            yield from self._needed(name, shape, self.sizes)
        for name in (f"{letter}.pre_ln", f"{letter}.post_ln"):
            yield from self._optional(f"{name}.weight", ("n",), self.sizes)
            yield from self._optional(f"{name}.bias", ("n",), self.sizes)
        yield from self._optional("v.patch_embd.bias", ("n",), self.sizes)
        yield from self._positions()
        for i in range(blocks):
            yield from self._block(f"{letter}.blk.{i}")

    def _merging(self) -> Iterator[str]:
        """Yield what is wrong with the patches that become one token."""
        if self.rule.modality == "audio":
            return
        key = f"clip.{self.rule.merge[0]}"
        if self.rule is _QWEN:
            if self.merge != 2:
                yield f"{key} is {self.merge}; it must be 2"
            for end in ("min", "max"):
                if self.gguf.values.get(f"clip.vision.image_{end}_pixels") == 0:
                    yield f"clip.vision.image_{end}_pixels is 0; it must be at least 1"
            if self.gguf.number("vision.n_wa_pattern"):
                yield "clip.vision.n_wa_pattern is set, which belongs to qwen2.5vl_merger"
            if self.heads and (width := self.n // self.heads) % 4:
                yield f"its attention heads are {width} wide, no multiple of 4"
            return
        size = self.gguf.number("vision.image_size")
        side = size // self.patch
        if not side:
            yield f"clip.vision.image_size is {size}, less than a patch of {self.patch} pixels"
        elif "mm.model.fc.weight" in self.rule.needed and self.merge < 2:
            yield f"{key} is {self.merge}; it must be at least 2"  # scale_factor > 1
        elif not self.merge or side % self.merge:
            yield f"{key} is {self.merge}, which does not divide the {side} patches a side"
        longest = self.gguf.number("vision.preproc_image_size")
        if longest > size * _MAX_TILES:
            yield (
                f"clip.vision.preproc_image_size is {longest}, which makes more than {_MAX_TILES} "
                f"tiles of {size} pixels a side"
            )

    def _positions(self) -> Iterator[str]:
        name = f"{self.rule.modality[0]}.position_embd.weight"
        table = self.tensors.get(name)
        if table is None or not self.rule.has_positions:
            return
        rows = table.shape[1] if len(table.shape) > 1 else 1
        yield from _wrong_type(table, _F32)
        if table.shape[:1] != (self.n,) or len(table.shape) > 2:
            yield f"{name} has the shape {table.shape}; its rows must be {self.n} wide"
        elif self.rule.modality == "audio":
            if rows < _SOUND_POSITIONS:
                yield f"{name} has {rows} rows; 30 s of sound need {_SOUND_POSITIONS}"
        elif rows != (side := self.gguf.number("vision.image_size") // self.patch) ** 2:
            yield f"{name} has {rows} rows for {side} x {side} patches"

    def _block(self, prefix: str) -> Iterator[str]:
        """Yield what is wrong with a transformer block."""
        n, sizes = self.n, dict(self.sizes)
        fused = f"{prefix}.attn_qkv.weight" in self.tensors and self.rule is not _QWEN
        parts = {"qkv": 3 * n, "out": n} if fused else dict.fromkeys(("q", "k", "v", "out"), n)
        for part, rows in parts.items():
            yield from self._needed(f"{prefix}.attn_{part}.weight", (n, rows), sizes)
            check = self._needed if part in self.rule.biased else self._optional
            yield from check(f"{prefix}.attn_{part}.bias", (rows,), sizes)
        if self.rule.modality == "audio" and f"{prefix}.attn_k.bias" in self.tensors:
            yield f"the tensor {prefix}.attn_k.bias is none of this type of projector"
        is_needed = self.rule.modality == "audio"
        for name in ("ln1", "ln2"):
            for end in ("weight", "bias"):
                check = self._needed if is_needed else self._optional
                yield from check(f"{prefix}.{name}.{end}", (n,), sizes)
        for name in ("ls1", "ls2", "out_scale", "attn_post_norm", "ffn_post_norm"):
            yield from self._optional(f"{prefix}.{name}.weight", (n,), sizes)
        for name in ("attn_q_norm", "attn_k_norm"):
            tensor = self.tensors.get(f"{prefix}.{name}.weight")
            if tensor is None:
                continue
            yield from _wrong_type(tensor, _F32)
            if _plain(tensor) not in ((n,), (n // self.heads,)):
                yield f"{tensor.name} has the shape {tensor.shape}, not ({n},)"
        yield from self._feed_forward(prefix, sizes)

    def _feed_forward(self, prefix: str, sizes: dict[str, int]) -> Iterator[str]:
        up, down = f"{prefix}.ffn_up", f"{prefix}.ffn_down"
        first = self.tensors.get(f"{down}.weight")
        if self.rule.is_old and first is not None and first.shape[0] == self.n:
            up, down = down, up
        yield from self._needed(f"{up}.weight", ("n", "ff"), sizes)
        yield from self._optional(f"{up}.bias", ("ff",), sizes)
        yield from self._optional(f"{prefix}.ffn_gate.weight", ("n", "ff"), sizes)
        yield from self._optional(f"{prefix}.ffn_gate.bias", ("ff",), sizes)
        yield from self._needed(f"{down}.weight", ("ff", "n"), sizes)
        yield from self._optional(f"{down}.bias", ("n",), sizes)

    def _needed(self, name: str, shape: _Shape, sizes: dict[str, int]) -> Iterator[str]:
        if name in self.tensors:
            yield from self._optional(name, shape, sizes)
        else:
            yield f"the tensor {name} is missing"

    def _optional(self, name: str, shape: _Shape, sizes: dict[str, int]) -> Iterator[str]:
        """Yield what is wrong with a tensor, if it exists; bind the free dimensions."""
        tensor = self.tensors.get(name)
        if tensor is None:
            return
        found = _plain(tensor)
        wanted = tuple(
            sizes.get(d, found[i] if i < len(found) else 1) if isinstance(d, str) else d
            for i, d in enumerate(shape)
        )
        if found != _strip(wanted):
            yield f"{name} has the shape {tensor.shape}, not {wanted}"
            return
        for dimension, size in zip(shape, wanted, strict=True):
            if isinstance(dimension, str):
                sizes[dimension] = size
        yield from _wrong_type(tensor, _types_of(name, shape))


def _types_of(name: str, shape: _Shape) -> frozenset[str] | None:
    """Return the types that C computes with; None for every type of matrices."""
    if len(shape) > 2:
        return _CONVOLUTIONS
    if name == "mm.input_projection.weight":  # C transposes it
        return _TRANSPOSED
    return None if len(shape) == 2 and name.endswith("weight") else _F32


def _wrong_type(tensor: GgufTensor, allowed: frozenset[str] | None = None) -> Iterator[str]:
    found = tensor.type_name
    is_matrix = tensor.name.endswith("weight") and not re.search(r"ln[12]\.", tensor.name)
    if allowed is None and not is_matrix:
        allowed = _F32
    if (allowed is not None and found not in allowed) or found in _NO_MATRICES:
        what = " or ".join(sorted(allowed)) if allowed else "a type that can be multiplied"
        yield f"{tensor.name} has type {found}; it must be {what}"


def _plain(tensor: GgufTensor) -> tuple[int, ...]:
    return _strip(tensor.shape)


def _strip(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the ones at its end."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
