"""Context sizes: the default fits the model, and more than its training gives one warning."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from support.tiny_gguf import write_tiny

from llama_cffi import Engine, InferenceEngine, Llama, LlamaPool, Model, UnifiedLLM
from llama_cffi.generation.context_size import context_size
from llama_cffi.llama_cpp import Llama as DropIn

FACES: list[Any] = [Engine, Llama, UnifiedLLM, LlamaPool, InferenceEngine, DropIn]


@pytest.mark.parametrize("face", FACES[:-1])
def test_the_default_is_never_above_the_models(face: Any, tiny_model: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({}, {"n_ctx": 0}, {"n_ctx": None}):
            made = face(tiny_model, n_threads=1, **options)
            assert getattr(made, "llm", made).n_ctx == 256
            made.close()


def test_the_default_is_4096_where_the_model_has_more(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "long.gguf", n_ctx=8192)
    with Model(path) as model:
        assert context_size(None, model, {}) == 4096
        assert context_size(0, model, {}) == 8192


@pytest.mark.parametrize("face", FACES)
def test_more_than_the_training_is_one_warning_at_the_callers_line(
    face: Any, tiny_model: Path
) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        face(str(tiny_model), n_ctx=512, n_threads=1).close()
    assert [w.filename for w in seen] == [__file__]
    assert "n_ctx=512 is more than the 256 tokens" in str(seen[0].message)


def test_scaled_rope_is_no_warning(tiny_model: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Llama(tiny_model, n_ctx=512, n_threads=1, rope_freq_scale=0.5).close()
        Engine(tiny_model, 512, 1, rope_scaling="yarn", rope_freq_scale=0.5).close()
