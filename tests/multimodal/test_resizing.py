"""How libmtmd brings pictures to the size that a projector takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from multimodal.conftest import Files, picture
from numpy.typing import NDArray
from support import numpy_projectors

from llama_cffi.binding import MediaChunk, Model, Projector

Forward = Callable[[Path, NDArray[np.uint8]], NDArray[np.float64]]


def framed(pixels: NDArray[np.uint8], width: int, height: int, gray: int) -> NDArray[np.uint8]:
    """Return a picture, resized with Pillow's bicubic, in the middle of a frame of *gray*."""
    rows, columns, _ = pixels.shape
    scale = min(width / columns, height / rows)
    inner = min(math.ceil(columns * scale), width), min(math.ceil(rows * scale), height)
    x, y = (width - inner[0]) // 2, (height - inner[1]) // 2
    frame = np.full((height, width, 3), gray, np.uint8)
    small = PIL.Image.fromarray(pixels).resize(inner, PIL.Image.Resampling.BICUBIC)
    frame[y : y + inner[1], x : x + inner[0]] = np.asarray(small)
    return frame


@pytest.mark.parametrize(
    ("kind", "forward", "size", "frame", "gray"),
    [
        ("janus_pro", numpy_projectors.janus_pro, (40, 20), (16, 16), 127),
        ("janus_pro", numpy_projectors.janus_pro, (20, 40), (16, 16), 127),
        ("janus_pro", numpy_projectors.janus_pro, (8, 8), (16, 16), 127),
        # The nearest multiples of two patches.
        ("qwen2vl_merger", numpy_projectors.qwen2vl, (50, 37), (48, 40), 0),
    ],
)
def test_pictures_of_other_sizes(
    files: dict[str, Files],
    kind: str,
    forward: Forward,
    size: tuple[int, int],
    frame: tuple[int, int],
    gray: int,
) -> None:
    pixels = picture(5, *size)
    with Model(files[kind].model) as model:
        projector = Projector(model, files[kind].mmproj, n_threads=1)
        (chunk,) = (c for c in projector.image_chunks(pixels) if isinstance(c, MediaChunk))
        rows = projector.encode(chunk)
    expected = forward(files[kind].mmproj, framed(pixels, *frame, gray))
    assert np.linalg.norm(rows - expected) / np.linalg.norm(expected) < 1e-3
