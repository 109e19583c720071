from __future__ import annotations

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
