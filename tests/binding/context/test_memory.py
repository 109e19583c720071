from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.odd_models import WINDOW, write_recurrent, write_windowed

from llama_cffi.binding import Batch, Context, Model
from llama_cffi.errors import ValidationError

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 256, 640)]


@pytest.fixture(params=[True, False], ids=["unified", "separate"])
def context(model: Model, request: pytest.FixtureRequest) -> Iterator[Context]:
    with Context(model, n_ctx=256, n_seq_max=2, n_threads=1, kv_unified=request.param) as context:
        batch = Batch(4)
        batch.fill([1, 2, 3, 4], 0)
        context.decode(batch)
        yield context


def feed(context: Context, tokens: list[int], pos: int = 0, seq_id: int = 0) -> Any:
    batch = Batch(len(tokens))
    batch.fill(tokens, pos, seq_id)
    context.decode(batch)
    return context.logits().copy()


def last(context: Context) -> tuple[int, int]:
    return context.memory.seq_pos_max(0), context.memory.seq_pos_max(1)


def test_remove(context: Context) -> None:
    assert context.memory.seq_rm(0, 2)
    assert last(context) == (1, -1)
    assert context.memory.seq_rm(-1)
    assert last(context) == (-1, -1)


def test_copy_and_keep(context: Context) -> None:
    context.memory.seq_cp(0, 1)
    assert last(context) == (3, 3)
    context.memory.seq_keep(1)
    assert last(context) == (-1, 3)


def test_copy_twice(context: Context) -> None:
    """b6673 counts a cell that is shared twice double, and keeps one of them when it is removed."""
    context.memory.seq_cp(0, 1)
    context.memory.seq_cp(0, 1)
    context.memory.seq_rm(1)
    assert last(context) == (3, -1)
    context.memory.seq_cp(0, 1)
    feed(context, [5], 4, 1)
    assert last(context) == (3, 4)


def test_copy_a_part(context: Context) -> None:
    context.memory.seq_cp(0, 0, 1, 2)
    if context.kv_unified:
        context.memory.seq_cp(0, 1, 0, 2)
        assert last(context) == (3, 1)
    else:
        for p0, p1 in ((0, 2), (1, -1)):
            with pytest.raises(ValidationError, match="kv_unified"):
                context.memory.seq_cp(0, 1, p0, p1)
        assert last(context) == (3, -1)


def test_shift(context: Context) -> None:
    assert context.memory.can_shift
    context.memory.seq_rm(0, 0, 2)
    context.memory.seq_add(0, 2, -1, -2)
    assert last(context) == (1, -1)
    batch = Batch(1)
    batch.fill([5], 2)
    context.decode(batch)
    assert last(context) == (2, -1)


def test_shift_of_a_long_context(model: Model) -> None:
    """Remove the middle and continue: the tail is not recomputed, only its positions change."""
    with Context(model, n_ctx=256, n_threads=1) as context:
        memory = context.memory
        feed(context, TOKENS[:100])
        assert memory.seq_rm(0, 10, 50)
        memory.seq_add(0, 50, -1, -40)
        assert (memory.seq_pos_min(0), memory.seq_pos_max(0)) == (0, 59)
        shifted = feed(context, [7], 60)
        memory.clear()
        feed(context, [*TOKENS[:10], *TOKENS[50:100]])
        fresh = feed(context, [7], 60)
        assert not np.allclose(shifted, fresh, atol=1e-3)
        assert np.corrcoef(shifted, fresh)[0, 1] > 0.5


def test_shift_of_everything_is_exact(model: Model) -> None:
    """Attention depends only on distances, so all positions can be shifted."""
    with Context(model, n_ctx=256, n_threads=1) as context:
        memory = context.memory
        feed(context, TOKENS[:50])
        expected = feed(context, [7], 50)
        memory.seq_rm(0, 50)
        memory.seq_add(0, 0, -1, 30)
        assert (memory.seq_pos_min(0), memory.seq_pos_max(0)) == (30, 79)
        assert np.allclose(feed(context, [7], 80), expected, atol=1e-2)


def test_divide(context: Context) -> None:
    memory = context.memory
    memory.seq_div(0, 0, -1, 2)
    assert last(context) == (1, -1)
    feed(context, [5], 2)
    memory.seq_div(0, -1, -1, 1)
    for divisor in (0, -1, 2**40):
        with pytest.raises(ValidationError):
            memory.seq_div(0, 0, -1, divisor)
    assert last(context) == (2, -1)


def test_a_shift_below_zero_is_refused(context: Context) -> None:
    for p0, delta in ((0, -1), (-1, -2), (3, -4)):
        with pytest.raises(ValidationError, match="negative"):
            context.memory.seq_add(0, p0, -1, delta)
    assert last(context) == (3, -1)
    context.memory.seq_add(0, 9, -1, -10)  # nothing is there
    assert last(context) == (3, -1)


def test_truncate(context: Context) -> None:
    assert [context.memory.can_truncate(0, p0) for p0 in (0, 1, 4, 99)] == [True] * 4
    with pytest.raises(ValidationError):
        context.memory.can_truncate(0, -1)
    expected = feed(context, [9, 8], 4)
    assert context.memory.seq_rm(0, 2)
    assert np.allclose(feed(context, [3, 4, 9, 8], 2), expected, atol=1e-3)


@pytest.mark.parametrize("unified", [True, False])
def test_sliding_window(tmp_path: Path, unified: bool) -> None:
    """`seq_rm` returns True even if the window lost needed positions; `can_truncate` does not."""
    how = {"n_batch": 1024, "n_ubatch": 16, "n_threads": 1, "n_seq_max": 2, "swa_full": False}
    with (
        Model(write_windowed(tmp_path / "m.gguf")) as model,
        Context(model, n_ctx=2048, kv_unified=unified, **how) as context,  # type: ignore[arg-type]
    ):
        memory = context.memory
        feed(context, TOKENS)
        first = memory.seq_pos_min(0)
        assert 0 < first < 640 - WINDOW
        enough = first + WINDOW - 1
        wrong = 0
        for p0 in (0, 1, first, first + 1, enough - 1, enough, enough + 1, 639, 640):
            memory.clear()
            feed(context, TOKENS)
            able = memory.can_truncate(0, p0)
            assert able == (p0 == 0 or p0 >= enough), p0
            assert memory.seq_rm(0, p0)
            found = feed(context, [9, 8, 7], p0)
            memory.clear()
            expected = feed(context, [*TOKENS[:p0], 9, 8, 7])
            right = np.allclose(found, expected, atol=2e-2)
            assert right or not able, p0
            wrong += not right
        assert wrong >= 2


def test_recurrent(tmp_path: Path) -> None:
    with (
        Model(write_recurrent(tmp_path / "m.gguf")) as model,
        Context(model, n_ctx=256, n_seq_max=3, n_threads=1, kv_unified=True) as context,
    ):
        memory = context.memory
        feed(context, TOKENS[:20])
        assert (memory.seq_pos_min(0), memory.seq_pos_max(0)) == (19, 19)
        assert [memory.can_truncate(0, p) for p in (0, 1, 19, 20)] == [True, False, False, True]
        assert [memory.seq_rm(0, p) for p in (1, 19, 20)] == [False, False, True]
        with pytest.raises(ValidationError, match="recurrent"):
            memory.seq_cp(0, 1, 0, 10)
        memory.seq_cp(0, 1, 0, 20)
        assert np.allclose(feed(context, [7], 20), feed(context, [7], 20, 1), atol=1e-4)
        assert memory.seq_rm(-1)
        assert last(context) == (-1, -1)


def test_clear(context: Context) -> None:
    for data in (True, False):
        context.memory.clear(data)
        assert last(context) == (-1, -1)


@pytest.mark.parametrize("seq_id", [-2, 2, 2**40, 0.0, "0", None])
def test_sequences_that_do_not_exist(context: Context, seq_id: int) -> None:
    memory = context.memory
    for call in (
        lambda: memory.seq_rm(seq_id),
        lambda: memory.seq_cp(seq_id, 0),
        lambda: memory.seq_cp(0, seq_id),
        lambda: memory.seq_keep(seq_id),
        lambda: memory.seq_add(seq_id, 0, 1, 1),
        lambda: memory.seq_div(seq_id, 0, 1, 2),
        lambda: memory.seq_pos_min(seq_id),
        lambda: memory.seq_pos_max(seq_id),
        lambda: memory.can_truncate(seq_id, 0),
    ):
        with pytest.raises(ValidationError):
            call()
    assert last(context) == (3, -1)


def test_positions_out_of_range(context: Context) -> None:
    memory = context.memory
    for call in (
        lambda: memory.seq_rm(0, 2**40),
        lambda: memory.seq_cp(0, 1, 0, 2**40),
        lambda: memory.seq_add(0, 0, -1, 2**40),
        lambda: memory.seq_add(0, 0, -1, 2**31 - 1),
        lambda: memory.seq_add(0, 0.5, -1, 1),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValidationError):
            call()
    assert last(context) == (3, -1)


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_every_build(child: Child, tiny_model: Path, tmp_path: Path, build: str) -> None:
    """The same operations on each build, with a plain and a recurrent model."""
    code = """
        import sys
        from llama_cffi import LlamaError
        from llama_cffi.binding import Batch, Context, Model
        def feed(context, tokens, pos=0, seq_id=0):
            batch = Batch(len(tokens))
            batch.fill(tokens, pos, seq_id)
            context.decode(batch)
            return context.logits().copy()
        def attempt(f, *args):
            try:
                f(*args)
            except LlamaError:
                pass
        edges = (-2**31, -2**31 + 1, -7, -1, 0, 1, 5, 255, 256, 1000, 2**31 - 1)
        for path in sys.argv[1:]:
            model = Model(path)
            for unified in (True, False):
                with Context(model, n_ctx=512, n_seq_max=2, n_threads=1,
                             kv_unified=unified) as context:
                    memory = context.memory
                    plain = path == sys.argv[1]
                    assert memory.seq_pos_max(0) == -1
                    feed(context, [1])
                    assert [memory.seq_pos_max(s) for s in (0, 1)] == [0, -1]
                    assert memory.can_truncate(0, 1) and memory.can_truncate(1, 0)
                    try:
                        assert memory.seq_pos_min(0) == 0
                    except LlamaError as e:
                        assert "smallest position" in str(e) and "LLAMA_CFFI_BUILD" in str(e)
                    expected = feed(context, [2, 3, 4, 5], 1)
                    assert memory.can_truncate(0, 3) == memory.seq_rm(0, 3) == plain
                    if not plain:
                        memory.seq_rm(0)
                        feed(context, [1, 2, 3])
                    assert abs(feed(context, [4, 5], 3) - expected).max() < 1e-2
                    memory.seq_cp(0, 1)
                    memory.seq_cp(0, 1)
                    a, b = feed(context, [6], 5), feed(context, [6], 5, 1)
                    assert abs(a - b).max() < 1e-2
                    memory.seq_keep(1)
                    assert [memory.seq_pos_max(s) for s in (0, 1)] == [-1, 5]
                    for p0 in edges:
                        for p1 in edges:
                            attempt(memory.seq_cp, 1, 0, p0, p1)
                            attempt(memory.seq_add, 1, p0, p1, 1)
                            attempt(memory.seq_div, 1, p0, p1, 2)
                            attempt(memory.seq_rm, 0, p0, p1)
                        for delta in edges:
                            attempt(memory.seq_add, 1, p0, -1, delta)
                            attempt(memory.seq_div, 1, p0, -1, delta)
                        attempt(lambda: feed(context, [1], memory.seq_pos_max(1) + 1, 1))
                    assert memory.seq_rm(-1)
                    assert [memory.seq_pos_max(s) for s in (0, 1)] == [-1, -1]
                    assert abs(feed(context, [1, 2, 3, 4, 5]) - expected).max() < 1e-2
        print("alive")
    """
    recurrent = write_recurrent(tmp_path / "recurrent.gguf")
    result = child(code, tiny_model, recurrent, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stdout, result.stderr) == (0, "alive\n", "")


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_defrag(child: Child, tiny_model: Path, build: str) -> None:
    """b3889 finds no slot in a cache that is half empty until the gaps are closed."""
    code = """
        import sys
        from llama_cffi.binding import Batch, Context, Model
        from llama_cffi.errors import KvCacheFullError
        def feed(tokens, pos=0, seq_id=0):
            batch = Batch(len(tokens))
            batch.fill(tokens, pos, seq_id)
            context.decode(batch)
            return context.logits().copy()
        context = Context(Model(sys.argv[1]), n_ctx=256, n_seq_max=2, n_threads=1, kv_unified=True)
        for i in range(120):
            feed([i], i)
            feed([i], i, 1)
        expected = feed([7], 120)
        context.memory.seq_rm(0, 120)
        context.memory.seq_rm(1)
        try:
            feed(list(range(100)), 0, 1)
        except KvCacheFullError:
            print("full")
        context.memory.seq_rm(1)
        context.memory.defrag()
        feed(list(range(100)), 0, 1)
        assert abs(feed([7], 120) - expected).max() < 1e-2
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    said = "full\n" if build == OLD else ""
    assert (result.returncode, result.stdout, result.stderr) == (0, said, "")
