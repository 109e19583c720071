from __future__ import annotations

from pathlib import Path

import pytest
from support.odd_models import write_nextn
from support.tiny_gguf import write_tiny

from llama_cffi import Model, ValidationError, estimate_context_bytes
from llama_cffi.binding import get_library
from llama_cffi.binding.context.memory_estimate import context_bytes, memory_bytes

LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}


def test_cache_of_a_known_model() -> None:
    """Llama 3 8B: 128 KiB per token."""
    cache = 32 * 8 * (128 + 128) * 2
    assert cache == 128 * 1024
    per_token = context_bytes(LLAMA, 8192, 512) / 8192
    assert cache < per_token < cache * 1.02


def test_types_of_the_cache() -> None:
    half = context_bytes(LLAMA, 8192, 512, 34 / 32) / context_bytes(LLAMA, 8192, 512)
    assert 0.52 < half < 0.55


def test_encoders_have_no_cache() -> None:
    assert context_bytes({**LLAMA, "llama.attention.causal": False}, 8192, 1) < 8192 * 100


def test_unknown_sizes_count_as_zero() -> None:
    assert context_bytes({}, 10, 1) < 1000
    assert context_bytes({**LLAMA, "llama.attention.head_count": 0}, 10, 1) > 0
    assert context_bytes({**LLAMA, "llama.attention.sliding_window": 512}, 8192, 1) < (
        context_bytes(LLAMA, 8192, 1) / 5
    )


def test_memory_of_this_machine() -> None:
    assert 2**27 < memory_bytes(get_library()) < 2**60


def test_the_estimate_of_a_model(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", n_layer=3, n_ctx=256)
    cache = 2 * 3 * 64 * 2  # keys and values of 3 layers, 64 wide, 2 bytes each
    with Model(path, vocab_only=True) as model:
        whole = estimate_context_bytes(model)
        assert cache * 256 < whole < cache * 256 * 2
        assert estimate_context_bytes(model, 256) == whole
        one = estimate_context_bytes(model, 1, n_ubatch=1)
        assert cache < one < cache + 100
        four_bits = estimate_context_bytes(model, 256, type_k="q4_0", type_v="q4_0")
        assert whole - four_bits == pytest.approx(256 * cache * (1 - 18 / 32 / 2), rel=0.01)
        halves = estimate_context_bytes(model, 256, type_k="f32")
        assert halves - whole == 256 * cache // 2
        for wrong in ({"n_ctx": -1}, {"n_ubatch": 0}, {"type_k": "q9"}, {"type_v": 2}):
            with pytest.raises(ValidationError):
                estimate_context_bytes(model, **wrong)  # type: ignore[arg-type]


def test_the_bytes_of_each_layer(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", n_layer=3)
    with Model(path, vocab_only=True) as model:
        floats = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64  # attention, feed-forward, norms
        assert model.layer_bytes == (floats * 4,) * 3
    with Model(path) as model:
        outside = 4 * (2 * model.vocab.n_tokens * 64 + 64)
        assert sum(model.layer_bytes) + outside == model.size_bytes
    with Model(write_nextn(tmp_path / "moe.gguf")) as model:
        assert len(model.layer_bytes) == model.n_layer + 1  # the head for a second token
        assert all(model.layer_bytes)
