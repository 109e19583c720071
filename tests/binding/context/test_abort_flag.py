from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.odd_models import write_recurrent
from support.tiny_gguf import write_tiny

from llama_cffi.binding import Batch, Context, Model
from llama_cffi.errors import DecodeAbortedError


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose prefill of 4,096 tokens takes long enough to be stopped."""
    return write_tiny(tmp_path_factory.mktemp("slow") / "slow.gguf", n_embd=256, n_ctx=4096)


@pytest.fixture
def context(tiny_model: Path) -> Iterator[Context]:
    with Model(tiny_model) as model:
        yield Context(model, n_ctx=256, n_batch=256, n_threads=1)


def feed(context: Context, tokens: list[int], pos: int = 0, seq_id: int = 0) -> None:
    batch = Batch(len(tokens))
    batch.fill(tokens, pos, seq_id)
    context.decode(batch)


def test_flag_stays_until_it_is_cleared(context: Context) -> None:
    flag = context.abort_flag
    assert not flag.is_set
    flag.set()
    flag.set()
    for _ in range(2):
        with pytest.raises(DecodeAbortedError, match="3 tokens"):
            feed(context, [1, 2, 3])
        assert flag.is_set
        assert context.memory.seq_pos_max(0) == -1
    flag.clear()
    assert not flag.is_set
    feed(context, [1, 2, 3])
    assert context.memory.seq_pos_max(0) == 2


def test_earlier_tokens_stay(tiny_model: Path) -> None:
    with Model(tiny_model) as model:
        context = Context(model, n_ctx=128, n_batch=64, n_ubatch=8, n_seq_max=3, n_threads=1)
        for seq_id in (0, 1, 2):
            feed(context, [1, 2, 3], 0, seq_id)
        batch = Batch(64)
        for i in range(20):
            batch.add(5, 3 + i, [0])
            batch.add(6, 3 + i, [2])
        context.abort_flag.set()
        with pytest.raises(DecodeAbortedError):
            context.decode(batch)
        assert [context.memory.seq_pos_max(s) for s in range(3)] == [2, 2, 2]
        context.abort_flag.clear()
        context.decode(batch)
        assert [context.memory.seq_pos_max(s) for s in range(3)] == [22, 2, 22]


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_a_recurrent_memory_drops_the_sequence(child: Child, tmp_path: Path, build: str) -> None:
    """It cannot drop tokens, so the sequence must not be continued as if nothing had happened."""
    model = write_recurrent(tmp_path / "mamba.gguf")
    script = """
        import sys
        import numpy as np
        from llama_cffi import DecodeAbortedError
        from llama_cffi.binding import Batch, Context, Model
        context = Context(Model(sys.argv[1]), n_ctx=64, n_seq_max=2, n_threads=1)
        batch = Batch(8)
        def feed(tokens, pos, seq_id):
            batch.fill(tokens, pos, seq_id)
            context.decode(batch)
            return context.logits().copy()
        expected = feed([1, 2, 3], 0, 0)
        other = feed([7, 8, 9], 0, 1)
        context.abort_flag.set()
        try:
            feed([4, 5], 3, 0)
        except DecodeAbortedError as e:
            assert "sequences [0] are empty now" in str(e), e
        else:
            raise AssertionError("it was not stopped")
        context.abort_flag.clear()
        assert np.allclose(feed([1, 2, 3], 0, 0), expected, atol=1e-5)
        after = feed([4], 3, 1)
        context.memory.clear()
        feed([7, 8, 9], 0, 1)
        assert np.allclose(feed([4], 3, 1), after, atol=1e-5)
    """
    result = child(script, model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


def test_it_stops_immediately_on_the_cpu(tiny_model: Path) -> None:
    for options in ({"n_gpu_layers": 0}, {"devices": []}):
        with Model(tiny_model, **options) as model:  # type: ignore[arg-type]
            assert Context(model, n_ctx=64, n_threads=1).abortable


@pytest.mark.parametrize(
    ("build", "polled"), [(OLD, False), ("npm:3.5.0", False), (MIDDLE, True), (NEWEST, True)]
)
def test_stopping_several_threads_neither_hangs_nor_dies(
    child: Child, tiny_model: Path, build: str, polled: bool
) -> None:
    """Up to b4600 a thread that leaves lets the others wait for ever, so C does not poll there."""
    script = """
        import random, sys, threading
        import numpy as np
        from llama_cffi import DecodeAbortedError
        from llama_cffi.binding import Batch, Context, Model
        from llama_cffi.binding import processors
        processors.usable_cpus = lambda: 2
        context = Context(Model(sys.argv[1]), n_ctx=256, n_threads=2)
        alone = Context(context.model, n_ctx=256, n_threads=1)
        assert context.abortable == (sys.argv[2] == "True"), context.abortable
        assert alone.abortable
        batch, expected = Batch(200), []
        batch.fill([i % 250 for i in range(200)], 0)
        for each in (context, alone):
            each.decode(batch)
            expected.append(each.logits().copy())
        assert np.allclose(*expected, atol=1e-4)
        rng, stopped = random.Random(1), 0
        for _ in range(60):
            context.memory.clear()
            timer = threading.Timer(rng.random() * 0.006, context.abort_flag.set)
            timer.start()
            try:
                for _ in range(3):
                    context.memory.clear()
                    context.decode(batch)
            except DecodeAbortedError:
                stopped += 1
            timer.join()
            context.abort_flag.clear()
        context.memory.clear()
        context.decode(batch)
        assert np.allclose(context.logits(), expected[0], atol=1e-4)
        assert stopped
        context.set_threads(1)
        assert context.abortable
        alone.set_threads(2)
        assert alone.abortable == (sys.argv[2] == "True")
    """
    result = child(script, tiny_model, polled, LLAMA_CFFI_BUILD=build, timeout=60)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


def test_one_flag_for_each_context(context: Context) -> None:
    other = Context(context.model, n_ctx=64, n_threads=1)
    context.abort_flag.set()
    feed(other, [1])
    with pytest.raises(DecodeAbortedError):
        feed(context, [1])


def test_a_pending_shift_is_not_aborted(context: Context) -> None:
    """C shifts before it decodes; stopped in between, it would shift some layers twice."""
    tokens = list(range(20))
    feed(context, tokens)
    context.memory.seq_rm(0, 0, 4)
    context.memory.seq_add(0, 4, -1, -4)
    feed(context, [7], 16)
    expected = context.logits().copy()
    context.memory.clear()
    feed(context, tokens)
    context.memory.seq_rm(0, 0, 4)
    context.memory.seq_add(0, 4, -1, -4)
    context.abort_flag.set()
    for _ in range(2):
        with pytest.raises(DecodeAbortedError):
            feed(context, [7], 16)
    context.abort_flag.clear()
    feed(context, [7], 16)
    assert np.allclose(context.logits(), expected, atol=1e-5)


def test_interrupt_in_a_log_line(context: Context) -> None:
    logs = context.library.logs
    logs.interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        feed(context, [1])
    assert logs.interrupt is None
    context.abort_flag.set()
    logs.interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        feed(context, [1], 1)
    assert context.memory.seq_pos_max(0) == 0
    context.abort_flag.clear()
    logs.interrupt = KeyboardInterrupt()  # it belongs to the main thread
    done: list[bool] = []
    thread = threading.Thread(target=lambda: (feed(context, [1], 1), done.append(True)))
    thread.start()
    thread.join()
    assert done
    with pytest.raises(KeyboardInterrupt):
        logs.raise_interrupt()


@pytest.mark.parametrize(("build", "code"), [(OLD, 0), (MIDDLE, 2), (NEWEST, 2)])
def test_a_long_prefill_is_stopped(child: Child, slow_model: Path, build: str, code: int) -> None:
    script = """
        import sys, threading
        import numpy as np
        from llama_cffi import DecodeAbortedError
        from llama_cffi.binding import Batch, Context, Model
        model, expected = Model(sys.argv[1]), int(sys.argv[2])
        tokens = [i % 250 for i in range(4000)]
        batch = Batch(4000)
        def context():
            return Context(model, n_ctx=4096, n_batch=4096, n_ubatch=512, n_threads=1)
        stopped = context()
        assert stopped.abortable
        for use in (lambda: stopped._decode_call.run(stopped.ptr, batch.struct[0]),
                    lambda: stopped.decode(batch)):
            batch.fill(tokens, 0)
            timer = threading.Timer(0.05, stopped.abort_flag.set)
            timer.start()
            try:
                code = use()
                assert code == expected, code
                timer.join()
                if code == 0:  # the only sign is that outputs were not computed
                    row = stopped.library.lib.llama_get_logits_ith(stopped.ptr, -1)
                    partial = [row[i] for i in range(259)]
                stopped.memory.clear()
            except DecodeAbortedError:
                assert stopped.memory.seq_pos_max(0) <= 0  # -1, but 0 in the oldest builds
            timer.join()
            stopped.abort_flag.clear()
        batch.fill(tokens[:700], 0)
        stopped.decode(batch)
        fresh = context()
        fresh.decode(batch)
        assert np.array_equal(stopped.logits(), fresh.logits())
        if expected == 0:
            batch.fill(tokens, 0)
            fresh.memory.clear()
            fresh.decode(batch)
            assert not np.allclose(partial, fresh.logits(), atol=1e-3)
    """
    result = child(script, slow_model, code, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
