"""Models and contexts are freed when the last name is gone, without the garbage collector."""

from __future__ import annotations

import textwrap

import pytest
from support.children import Child

PREPARE = """
import asyncio, gc, logging, sys, threading, time
gc.disable()
from llama_cffi import *
from llama_cffi.binding.native_object import _alive
from llama_cffi.demo import model_path
from llama_cffi.llama_cpp import Llama as DropIn

path, chat = str(model_path()), [{"role": "user", "content": "hi"}]

def rest():
    return sorted(type(native).__name__ for native in list(_alive))
"""

# What a cell of a notebook may do. Each body runs in a function, whose end drops its names.
USES = {
    "Model": "model = Model(path); model.vocab.tokenize('x'); model.vocab.pieces()[5]; repr(model)",
    "Vocab of a dropped model": "vocab = Model(path).vocab; vocab.tokenize('x'); vocab.pieces()[5]",
    "Context": """
        context = Context(Model(path), n_ctx=64)
        batch = Batch(4)
        batch.fill([5, 6], pos=0)
        context.decode(batch)
        memory = context.memory
        memory.seq_rm(0, 1)
    """,
    "Context with a pending update": """
        context = Context(Model(path), n_ctx=64)
        context.hold_abort()
    """,
    "Context that cannot be made": """
        model = Model(path)
        try:
            Engine(model, n_ctx=128, type_k="nonsense")
        except ValidationError:
            pass
    """,
    "SamplerChain": """
        model = Model(path)
        chain = SamplerChain(model).add_custom(CustomSampler(model, apply=lambda c: None))
        chain.add_greedy()
    """,
    "Engine": """
        engine = Engine(path, n_ctx=256)
        engine.generate("x", max_tokens=3, grammar='root ::= "a"+')
        list(engine.stream("x", "", 3))
        stream = engine.stream("x", "", 30)
        next(stream)
    """,
    "Engine after errors": """
        def fail(*_):
            raise KeyError("mine")

        engine = Engine(path, n_ctx=128)
        for option in ({"callback": fail}, {"logits_processor": [fail]}):
            try:
                engine.generate("x", max_tokens=3, **option)
            except KeyError:
                pass
    """,
    "Llama": """
        llm = Llama(path, n_ctx=512)
        llm.create_chat_completion(chat, max_tokens=3)
        llm.create_chat_completion(chat, max_tokens=5, response_format={"type": "json_object"})
        chunks = llm.create_chat_completion(chat, max_tokens=30, stream=True)
        next(chunks)
        llm.set_state(llm.get_state())
    """,
    "Llama in an event loop": """
        async def work():
            llm = Llama(path, n_ctx=256)
            await llm.generate_async("x", max_tokens=3)
            async for _ in await llm.generate_async("x", max_tokens=3, stream=True):
                pass
            try:
                await llm.generate_async("x" * 10_000)
            except ContextOverflowError:
                pass

        asyncio.run(work())
    """,
    "Llama that embeds": "llm = Llama(path, n_ctx=256, embeddings=True); llm.embed('x' * 100)",
    "Embedder": "embedder = Embedder(path); embedder.embed(['x', 'x' * 300])",
    "Scorer": "scorer = Scorer(path); scorer.logprobs([5, 6, 7])",
    "drop-in": """
        llm = DropIn(path, n_ctx=256, verbose=False)
        llm("x", max_tokens=3)
        llm.eval([5, 6])
        llm.sample()
    """,
    "closed": "engine = Engine(path); engine.generate('x', max_tokens=2); engine.close()",
    "InferenceEngine": """
        engine = InferenceEngine(path, 2, 128)
        engine.generate("x", max_tokens=3)
    """,
    "InferenceEngine with requests in flight": """
        engine = InferenceEngine(path, 2, 256)
        handles = [engine.submit("x", 20) for _ in range(5)]
    """,
    "InferenceEngine that was never started": """
        engine = InferenceEngine(path, 2, 128, start=False)
        handle = engine.submit("x", 3)
    """,
    "InferenceEngine that is paused": """
        engine = InferenceEngine(path, 2, 128)
        engine.pause()
        handle = engine.submit("x", 3)
    """,
    "Llama with n_parallel": """
        llm = Llama(path, n_ctx=256, n_parallel=2)
        llm.create_chat_completion(chat, max_tokens=3)
        chunks = llm.create_chat_completion(chat, max_tokens=200, stream=True)
        next(chunks)
    """,
    "Llama with n_parallel and a callback that raises": """
        def fail(ids, scores):
            raise KeyError("mine")
        llm = Llama(path, n_ctx=256, n_parallel=2)
        try:
            llm.generate("x", 5, logits_processor=[fail])
        except KeyError:
            pass
    """,
    "InferenceEngine that died": """
        def die():
            raise KeyError("mine")

        logging.disable()
        engine = InferenceEngine(path, 2, 128)
        engine._thread.core.step = die
        try:
            engine.generate("x", max_tokens=3)
        except EngineDeadError:
            pass
    """,
    "LlamaPool": """
        pool = LlamaPool(path, 2, n_ctx=256)
        asyncio.run(pool.generate("x", max_tokens=3))
    """,
}
TAKES_A_THREAD = ("InferenceEngine", "Llama in", "Llama with n_parallel", "LlamaPool")


@pytest.mark.parametrize("threaded", [False, True], ids=["immediately", "once its thread ends"])
def test_what_is_dropped_is_freed_without_the_garbage_collector(
    child: Child, threaded: bool
) -> None:
    uses = {n: body for n, body in USES.items() if n.startswith(TAKES_A_THREAD) == threaded}
    code = (
        PREPARE
        + f"""
import textwrap

def n_threads():  # those of async calls wait for the next call; how many is a matter of timing
    names = [thread.name for thread in threading.enumerate()]
    return sum(not name.startswith("llama_cffi-background") for name in names)

n_threads_before = n_threads()
for name, body in {uses!r}.items():
    space = dict(globals())
    exec("def use():\\n" + textwrap.indent(textwrap.dedent(body).strip(), "    "), space)
    space["use"]()
    end = time.monotonic() + (20 if {threaded} else 0)
    while (rest() or n_threads() > n_threads_before) and time.monotonic() < end:
        time.sleep(0.002)
    print(name, rest()) if rest() else None
    gc.collect()  # so that one failure does not show in the others
"""
    )
    done = child(code)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


CELLS = {
    "Llama": "llm = Llama(path, n_ctx=8192, n_threads=1); _ = llm.generate('x', max_tokens=2)",
    "Engine": "llm = Engine(path, n_ctx=8192, n_threads=1); _ = llm.generate('x', max_tokens=2)",
    "an error": "llm = Llama(path, n_ctx=8192, n_threads=1); llm.generate('x ' * 9000)",
    "Llama with n_parallel": """
        llm = Llama(path, n_ctx=4096, n_parallel=2, n_threads=1)
        _ = llm.generate('x', max_tokens=2)
    """,
    "LlamaPool": """
        llm = LlamaPool(path, 2, n_ctx=4096, n_threads=1)
        _ = asyncio.run(llm.generate('x', max_tokens=2))
    """,
    "InferenceEngine": """
        llm = InferenceEngine(path, 2, 4096, n_threads=1)
        _ = llm.generate('x', max_tokens=2)
    """,
    "Embedder": "llm = Embedder(path, n_ctx=4096, n_threads=1); _ = llm.embed(['x ' * 100])",
    "drop-in": """
        llm = DropIn(path, n_ctx=8192, n_threads=1, verbose=False)
        _ = llm('x', max_tokens=2)
    """,
}


def test_running_a_cell_again_does_not_grow(child: Child) -> None:
    cells = {name: textwrap.dedent(body) for name, body in CELLS.items()}
    code = (
        PREPARE
        + f"""
def rss_mib():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4 // 1024

# As IPython runs it: in the user's namespace, with the last value and the last error kept.
sys.last_value = None
for name, body in {cells!r}.items():
    cell, space = compile(body, "cell", "exec"), dict(globals())
    kept = 1 + (name == "an error")
    for i in range(7):
        try:
            exec(cell, space)
        except ContextOverflowError as error:
            sys.last_traceback, sys.last_value = error.__traceback__, error
        end = time.monotonic() + 20
        while rest().count("Model") > kept and time.monotonic() < end:
            time.sleep(0.002)  # its thread is ending
        assert rest().count("Model") <= kept, (name, rest())
        if i == 1:
            first = rss_mib()
    print(name, rss_mib() - first)
    del space
    assert (sys.last_value is None) == (name != "an error")
    sys.last_traceback = sys.last_value = error = None
"""
    )
    # With glibc's default, buffers come from its heap after some were freed, and leave it sparse.
    done = child(code, MALLOC_MMAP_THRESHOLD_="131072")
    assert done.returncode == 0, done.stderr
    grown = {name: int(mib) for name, mib in (x.rsplit(" ", 1) for x in done.stdout.splitlines())}
    assert grown.keys() == CELLS.keys()
    assert max(grown.values()) < 10, grown  # MiB; a context has 25


def test_handles_of_a_dropped_engine_get_their_answers(child: Child) -> None:
    code = (
        PREPARE
        + """
handles = [InferenceEngine(path, 2, 128).submit("x", 20, temperature=0) for _ in range(3)]
texts = [handle.result(30) for handle in handles]
assert len(texts[0]) > 2 and len(set(texts)) == 1, texts
waiting = InferenceEngine(path, 2, 128, start=False).submit("x", 3)
try:
    waiting.result(30)
except CancelledError as error:
    print(error)
while rest():  # finished handles keep nothing
    time.sleep(0.002)
"""
    )
    done = child(code, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "the engine was closed" in done.stdout


@pytest.mark.parametrize("keeps", ["", "engine = make()", "handles = make()._queue.submitted"])
def test_the_interpreter_ends_with_requests_in_flight(child: Child, keeps: str) -> None:
    code = (
        PREPARE
        + f"""
def make():
    engine = InferenceEngine(path, 2, 1024)
    for _ in range(4):
        engine.submit("x", 900, ignore_eos=True)
    return engine

make()
{keeps}
"""
    )
    done = child(code, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
