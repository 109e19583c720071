"""Sounds in conversations, and models that take both pictures and sounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from multimodal.conftest import Files, picture, sound
from multimodal.test_chat import first

from llama_cffi import Engine, Llama, ValidationError
from llama_cffi.binding import MediaChunk, Model, Projector
from llama_cffi.media import Audio


def ask(*parts: Any) -> list[dict[str, Any]]:
    content: list[Any] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif part.ndim == 1:
            content.append({"type": "audio", "audio": part, "sample_rate": 16_000})
        else:
            content.append({"type": "image", "image": part})
    return [{"role": "user", "content": content}]


@pytest.fixture(params=[1, 2], ids=["one at a time", "batched"])
def n_parallel(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_what_the_projector_takes(files: dict[str, Files]) -> None:
    with Model(files["qwen2a"].model) as model:
        projector = Projector(model, files["qwen2a"].mmproj)
        assert (projector.supports_images, projector.supports_audio) == (False, True)
        assert projector.sample_rate == 16_000
        with pytest.raises(ValidationError, match="takes sounds and no pictures"):
            projector.image_chunks(picture(1))
        chunks = [c for c in projector.audio_chunks(sound(1)) if isinstance(c, MediaChunk)]
        assert [(c.n_tokens, c.n_positions, c.is_image) for c in chunks] == [(750, 750, False)]
        assert np.isfinite(projector.encode(chunks[0])).all()


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (sound(1)[:1], "has 1 samples; it needs at least 400"),
        (sound(1)[:399], "has 399 samples"),
        (np.full(1000, np.nan, np.float32), "not finite"),
        (np.zeros(1000), r"must be \(n,\) float32"),
        (np.zeros((1000, 2), np.float32), r"must be \(n,\) float32"),
    ],
)
def test_what_is_no_sound(files: dict[str, Files], samples: np.ndarray, reason: str) -> None:
    with Model(files["qwen2a"].model) as model:
        projector = Projector(model, files["qwen2a"].mmproj)
        with pytest.raises(ValidationError, match=reason):
            projector.audio_chunks(samples)
        assert projector.audio_chunks(sound(1)[:400])


def test_same_sound_same_logits_other_sound_other_logits(
    files: dict[str, Files], n_parallel: int
) -> None:
    with Llama(files["qwen2a"].model, n_ctx=1024, n_threads=1, n_parallel=n_parallel) as llm:
        assert llm.modalities == ("text", "audio")
        of_a, of_b = first(llm, ask(sound(1), "what?")), first(llm, ask(sound(2), "what?"))
        assert not np.allclose(of_a, of_b, atol=1e-3)
        assert np.allclose(of_a, first(llm, ask(sound(1), "what?")), atol=1e-4)
        assert llm.engine.media.cache.n_encoded == 2


def test_other_sample_rates_are_converted(files: dict[str, Files]) -> None:
    hz, seconds = 440, 0.5

    def tone(rate: int) -> Audio:
        at = np.arange(round(seconds * rate)) / rate
        return Audio((0.5 * np.sin(2 * np.pi * hz * at)).astype(np.float32), rate)

    with Llama(files["qwen2a"].model, n_ctx=1024, n_threads=1) as llm:
        found = [
            first(llm, [{"role": "user", "content": [tone(rate), "what?"]}])
            for rate in (16_000, 48_000)
        ]
    assert np.allclose(*found, atol=0.05)


def test_pictures_and_sounds_together(files: dict[str, Files], n_parallel: int) -> None:
    messages = ask("a", picture(1, 30, 20), "b", sound(1), "c")
    with Llama(files["both"].model, n_ctx=1024, n_threads=1, n_parallel=n_parallel) as llm:
        assert llm.modalities == ("text", "image", "audio")
        both = first(llm, messages)
        assert not np.allclose(both, first(llm, ask("a", picture(1, 30, 20), "bc")), atol=1e-3)
    with Engine(files["both"].model, n_ctx=1024, n_threads=1) as engine:
        tokens = engine.tokenize_chat(messages)
        assert [span.media.n_cells for span in tokens.spans()] == [12, 750]
