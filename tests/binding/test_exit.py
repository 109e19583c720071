"""At exit llama.cpp ends before Python does: what is used after that must raise, not crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

from llama_cffi.binding import Batch, Context, Model

# Freed memory is overwritten, so that reading it shows.
DIRTY = {"MALLOC_PERTURB_": "165"}

EARLIER = """
    import atexit, sys
    from llama_cffi.errors import LlamaError

    def last():
        for name, use in uses.items():
            try:
                use()
            except LlamaError as e:
                print(name, "exiting" in str(e) or "closed" in str(e))
            else:
                print(name, "worked")

    atexit.register(last)
"""
EVERYTHING = """
    from llama_cffi import (Batch, Context, Embedder, Engine, InferenceEngine, Llama, LoraAdapter,
                            Model, SamplerChain, get_library)
    from llama_cffi.llama_cpp import Llama as DropIn

    path = sys.argv[1]
    model = Model(path)
    context, chain = Context(model, n_ctx=64, n_threads=1), SamplerChain(model).add_greedy()
    batch = Batch(2)
    batch.fill([5, 6], 0)
    context.decode(batch)
    engine, llama = Engine(path, n_ctx=128), Llama(path, n_ctx=128)
    many, drop_in = Llama(path, n_ctx=128, n_parallel=2), DropIn(path, n_ctx=128, verbose=False)
    scheduler, embedder = InferenceEngine(path, n_ctx=128), Embedder(path)
    stream = llama("Once", max_tokens=50, stream=True)
    next(iter(stream))
    uses = {
        "description": lambda: model.description,
        "metadata": lambda: model.metadata,
        "template": lambda: model.chat_template,
        "text": lambda: model.vocab.text(7),
        "tokenize": lambda: model.vocab.tokenize("x"),
        "decode": lambda: context.decode(batch),
        "logits": context.logits,
        "state": context.save_state,
        "sample": lambda: chain.sample(context),
        "add": chain.add_greedy,
        "devices": lambda: model.library.devices,
        "engine": lambda: engine.generate("x", max_tokens=2),
        "llama": lambda: llama("x", max_tokens=2),
        "stream": lambda: next(iter(stream)),
        "many": lambda: many("x", max_tokens=2),
        "scheduler": lambda: scheduler.generate("x", max_tokens=2),
        "drop-in": lambda: drop_in("x", max_tokens=2),
        "embedder": lambda: embedder.embed(["x"]),
        "new model": lambda: Model(path),
        "new model of the library": lambda: Model(path, library=model.library),
        "new context": lambda: Context(model),
        "new chain": lambda: SamplerChain(model),
        "new adapter": lambda: LoraAdapter(model, path),
        "new engine": lambda: Engine(path),
        "new scheduler": lambda: InferenceEngine(path),
        "library": get_library,
    }
"""


def test_a_function_that_runs_after_the_end_gets_errors(child: Child, tiny_model: Path) -> None:
    result = child(EARLIER + EVERYTHING, tiny_model, **DIRTY)
    lines = result.stdout.split("\n")[:-1]
    assert (result.returncode, len(lines)) == (0, 26), result.stderr
    assert [line for line in lines if not line.endswith("True")] == []


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_destructors_that_generate_at_exit(child: Child, tiny_model: Path, build: str) -> None:
    code = """
        import sys
        from llama_cffi import Engine, Llama
        class Agent:
            def __init__(self, generate):
                self.generate = generate
            def __del__(self):
                try:
                    self.generate("x", max_tokens=2)
                except Exception:
                    print("refused")
        agents = [Agent(kind(sys.argv[1], n_ctx=64).generate) for kind in (Engine, Llama)]
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build, **DIRTY)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


def test_a_function_registered_after_the_first_model_can_use_it(
    child: Child, tiny_model: Path
) -> None:
    code = """
        import atexit, sys
        from llama_cffi import Engine, InferenceEngine
        engine, scheduler = Engine(sys.argv[1], n_ctx=64), InferenceEngine(sys.argv[1], n_ctx=64)
        def last():
            result = engine.generate("x", max_tokens=2), scheduler.generate("x", max_tokens=2)
            print(len(result))
        atexit.register(last)
    """
    result = child(code, tiny_model)
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr


@pytest.mark.parametrize("build", [OLD, NEWEST])
def test_daemon_threads_that_are_in_c_at_exit(child: Child, tiny_model: Path, build: str) -> None:
    """C's static objects are destroyed when Python ends, so nothing may compute then."""
    code = """
        import sys, threading, time
        from llama_cffi import Context, Engine, InferenceEngine, Model
        path = sys.argv[1]
        engine, scheduler = Engine(path, n_ctx=256), InferenceEngine(path, n_ctx=256)
        def again(use):
            try:
                while True:
                    use()
            except Exception:
                pass
        for use in (
            lambda: engine.generate("x", max_tokens=200, ignore_eos=True),
            lambda: scheduler.generate("x", max_tokens=200, ignore_eos=True),
            lambda: Context(Model(path), n_ctx=64),
        ):
            threading.Thread(target=again, args=(use,), daemon=True).start()
        time.sleep(float(sys.argv[2]))
    """
    for wait in (0.05, 0.15, 0.25):
        result = child(code, tiny_model, wait, LLAMA_CFFI_BUILD=build, **DIRTY)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr


@pytest.mark.parametrize("call", ["decode", "memory"])
def test_the_traceback_of_an_error_keeps_nothing_alive(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Python keeps the last one until it has ended, and the end waits for running calls."""
    model = Model(tiny_model)
    context, batch = Context(model, n_ctx=64, n_threads=1), Batch(1)
    batch.fill([1], 0)

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(context._decode_call, "run", interrupt)
    monkeypatch.setattr("llama_cffi.binding.compat.memory_call", interrupt)
    owned = context._owned
    with pytest.raises(KeyboardInterrupt):
        context.decode(batch) if call == "decode" else context.memory.clear()
    context.close()
    assert owned() is None
    model.close()
