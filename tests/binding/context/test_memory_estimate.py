from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.odd_models import write_nextn
from support.tiny_gguf import write_tiny

from llama_cffi import Model, ValidationError, estimate_context_bytes
from llama_cffi.binding import get_library
from llama_cffi.binding.context.memory_estimate import (
    ContextSizes,
    context_bytes,
    context_sizes,
    memory_bytes,
)
from llama_cffi.gguf.header_check import GgufArray, GgufSummary

LLAMA: dict[str, int | float | str] = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}


def header(
    values: Mapping[str, int | float | str], arrays: Mapping[str, tuple[int, ...]] | None = None
) -> GgufSummary:
    """A header with this metadata, and arrays of integers."""
    found = {k: GgufArray(4, len(items), 0, items=items) for k, items in (arrays or {}).items()}
    return GgufSummary(3, values, found, (), {}, 0, 0)


def sizes(
    values: Mapping[str, int | float | str],
    arrays: Mapping[str, tuple[int, ...]] | None = None,
    **options: Any,
) -> ContextSizes:
    return context_sizes(header({**LLAMA, **values}, arrays), n_ctx=8192, **options)


def test_cache_of_a_known_model() -> None:
    """Llama 3 8B: 128 KiB per token."""
    cache = 32 * 8 * (128 + 128) * 2
    assert cache == 128 * 1024
    per_token = context_bytes(header(LLAMA), 8192, 512) / 8192
    assert cache < per_token < cache * 1.02


def test_types_of_the_cache() -> None:
    half = context_bytes(header(LLAMA), 8192, 512, "q8_0", "q8_0") / context_bytes(
        header(LLAMA), 8192, 512
    )
    assert 0.52 < half < 0.55


def test_encoders_have_no_cache() -> None:
    assert context_bytes(header({**LLAMA, "llama.attention.causal": False}), 8192, 1) < 8192 * 100


def test_unknown_sizes_count_as_zero() -> None:
    assert context_bytes(header({}), 10, 1) < 1000
    assert context_bytes(header({**LLAMA, "llama.attention.head_count": 0}), 10, 1) > 0
    assert context_bytes(header({**LLAMA, "llama.attention.sliding_window": 512}), 8192, 1) < (
        context_bytes(header(LLAMA), 8192, 1) / 5
    )


def test_layers_with_a_sliding_window_may_keep_only_that() -> None:
    window: dict[str, int | float | str] = {
        "llama.attention.sliding_window": 1000,
        "llama.attention.sliding_window_pattern": 4,
    }
    full = sizes(window)
    assert full.kv == sizes({}).kv  # by default
    part = sizes(window, swa_full=False)
    cells = [kv // (8 * 256 * 2) for kv in part.kv]
    assert cells == [1536, 1536, 1536, 8192] * 8  # 1000 + 512, in steps of 256
    listed = sizes(
        {"llama.attention.sliding_window": 1000},
        {"llama.attention.sliding_window_pattern": (0, 1) * 16},
        swa_full=False,
    )
    assert [kv // (8 * 256 * 2) for kv in listed.kv] == [8192, 1536] * 16


def test_recurrent_layers_keep_one_state_for_each_sequence() -> None:
    kv = (0, 0, 8) * 10 + (0, 0)
    found = sizes(
        {"llama.ssm.conv_kernel": 4, "llama.ssm.inner_size": 1024, "llama.ssm.state_size": 16},
        {"llama.attention.head_count_kv": kv},
        n_seq_max=3,
    )
    state = 4 * 3 * (3 * 1024 + 16 * 1024)
    assert found.recurrent == tuple(0 if n else state for n in kv)
    assert found.kv == tuple(n * 256 * 2 * 3 * 2816 for n in kv)  # 8192 / 3, in steps of 256


def test_latent_attention_is_cached_as_one_vector() -> None:
    found = sizes(
        {
            "llama.attention.kv_lora_rank": 512,
            "llama.rope.dimension_count": 64,
            "llama.attention.key_length_mla": 192,
        }
    )
    assert set(found.kv) == {(512 + 64) * 2 * 8192}


def test_a_damaged_header_gives_some_number() -> None:
    strange: dict[str, int | float | str] = {
        "llama.block_count": 2**32 - 1,
        "llama.attention.head_count": "x",
        "llama.embedding_length": -4,
        "llama.attention.sliding_window_pattern": 0,
        "llama.attention.sliding_window": -1,
    }
    assert isinstance(sizes(strange).cache, int)


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
