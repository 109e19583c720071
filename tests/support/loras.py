"""LoRA files for the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from .tiny_gguf import write_tiny

RANK, ALPHA = 4, 8.0


Pairs = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


def make_pairs(seed: int = 3) -> Pairs:
    """Return A and B in the layout of convert_lora_to_gguf.py: (rank, in) and (out, rank)."""
    rng = np.random.default_rng(seed)
    shapes = {"blk.0.attn_q.weight": (64, 64), "blk.1.ffn_down.weight": (64, 128)}
    shapes["output.weight"] = (259, 64)
    return {
        name: (
            rng.normal(0, 0.3, (RANK, columns)).astype(np.float32),
            rng.normal(0, 0.3, (rows, RANK)).astype(np.float32),
        )
        for name, (rows, columns) in shapes.items()
    }


def write_lora(
    path: Path,
    pairs: Pairs,
    *,
    architecture: str = "llama",
    edit: Callable[[gguf.GGUFWriter], object] | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    if edit is not None:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_merged(path: Path, pairs: Pairs, scale: float) -> Path:
    """Write the tiny model with W + scale * alpha / rank * B @ A."""

    def edit(writer: gguf.GGUFWriter) -> None:
        for name, (a, b) in pairs.items():
            data = writer.tensors[0][name].tensor
            data += (scale * ALPHA / RANK * b @ a).astype(np.float32)

    return write_tiny(path, edit=edit)
