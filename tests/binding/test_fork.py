from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

# Python 3.12 warns of a fork beside threads, which is what these tests are about.
PARENT = """
    import multiprocessing, os, sys, warnings
    warnings.simplefilter("ignore")
    from llama_cffi import LibraryLoadError, LlamaError
    from llama_cffi.binding import Batch, Context, NativeObject, Model, SamplerChain, get_library
    def refused(f, kind=LlamaError):
        try:
            f()
        except kind as e:
            assert "spawn" in str(e), e
        else:
            raise AssertionError(f"{f} worked")
    def wait(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

USE = """
    model = Model(sys.argv[1])
    context = Context(model, n_ctx=64, n_threads=2)
    chain = SamplerChain(model).add_greedy()
    batch = Batch(1)
    batch.fill([1], 0)
    context.decode(batch)
    chain.sample(context)
    freed = []
    closed, collected = NativeObject(1, freed.append), NativeObject(2, freed.append)
    def in_child():
        library = model.library
        batch.fill([1], 1)
        for f in (lambda: context.decode(batch), context.logits, context.embedding,
                  lambda: chain.sample(context), lambda: model.vocab.tokenize("x"),
                  context.memory.clear, lambda: model.n_embd, lambda: Model(sys.argv[1]),
                  lambda: Model(sys.argv[1], library=library), lambda: Context(model),
                  lambda: SamplerChain(model), context.synchronize, context.__enter__,
                  lambda: library.devices, lambda: context.set_threads(1)):
            refused(f)
        refused(get_library, LibraryLoadError)
        context.abort_flag.set()
        chain.close()
        context.close()
        model.close()
        global collected
        closed.close()
        del collected
        assert freed == []
"""

FORKS = {
    "sys.exit": """
        pid = os.fork()
        if not pid:
            in_child()
            sys.exit(0)
        assert wait(pid) == 0
    """,
    "sys.exit with everything open": """
        pid = os.fork()
        if not pid:
            refused(context.logits)
            sys.exit(0)
        assert wait(pid) == 0
    """,
    "os._exit": """
        pid = os.fork()
        if not pid:
            in_child()
            os._exit(0)
        assert wait(pid) == 0
    """,
    "multiprocessing": """
        worker = multiprocessing.get_context("fork").Process(target=in_child)
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0, worker.exitcode
    """,
    "a pool": """
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(abs, [-1, 2]) == [1, 2]
    """,
    "collected": """
        pid = os.fork()
        if not pid:
            import gc
            del context, chain, model, batch
            gc.collect()
            sys.exit(0)
        assert wait(pid) == 0
    """,
}


@pytest.mark.parametrize("how", FORKS)
def test_a_forked_child_gets_an_error(child: Child, tiny_model: Path, how: str) -> None:
    after = """
        batch.fill([1], 1)
        context.decode(batch)  # the parent goes on
        chain.sample(context)
        context.close()
        model.close()
    """
    code = "".join(f"{part}\n" for part in map(_flat, (PARENT, USE, FORKS[how], after)))
    result = child(code, tiny_model, timeout=60)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_every_build(child: Child, tiny_model: Path, build: str) -> None:
    code = "\n".join(map(_flat, (PARENT, USE, FORKS["sys.exit"])))
    result = child(code, tiny_model, timeout=60, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


def test_a_fork_before_loading_works(child: Child, tiny_model: Path) -> None:
    work = """
        def work():
            model = Model(sys.argv[1])
            context = Context(model, n_ctx=64, n_threads=2)
            batch = Batch(1)
            batch.fill([1], 0)
            context.decode(batch)
            context.logits()
        pid = os.fork()
        if not pid:
            work()
            sys.exit(0)
        assert wait(pid) == 0
        work()
        worker = multiprocessing.get_context("spawn").Process(target=print, args=("spawned",))
        worker.start()
        worker.join(60)
        assert worker.exitcode == 0
    """
    result = child("\n".join(map(_flat, (PARENT, work))), tiny_model, timeout=60)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


def test_a_lock_held_by_another_thread(child: Child) -> None:
    """The child must not wait for a thread that it does not have."""
    work = """
        import threading
        from llama_cffi.binding.loading import library
        with library._lock:
            pid = os.fork()
            if not pid:
                get_library()
                sys.exit(0)
            assert wait(pid) == 0
    """
    result = child("\n".join(map(_flat, (PARENT, work))), timeout=60)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


def _flat(code: str) -> str:
    return textwrap.dedent(code)
