from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from multimodal.conftest import Files, picture
from support.tiny_projectors import write_projector

from llama_cffi import ClosedError, ModelLoadError, ValidationError
from llama_cffi.binding import Context, MediaChunk, Model, Projector, get_library
from llama_cffi.binding.model import trial


def first_chunk(projector: Projector, pixels: np.ndarray) -> MediaChunk:
    return next(c for c in projector.image_chunks(pixels) if isinstance(c, MediaChunk))


def test_this_library_has_its_own_proof() -> None:
    library = get_library()
    assert library.abi.verdict == "compatible"  # no tag names it
    assert library.no_multimodal == ""
    assert library.has("mtmd_tokenize")


def test_what_a_projector_is(projector: Projector, kind: str) -> None:
    assert projector.supports_images
    assert not projector.supports_audio
    assert projector.sample_rate == 0
    assert projector.uses_mrope == (kind == "qwen2vl_merger")
    assert repr(projector) == "<Projector mmproj.gguf images>"


def test_the_same_picture_has_the_same_embeddings(projector: Projector) -> None:
    a, b = first_chunk(projector, picture(1)), first_chunk(projector, picture(1))
    other = first_chunk(projector, picture(2))
    rows = projector.encode(a)
    assert rows.shape == (a.n_tokens, projector.model.n_embd)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert np.array_equal(rows, projector.encode(b))
    assert not np.allclose(rows, projector.encode(other), atol=1e-2)


def test_positions(files: dict[str, Files]) -> None:
    with Model(files["janus_pro"].model) as model:
        chunk = first_chunk(Projector(model, files["janus_pro"].mmproj), picture(1))
        assert (chunk.n_tokens, chunk.n_positions, chunk.is_causal) == (16, 16, True)
        assert chunk.positions(5).tolist() == [*range(5, 21)]
    with Model(files["gemma3"].model) as model:
        chunk = first_chunk(Projector(model, files["gemma3"].mmproj), picture(1))
        assert (chunk.n_tokens, chunk.n_positions, chunk.is_causal) == (4, 4, False)
    with Model(files["qwen2vl_merger"].model) as model:
        chunk = first_chunk(Projector(model, files["qwen2vl_merger"].mmproj), picture(1, 30, 20))
        assert (chunk.n_tokens, chunk.n_positions) == (12, 4)
        time, height, width, spare = chunk.positions(5).tolist()
        assert time == [5] * 12
        assert height == [5] * 4 + [6] * 4 + [7] * 4
        assert width == [5, 6, 7, 8] * 3
        assert spare == [0] * 12


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((16, 16), np.uint8), r"must be \(height, width, 3\) uint8, got \(16, 16\) uint8"),
        (np.zeros((16, 16, 4), np.uint8), r"got \(16, 16, 4\) uint8"),
        (np.zeros((16, 16, 3), np.float32), r"got \(16, 16, 3\) float32"),
        (np.zeros((0, 16, 3), np.uint8), "1 to 65535 pixels a side"),
    ],
)
def test_what_is_no_picture(projector: Projector, pixels: np.ndarray, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        projector.image_chunks(pixels)


def test_no_sounds(projector: Projector) -> None:
    with pytest.raises(ValidationError, match="takes pictures and no sounds"):
        projector.audio_chunks(np.zeros(16_000, np.float32))


def test_pictures_of_one_pixel_and_of_any_form(projector: Projector) -> None:
    for width, height in ((1, 1), (1, 50), (300, 7)):
        chunk = first_chunk(projector, picture(3, width, height))
        assert np.isfinite(projector.encode(chunk)).all()


def test_files_that_are_no_projector(files: dict[str, Files], tmp_path: Path) -> None:
    with Model(files["janus_pro"].model) as model:
        with pytest.raises(ModelLoadError, match="nowhere"):
            Projector(model, tmp_path / "nowhere.gguf")
        with pytest.raises(ModelLoadError, match=r"model\.gguf"):
            Projector(model, files["janus_pro"].model)
        wide = write_projector(tmp_path / "wide.gguf", n_embd=128)
        with pytest.raises(ModelLoadError, match="not a projector of model"):
            Projector(model, wide)
        with pytest.raises(ValidationError, match="image_min_tokens=9 is more than"):
            Projector(model, files["janus_pro"].mmproj, image_min_tokens=9, image_max_tokens=8)


def test_the_model_closes_its_projectors(files: dict[str, Files]) -> None:
    model = Model(files["janus_pro"].model)
    projector = Projector(model, files["janus_pro"].mmproj)
    chunk = first_chunk(projector, picture(1))
    model.close()
    assert projector.closed
    assert chunk.closed
    with pytest.raises(ClosedError):
        projector.encode(chunk)
    with pytest.raises(ClosedError):
        projector.image_chunks(picture(1))


def test_embeddings_are_checked_before_they_are_decoded(files: dict[str, Files]) -> None:
    rows, positions = np.zeros((4, 64), np.float32), np.arange(4, dtype=np.int32)
    with Model(files["janus_pro"].model) as model, Context(model, n_ctx=64, n_ubatch=4) as context:
        context.decode_embeddings(rows, positions)
        assert context.memory.seq_pos_max(0) == 3
        for wrong in (rows[:, :10], rows.astype(np.float64)):
            with pytest.raises(ValidationError, match=r"must be \(n, 64\) float32"):
                context.decode_embeddings(wrong, positions)
        with pytest.raises(ValidationError, match="positions must be"):
            context.decode_embeddings(rows, positions[:2])
        with pytest.raises(ValidationError, match="sequence 3 is outside"):
            context.decode_embeddings(rows, positions, 3)
        with pytest.raises(ValidationError, match="needs n_ubatch and n_batch of at least 8"):
            context.decode_embeddings(
                np.zeros((8, 64), np.float32), np.arange(4, 12, dtype=np.int32), causal=False
            )
        context.decode_embeddings(rows, positions + 4, causal=False)
        assert context.causal_attn
        assert context.memory.seq_pos_max(0) == 7


def test_projectors_are_tried_in_a_child(
    files: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = trial._run

    def run(job: dict[str, Any], timeout_s: float) -> tuple[str | None, bool]:
        seen.append(job["projector"])
        return original(job, timeout_s)

    monkeypatch.setattr(trial, "_run", run)
    path = write_projector(tmp_path / "mmproj.gguf", seed=int.from_bytes(os.urandom(4), "big"))
    with Model(files["janus_pro"].model) as model:
        Projector(model, path, check="child")
        Projector(model, path, check="child")  # the result is known
        assert seen == [str(path)]
        with pytest.raises(ValidationError, match="check='maybe' is not one of"):
            Projector(model, path, check="maybe")
        monkeypatch.setattr(trial, "_run", lambda *_: ("ended with SIGSEGV", False))
        other = write_projector(tmp_path / "other.gguf", seed=int.from_bytes(os.urandom(4), "big"))
        with pytest.raises(
            ModelLoadError, match=r"other\.gguf was tried in a child process, which"
        ):
            Projector(model, other, check="child")
