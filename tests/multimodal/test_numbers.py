"""Embeddings against a forward pass in numpy with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from multimodal.conftest import Files, picture
from numpy.typing import NDArray
from support import numpy_projectors

from llama_cffi.binding import MediaChunk, Model, Projector

Forward = Callable[[Path, NDArray[np.uint8]], NDArray[np.float64]]


@pytest.mark.parametrize(
    ("kind", "forward", "width", "height"),
    [
        ("janus_pro", numpy_projectors.janus_pro, 16, 16),
        ("qwen2vl_merger", numpy_projectors.qwen2vl, 24, 24),
        ("qwen2vl_merger", numpy_projectors.qwen2vl, 32, 16),
        ("qwen2vl_merger", numpy_projectors.qwen2vl, 32, 48),
    ],
)
def test_embeddings(
    files: dict[str, Files], kind: str, forward: Forward, width: int, height: int
) -> None:
    pixels = picture(4, width, height)
    with Model(files[kind].model) as model:
        projector = Projector(model, files[kind].mmproj, n_threads=1)
        (chunk,) = (c for c in projector.image_chunks(pixels) if isinstance(c, MediaChunk))
        rows = projector.encode(chunk)
    expected = forward(files[kind].mmproj, pixels)
    assert rows.shape == expected.shape
    error = np.linalg.norm(rows - expected) / np.linalg.norm(expected)
    assert error < 1e-3, f"relative error {error:.2e}"


def test_what_a_text_model_sees_after_a_picture(files: dict[str, Files]) -> None:
    """The embeddings of a picture, decoded as such, equal those of tokens with these embeddings."""
    from llama_cffi.binding import Batch, Context

    with Model(files["janus_pro"].model) as model, Context(model, n_ctx=64, n_threads=1) as context:
        table = next(
            t.data
            for t in gguf.GGUFReader(files["janus_pro"].model).tensors
            if t.name == "token_embd.weight"
        )
        batch = Batch(8)
        batch.fill([5, 6, 7, 8], 0)
        context.decode(batch)
        expected = context.logits()
        context.memory.clear()
        rows = np.ascontiguousarray(table[[5, 6, 7]], dtype=np.float32)
        context.decode_embeddings(rows, np.arange(3, dtype=np.int32))
        batch.fill([8], 3)
        context.decode(batch)
        assert abs(context.logits() - expected).max() < 1e-4
