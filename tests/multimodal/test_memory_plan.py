"""Plans with a projector, against what C reserves."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from multimodal.conftest import Files, sound
from support.tiny_projectors import write_projector

from llama_cffi import Engine, InferenceEngine, Llama, OutOfMemoryError
from llama_cffi.binding import MediaChunk, Model, Projector
from llama_cffi.memory_plan import options_of, plan
from llama_cffi.memory_plan.projectors import n_together, projector_bytes, read_projector

_SIZE = re.compile(r"model size: +([\d.]+) MiB|compute buffer size = +([\d.]+) MiB")
MIB = 2**20


def reserved(files: Files, mmproj: Path) -> float:
    """Return the MiB that C reserves for the largest input of a projector."""
    with Model(files.model) as model:
        with model.library.logs.capture(logging.DEBUG) as lines:
            projector = Projector(model, mmproj, n_threads=1)
            if projector.supports_images:
                chunks = projector.image_chunks(np.zeros((2048, 2048, 3), np.uint8))
            else:
                chunks = projector.audio_chunks(sound(1))
            projector.encode(next(c for c in chunks if isinstance(c, MediaChunk)))
        return sum(float(m[1] or m[2]) for line in lines if (m := _SIZE.search(line)))


@pytest.mark.parametrize(
    ("kind", "size"),
    [("janus_pro", 192), ("gemma3", 192), ("idefics3", 192), ("qwen2vl_merger", 64), ("qwen2a", 0)],
)
def test_the_formula_of_projectors(
    kind: str, size: int, files: dict[str, Files], tmp_path: Path
) -> None:
    mmproj = write_projector(tmp_path / "mmproj.gguf", kind, size=size or 16)
    planned = projector_bytes(read_projector(mmproj)) / MIB
    assert planned == pytest.approx(reserved(files[kind], mmproj), rel=0.2, abs=0.2)


def test_a_picture_decoded_in_one_call_needs_a_larger_batch(
    files: dict[str, Files], tmp_path: Path
) -> None:
    model = files["gemma3"].model
    mmproj = write_projector(tmp_path / "mmproj.gguf", "gemma3", size=192)
    assert n_together(read_projector(mmproj)) == 576
    options: Any = {"n_ctx": 1024, "mmproj": mmproj}
    with Llama(model, n_threads=1, check_memory=False, **options) as llm:
        assert llm.engine.context.n_ubatch == 576
        assert options_of(llm.config)["mmproj"] == mmproj
        with_projector, without = plan(model, llm.config), plan(model, llm.config, mmproj=None)
    host, bare = with_projector.devices[0], without.devices[0]
    assert host.mmproj_bytes == projector_bytes(read_projector(mmproj))
    assert bare.mmproj_bytes == 0
    larger = plan(model, n_ctx=1024, n_ubatch=576).devices[0]
    assert (host.compute_bytes, host.kv_bytes) == (larger.compute_bytes, larger.kv_bytes)
    assert host.compute_bytes > bare.compute_bytes
    assert "mmproj" in str(with_projector)


@pytest.mark.parametrize("face", [Llama, Engine, InferenceEngine])
def test_every_face_plans_the_projector(
    face: Any, files: dict[str, Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_cffi.memory_plan import planner

    monkeypatch.setattr(planner, "projector_bytes", lambda *_: 2**60)
    model, mmproj = files["janus_pro"]
    with pytest.raises(OutOfMemoryError, match="mmproj 1,073,741,824"):
        face(model, n_ctx=256, mmproj=mmproj)
    face(model, n_ctx=256, mmproj=mmproj, check_memory=False).close()
