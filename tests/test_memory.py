from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_cffi.binding import Batch, Context, Model
from llama_cffi.errors import ValidationError


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model) as model:
        yield model


@pytest.fixture(params=[True, False], ids=["unified", "separate"])
def context(model: Model, request: pytest.FixtureRequest) -> Iterator[Context]:
    with Context(model, n_ctx=256, n_seq_max=2, n_threads=1, kv_unified=request.param) as context:
        batch = Batch(4)
        batch.fill([1, 2, 3, 4], 0)
        context.decode(batch)
        yield context


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
        lambda: memory.seq_pos_max(seq_id),
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
