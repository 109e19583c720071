from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llama_cffi import decoding
from llama_cffi.binding import Batch, Context, Model, SamplerChain
from llama_cffi.errors import KvCacheFullError


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model) as model:
        yield model


@pytest.fixture
def shared(model: Model) -> Iterator[Context]:
    """Two sequences in one cache of 256 places, of which sequence 1 has taken 200."""
    with Context(
        model, n_ctx=256, n_batch=256, n_seq_max=2, n_threads=1, kv_unified=True
    ) as context:
        batch = Batch(200)
        batch.fill([3] * 200, 0, seq_id=1)
        context.decode(batch)
        yield context


def test_chunks(model: Model) -> None:
    with Context(model, n_ctx=256, n_threads=1) as context:
        rows = []
        for size in (256, 16, 7):
            context.memory.clear()
            decoding.feed(context, Batch(size), list(range(100)), 0)
            assert context.memory.seq_pos_max(0) == 99
            rows.append(context.logits().copy())
        # F16 cache: other chunks, other rounding.
        assert np.allclose(rows[0], rows[1], atol=0.02)
        assert np.allclose(rows[0], rows[2], atol=0.02)


def test_back_off_fills_what_is_left(shared: Context) -> None:
    """56 places in two holes take 48 tokens only in smaller chunks, on builds that want one run."""
    shared.memory.seq_rm(1, 0, 8)
    decoding.feed(shared, Batch(256), list(range(60)), 0)
    assert (shared.memory.seq_pos_max(0), shared.memory.seq_pos_max(1)) == (59, 199)


def test_retry_with_halved_chunks(shared: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    decode = shared.decode

    def spy(batch: Batch) -> None:
        sizes.append(len(batch))
        decode(batch)

    monkeypatch.setattr(shared, "decode", spy)
    with pytest.raises(KvCacheFullError, match="of 100 tokens fitted"):
        decoding.feed(shared, Batch(256), list(range(100)), 0)
    assert sizes[:3] == [100, 50, 50] or sizes[:2] == [100, 50]
    assert min(sizes) <= 16
    assert (shared.memory.seq_pos_max(0), shared.memory.seq_pos_max(1)) == (-1, 199)
    decoding.feed(shared, Batch(256), list(range(40)), 0)
    with pytest.raises(KvCacheFullError):
        decoding.feed(shared, Batch(256), list(range(40)), 40)
    assert shared.memory.seq_pos_max(0) == 39  # as before the call


def test_generate_stops_at_the_end_of_the_context(model: Model) -> None:
    with Context(model, n_ctx=256, n_threads=1) as context, SamplerChain(model) as chain:
        chain.add_greedy()
        tokens = [1] * (context.n_ctx - 2)
        found = list(decoding.generate(context, Batch(256), chain, tokens, 99))
        assert len(found) <= 3
        assert context.memory.seq_pos_max(0) <= context.n_ctx - 1
