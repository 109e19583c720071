from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

from llama_cffi.binding import Batch, Context, Model
from llama_cffi.errors import DecodeAbortedError, KvCacheFullError
from llama_cffi.generation.cancellation import CANCEL, INTERRUPT, CancelToken
from llama_cffi.generation.prompt import Prompt
from llama_cffi.generation.slot import Slot
from llama_cffi.generation.stats import GenerationStats


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=256, n_threads=1) as context:
        yield context


def feed(slot: Slot, tokens: list[int]) -> GenerationStats:
    stats = GenerationStats()
    stop = CancelToken(slot.context.abort_flag)
    with stop.running():
        slot.feed(tokens, stop, stats)
    return stats


def test_chunks(context: Context) -> None:
    rows = []
    for size in (256, 16, 7):
        slot = Slot(context, Batch(size))
        slot.clear()
        feed(slot, list(range(100)))
        assert context.memory.seq_pos_max(0) == 99
        assert slot.tokens == list(range(100))
        rows.append(context.logits().copy())
    # F16 cache: other chunks, other rounding.
    assert np.allclose(rows[0], rows[1], atol=0.02)
    assert np.allclose(rows[0], rows[2], atol=0.02)


def test_steps_equal_a_feed(context: Context) -> None:
    slot, stats = Slot(context, Batch(64)), GenerationStats()
    feed(slot, list(range(20)))
    expected = context.logits().copy()
    slot.clear()
    assert context.memory.seq_pos_max(0) == -1
    stop = CancelToken(context.abort_flag)
    with stop.running():
        for token in range(20):
            slot.step(token, stop, stats)
    assert slot.tokens == list(range(20))
    assert np.allclose(context.logits(), expected, atol=0.02)


def test_reuse_of_the_longest_common_beginning(context: Context) -> None:
    slot = Slot(context, Batch(256))
    prompt = [5, 6, 7, 8, 9, 10, 11, 12]
    feed(slot, prompt)
    expected = context.logits().copy()
    for held, n in (
        (prompt, 7),  # one is decoded again, for its logits
        ([*prompt, 1, 2, 3], 7),
        (prompt[:5], 5),
        ([*prompt[:4], 99, 98], 4),
        ([1, 2, 3], 0),
        ([], 0),
    ):
        slot.clear()
        if held:
            feed(slot, held)
        assert slot.reuse(Prompt(prompt)) == n
        assert slot.tokens == prompt[:n]
        assert context.memory.seq_pos_max(0) == n - 1
        feed(slot, prompt[n:])
        assert np.allclose(context.logits(), expected, atol=0.02)


BACK_OFF = """
    import json, sys
    from llama_cffi.binding import Batch, Context, Model
    from llama_cffi.generation.prompt import Prompt
    from llama_cffi.generation.slot import Slot
    from llama_cffi.errors import KvCacheFullError
    from llama_cffi.generation.cancellation import CancelToken
    from llama_cffi.generation.stats import GenerationStats

    model = Model(sys.argv[1])
    report = {}

    def feed(slot, tokens):
        stats, stop = GenerationStats(), CancelToken(slot.context.abort_flag)
        with stop.running():
            try:
                slot.feed(tokens, stop, stats)
            except KvCacheFullError as e:
                return stats, str(e)
        return stats, ""

    def check(name, unified, n_ctx, holes, n_fit, n_too_many, n_ubatch):
        context = Context(model, n_ctx=n_ctx, n_batch=256, n_ubatch=n_ubatch, n_seq_max=2,
                          n_threads=1, kv_unified=unified)
        other = Slot(context, Batch(256), seq_id=1)
        assert feed(other, [3] * 256)[1] == ""
        for start, end in holes:
            context.memory.seq_rm(1, start, end)
        slot = Slot(context, Batch(256))
        n_other = context.memory.seq_pos_max(1)
        kept = [7] * 10
        assert feed(slot, kept)[1] == ""
        fitted, why = feed(slot, [5] * n_fit)
        assert why == "", why
        assert context.memory.seq_pos_max(0) == 9 + n_fit
        assert slot.reuse(Prompt([*kept, 6])) == 10
        stats, error = feed(slot, [5] * n_too_many)
        positions = context.memory.seq_pos_max(0), context.memory.seq_pos_max(1)
        assert positions == (9, n_other), positions
        assert slot.tokens == kept
        assert error and stats.n_backoffs > 0, (error, stats)
        report[name] = [fitted.n_backoffs + fitted.n_retries, error]

    # Free places in three runs, which the oldest builds fill one run at a time.
    holes = [(20, 84), (100, 132), (150, 176)]
    check("unified", True, 256, holes, 100, 150, 256)
    check("unified, small ubatch", True, 256, holes, 100, 150, 32)
    # Places that only the oldest builds' defragmentation puts together.
    crumbs = [(start, start + 8) for start in range(0, 256, 16)]
    check("crumbs", True, 256, crumbs, 100, 150, 256)
    check("own cache", False, 512, [], 200, 400, 512)
    print(json.dumps(report))
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_back_off(child: Child, tiny_model: Path, build: str) -> None:
    """A cache that another sequence nearly fills: what fits is decoded, no more."""
    result = child(BACK_OFF, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    for _, error in report.values():
        assert "of 150 tokens fitted" in error or "of 400 tokens fitted" in error
        assert "n_ctx=" in error
    if build == OLD:
        assert report["unified"][0] > 0  # the retries are what made it fit


def test_cancelled_before_and_resumed_after_a_signal(context: Context) -> None:
    slot, stats = Slot(context, Batch(256)), GenerationStats()
    stop = CancelToken(context.abort_flag)
    with stop.running():
        slot.feed([1, 2, 3], stop, stats)
        stop.request(INTERRUPT)  # a signal whose handler does not raise
        slot.feed([4, 5], stop, stats)
        stop.request(INTERRUPT)
        slot.step(6, stop, stats)
        assert slot.tokens == [1, 2, 3, 4, 5, 6]
        assert stats.n_retries == 2
        stop.request(CANCEL)
        stop.request(INTERRUPT)  # hides nothing
        with pytest.raises(DecodeAbortedError) as e:
            slot.step(7, stop, stats)
        assert e.value.reason == CANCEL
    assert slot.tokens == [1, 2, 3, 4, 5, 6]
    assert context.memory.seq_pos_max(0) == 5
    assert not context.abort_flag.is_set


def test_shift(context: Context) -> None:
    slot = Slot(context, Batch(256))
    feed(slot, list(range(50)))
    slot.shift(10, 15)
    assert slot.tokens == [*range(10), *range(25, 50)]
    assert context.memory.seq_pos_max(0) == 34
    feed(slot, [1, 2])
    assert context.memory.seq_pos_max(0) == 36


def test_the_floor_is_sixteen(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def full(batch: Batch) -> None:
        sizes.append(len(batch))
        raise KvCacheFullError("full")

    monkeypatch.setattr(context, "decode", full)
    with pytest.raises(KvCacheFullError, match="0 of 200 tokens fitted"):
        feed(Slot(context, Batch(256)), [1] * 200)
    assert sizes == [200, 100, 50, 25, 16]


def test_chunks_where_c_cannot_be_stopped(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They grow while they are quick, shrink when one was slow, and cancel counts between them."""
    sizes: list[int] = []
    decode, clock, seconds = context.decode, [0.0], {64: 0.12}

    def spy(batch: Batch) -> None:
        sizes.append(len(batch))
        decode(batch)
        clock[0] += seconds.get(len(batch), 0.001)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(context, "abortable", False)
    monkeypatch.setattr(context, "decode", spy)
    slot, stats, stop = (
        Slot(context, Batch(256)),
        GenerationStats(),
        CancelToken(context.abort_flag),
    )
    with stop.running():
        slot.feed([5] * 200, stop, stats)
        assert sizes[:3] == [32, 64, 32]
        assert set(sizes) <= {32, 64, 8}
        monkeypatch.setattr(context, "decode", lambda b: (spy(b), stop.request(CANCEL)))
        with pytest.raises(DecodeAbortedError):
            slot.feed([6] * 50, stop, stats)
    assert slot.tokens == [5] * 200
    assert context.memory.seq_pos_max(0) == 199
