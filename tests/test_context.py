from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import MIDDLE, NEWEST, OLD, Child

from llama_cffi.binding import Batch, Context, Model, SamplerChain
from llama_cffi.errors import GenerationError, KvCacheFullError, LlamaError, ValidationError


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    with Model(tiny_model) as model:
        yield model


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    with Context(model, n_ctx=256, n_batch=64, n_threads=1) as context:
        yield context


def feed(context: Context, tokens: list[int], pos: int = 0, **how: bool) -> None:
    batch = Batch(max(1, len(tokens)))
    batch.fill(tokens, pos, **how)  # type: ignore[arg-type]
    context.decode(batch)


def test_logits(context: Context) -> None:
    feed(context, [1, 2, 3])
    row = context.logits()
    assert (row.shape, row.dtype) == ((259,), np.float32)
    assert np.isfinite(row).all()
    assert np.array_equal(row, context.logits(2))


def test_chunks_give_the_same_logits(context: Context) -> None:
    tokens = list(range(40))
    feed(context, tokens)
    whole = context.logits().copy()
    context.memory.clear()
    for start in range(0, 40, 8):
        feed(context, tokens[start : start + 8], start)
    assert np.allclose(context.logits(), whole, atol=1e-4)
    assert context.logits().argmax() == whole.argmax()


@pytest.mark.parametrize("i", [0, 1, 3, 99, -2, -9, -(2**31), 2**40, 1.0, None])
def test_outputs_that_were_not_asked_for(context: Context, i: int) -> None:
    feed(context, [1, 2, 3])
    with pytest.raises(ValidationError):
        context.logits(i)
    with SamplerChain(context.model).add_greedy() as chain, pytest.raises(ValidationError):
        chain.sample(context, i)


def test_no_output_before_a_decode_nor_after_a_failed_one(context: Context) -> None:
    with pytest.raises(ValidationError):
        context.logits()
    feed(context, [1, 2, 3], logits=False)
    with pytest.raises(ValidationError):
        context.logits()
    feed(context, [4], 3)
    with pytest.raises(ValidationError):  # refused before C: the output is still there
        feed(context, [259], 4)
    assert context.logits().shape == (259,)
    with pytest.raises(GenerationError):
        feed(context, [5], 90)
    with pytest.raises(ValidationError):
        context.logits()


def test_several_outputs(context: Context) -> None:
    batch = Batch(4)
    for i, token in enumerate([7, 8, 9]):
        batch.add(token, i, logits=i != 1)
    context.decode(batch)
    assert np.array_equal(context.logits(-1), context.logits(2))
    assert np.array_equal(context.logits(-2), context.logits(0))
    for i in (1, -3):
        with pytest.raises(ValidationError):
            context.logits(i)


def test_batches_that_are_refused(context: Context) -> None:
    with pytest.raises(ValidationError, match="empty"):
        context.decode(Batch(4))
    with pytest.raises(ValidationError, match="n_batch is 64"):
        feed(context, [1] * 65)
    with pytest.raises(ValidationError, match="token 259"):
        feed(context, [259])
    batch = Batch(2)
    batch.fill([1], 0, seq_id=1)
    with pytest.raises(ValidationError, match="sequence 1"):
        context.decode(batch)
    assert context.memory.seq_pos_max(0) == -1


def test_positions_must_continue(context: Context) -> None:
    feed(context, [1, 2, 3])
    for pos in (10, 1):
        with pytest.raises(GenerationError, match="position"):
            feed(context, [4], pos)
    assert context.memory.seq_pos_max(0) == 2
    feed(context, [4], 3)


def test_full_cache(model: Model) -> None:
    with Context(model, n_ctx=256, n_batch=256, n_threads=1) as context:
        feed(context, [1] * context.n_ctx)
        with pytest.raises(KvCacheFullError, match="n_ctx=256"):
            feed(context, [1], context.n_ctx)
        assert context.memory.seq_pos_max(0) == context.n_ctx - 1


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_ctx": -1},
        {"n_ctx": 2**31},
        {"n_ctx": 1.5},
        {"n_ctx": "8"},
        {"n_ctx": None},
        {"n_batch": 0},
        {"n_ubatch": -1},
        {"n_seq_max": 0},
        {"n_seq_max": 1000},
        {"n_seq_max": 200, "n_batch": 64},
        {"n_threads": -1},
        {"n_threads_batch": -5},
        {"n_threads": 2.0},
    ],
)
def test_sizes_out_of_range(model: Model, sizes: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Context(model, **{"n_ctx": 256, **sizes})  # type: ignore[arg-type]


def test_odd_sizes_work(model: Model) -> None:
    for sizes in (
        {"n_ctx": 1},
        {"n_batch": 1},
        {"n_batch": 2**31 - 1},
        {"n_ubatch": 4096},
        {"n_seq_max": 64},
        {"n_threads": 10_000},
        {"n_threads": 2, "n_threads_batch": 1},
    ):
        with Context(model, **{"n_ctx": 128, "n_threads": 1, **sizes}) as context:  # type: ignore[arg-type]
            feed(context, [1])
            assert context.n_batch <= 128
            assert context.n_threads <= 512


def test_more_memory_than_there_is(model: Model) -> None:
    with pytest.raises(LlamaError, match="GiB"):
        Context(model, n_ctx=2**31 - 1)


def test_closed_with_its_model(tiny_model: Path) -> None:
    model = Model(tiny_model)
    context = Context(model, n_ctx=64, n_threads=1)
    feed(context, [1])
    batch = Batch(1)
    batch.fill([1], 1)
    memory = context.memory
    model.close()
    assert context.closed
    for call in (
        lambda: context.decode(batch),
        context.logits,
        context.__enter__,
        memory.clear,
        lambda: memory.seq_rm(0),
        lambda: memory.seq_cp(0, 0),
        lambda: memory.seq_keep(0),
        lambda: memory.seq_add(0, 0, 1, 1),
        lambda: memory.seq_pos_max(0),
        lambda: memory.can_shift,
        lambda: Context(model),
        lambda: SamplerChain(model),
    ):
        with pytest.raises(ValidationError, match="closed"):
            call()
    context.close()


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_every_build_survives(child: Child, tiny_model: Path, build: str) -> None:
    """What newer builds refuse by themselves, older ones must not die of."""
    code = """
        import sys
        from llama_cffi import LlamaError
        from llama_cffi.binding import Batch, Context, Model, SamplerChain
        model = Model(sys.argv[1])
        refused = 0
        def attempt(f):
            global refused
            try:
                f()
            except LlamaError:
                refused += 1
        for sizes in ({"n_ctx": 1}, {"n_seq_max": 2}, {"n_seq_max": 64}, {"n_seq_max": 65},
                      {"n_ctx": 2**30}, {"n_threads": 513}, {"embeddings": True},
                      {"flash_attn": True}, {"kv_unified": True, "n_seq_max": 2},
                      {"kv_unified": False, "n_seq_max": 2}):
            try:
                context = Context(model, **{"n_ctx": 64, "n_threads": 1, **sizes})
            except LlamaError:
                refused += 1
                continue
            batch = Batch(64, n_seq_max=64)
            chain = SamplerChain(model).add_greedy()
            attempt(lambda: chain.sample(context))
            attempt(context.logits)
            for tokens, pos, seq in (([1, 2, 3], 0, 0), ([1], 50, 0), ([1], 1, 0),
                                     ([1], 2**31 - 2, 0), ([1], 0, 1), ([1], 0, 63),
                                     ([1] * 64, 0, 0)):
                attempt(lambda: (batch.fill(tokens, pos, seq), context.decode(batch)))
                attempt(lambda: chain.sample(context))
            batch.clear()
            attempt(lambda: (batch.add(1, 0, [0, 1], logits=True), context.decode(batch)))
            attempt(lambda: SamplerChain(model).add_temp(0.5).sample(context))
            memory = context.memory
            for call in (lambda: memory.seq_cp(0, 1, 1, 2), lambda: memory.seq_cp(0, 1),
                         lambda: memory.seq_add(0, 0, -1, 2**31 - 1),
                         lambda: memory.seq_add(0, 0, -1, -7),
                         lambda: memory.seq_rm(-1, 1, 2), lambda: memory.seq_keep(0)):
                attempt(call)
            context.close()
        assert refused > 50, refused
        print(refused)
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
