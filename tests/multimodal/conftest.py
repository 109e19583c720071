"""Models with projectors; llama.cpp of this process has libmtmd (see ../test_multimodal.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny_projectors import IMAGE_KINDS, write_projector, write_text_model

from llama_cffi.binding import Model, Projector

KINDS = IMAGE_KINDS


class Files(NamedTuple):
    """A text model and a projector."""

    model: Path
    mmproj: Path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    """A text model and a projector of each kind; each pair has a folder of its own."""
    found = {}
    for kind in (*KINDS, "qwen2a", "both"):
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = Files(
            write_text_model(folder / "model.gguf", kind),
            write_projector(folder / "mmproj.gguf", kind),
        )
    return found


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of projector."""
    return str(request.param)


@pytest.fixture(scope="session")
def projector(kind: str, files: dict[str, Files]) -> Iterator[Projector]:
    """A projector of each kind."""
    with Model(files[kind].model) as model:
        yield Projector(model, files[kind].mmproj, n_threads=1)


def sound(seed: int, seconds: float = 1.0, rate: int = 16_000) -> NDArray[np.float32]:
    """Return random samples."""
    n = round(seconds * rate)
    return (np.random.default_rng(seed).normal(size=n) * 0.1).astype(np.float32)


def picture(seed: int, width: int = 16, height: int = 16) -> NDArray[np.uint8]:
    """Return a picture of random pixels."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
