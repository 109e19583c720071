from __future__ import annotations

import gc
import json
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.injection import interrupted_everywhere
from support.measuring import MEASURE
from support.tiny_gguf import write_tiny

from llama_cffi import ClosedError, ContextOverflowError, Engine, Model, ValidationError
from llama_cffi.errors import LlamaError
from llama_cffi.generation.cancellation import CancelToken

PROMPTS = [[1], [65, 66, 67], list(range(100)), [200, 3] * 20]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=256, n_threads=1) as engine:
        yield engine


def raw_greedy(engine: Engine, tokens: list[int], max_tokens: int) -> list[int]:
    """Decode greedily with the C API only."""
    library, context = engine.model.library, engine.context
    ffi, lib = library.ffi, library.lib
    context.memory.clear()
    found: list[int] = []
    batch = lib.llama_batch_init(256, 0, 1)
    new = tokens
    try:
        while True:
            start = len(tokens) + len(found) - len(new)
            for i, token in enumerate(new):
                batch.token[i], batch.pos[i] = token, start + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = i == len(new) - 1
            batch.n_tokens = len(new)
            assert lib.llama_decode(context.ptr, batch) == 0
            row = lib.llama_get_logits_ith(context.ptr, -1)
            logits = np.frombuffer(ffi.buffer(row, 259 * 4), dtype=np.float32)
            token = int(logits.argmax())
            if engine.model.vocab.is_eog(token):
                return found
            found.append(token)
            if len(found) == max_tokens:
                return found
            new = [token]
    finally:
        lib.llama_batch_free(batch)


@pytest.mark.parametrize("tokens", PROMPTS, ids=len)
def test_greedy_equals_the_c_api(engine: Engine, tiny_model: Path, tokens: list[int]) -> None:
    expected = raw_greedy(engine, tokens, 24)
    assert engine.generate_tokens(tokens, 24, temperature=0) == expected
    assert engine.generate_tokens(np.array(tokens), 24, temperature=0) == expected  # type: ignore[arg-type]
    with Engine(tiny_model, n_ctx=256, n_threads=1, n_batch=16) as chunked:
        assert chunked.generate_tokens(tokens, 24, temperature=0) == expected


def test_text_equals_detokenized_tokens(engine: Engine) -> None:
    for seed in range(5):
        tokens = engine.format_prompt("hé", "sys")
        options = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": seed}
        ids = engine.generate_tokens(tokens, 40, **options)  # type: ignore[arg-type]
        text = engine.generate("hé", "sys", 40, 1.5, 1.0, None, 0, 0.0, seed=seed)
        assert text == engine.detokenize(ids)
        assert "".join(engine.stream("hé", "sys", 40, **options)) == text  # type: ignore[arg-type]


def test_raw_prompt_and_models_without_template(engine: Engine, tmp_path: Path) -> None:
    assert engine.format_prompt("hi") == engine.tokenize(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", parse_special=True
    )
    with Engine(write_tiny(tmp_path / "bare.gguf", chat_template=None), n_ctx=64) as bare:
        assert bare.format_prompt("hi", "sys") == bare.tokenize("sys\n\nhi")
        raw = "".join(bare.stream("hi", max_tokens=5, raw=True, temperature=0))
        assert raw == bare.generate("hi", max_tokens=5, temperature=0)


def test_end_of_generation(tmp_path: Path) -> None:
    """A model that only generates EOS gives an empty answer."""

    def only_eos(writer: Any) -> None:
        tensors = writer.tensors[0]
        tensors["output_norm.weight"].tensor[:] = 1
        # All hidden states are equal, and EOS gets their squared norm as its logit.
        for name in ("token_embd.weight", "output.weight"):
            tensors[name].tensor[:] = 0
        tensors["token_embd.weight"].tensor[:, 0] = 1
        tensors["output.weight"].tensor[258, 0] = 1

    with Engine(write_tiny(tmp_path / "eos.gguf", n_layer=1, edit=only_eos), n_ctx=64) as engine:
        assert engine.generate_tokens([1, 2], 10, temperature=0) == []
        assert engine.generate("x", temperature=0) == ""


def test_generates_until_the_context_is_full(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CFFI_SAFETY", "0")
    tokens = [5] * (engine.n_ctx - 3)
    assert len(engine.generate_tokens(tokens, 100, temperature=0)) <= 3
    expected = raw_greedy(engine, tokens, 3)
    assert engine.generate_tokens(tokens, 10**9, temperature=0) == expected
    assert len(engine.generate_tokens([5] * (engine.n_ctx - 1), 9, temperature=0)) <= 1
    for n in (0, 1, 500):
        with pytest.raises(ContextOverflowError, match=str(engine.n_ctx)):
            engine.generate_tokens([5] * (engine.n_ctx + n), 1)
        with pytest.raises(ContextOverflowError, match=str(engine.n_ctx)):
            engine.steps([5] * (engine.n_ctx + n), 1)  # before the first step
    assert engine.generate_tokens(PROMPTS[1], 4, temperature=0)


@pytest.mark.parametrize("max_tokens", [0, -1, -2, 1.5, "3", 2**40])
def test_max_tokens_out_of_range(engine: Engine, max_tokens: int) -> None:
    with pytest.raises(ValidationError):
        engine.generate_tokens([1], max_tokens)
    with pytest.raises(ValidationError):
        engine.generate("x", n_predict=max_tokens)


@pytest.mark.parametrize("tokens", [[], [259], [-1], [1.0], ["a"], [None], [2**40], np.array([])])
def test_invalid_tokens(engine: Engine, tokens: list[int]) -> None:
    with pytest.raises(ValidationError):
        engine.generate_tokens(tokens, 1)


@pytest.mark.parametrize("prompt", [None, 5, "\ud800"])
def test_invalid_prompts(engine: Engine, prompt: str) -> None:
    with pytest.raises((ValidationError, TypeError)):
        engine.generate(prompt)


def test_threads_get_the_same_answers(engine: Engine) -> None:
    prompts = [[i, 2 * i, 7] for i in range(8)]
    options = {"temperature": 1.0, "seed": 3}
    serial = [engine.generate_tokens(p, 16, **options) for p in prompts]  # type: ignore[arg-type]
    answers: dict[int, list[int]] = {}

    def run(i: int) -> None:
        answers[i] = engine.generate_tokens(prompts[i], 16, **options)  # type: ignore[arg-type]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answers[i] for i in range(8)] == serial


def test_stream_left_early_frees_the_engine(engine: Engine) -> None:
    expected = engine.generate("x", max_tokens=4, temperature=0)
    engine.stream("never started")
    for _ in engine.stream("x", max_tokens=50, temperature=1.0, seed=1):
        break
    gc.collect()
    assert engine.generate("x", max_tokens=4, temperature=0) == expected
    stream = engine.stream("x", max_tokens=50, temperature=1.0, seed=1)
    next(stream)
    assert engine.generate("x", max_tokens=4, temperature=0) == expected
    stream.close()  # type: ignore[attr-defined]
    assert engine.generate("x", max_tokens=4, temperature=0) == expected


def test_another_thread_waits_for_a_stream(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_cffi.generation.call_lock._LEAST_S", 1000)
    stream = engine.stream("x", max_tokens=5, temperature=1.0, seed=1)
    first = next(stream)
    done = threading.Event()
    answers: list[str] = []

    def run() -> None:
        answers.append(engine.generate("x", max_tokens=5, temperature=1.0, seed=1))
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert not done.wait(0.1)
    text = first + "".join(stream)
    assert done.wait(30)
    thread.join()
    assert answers == [engine.detokenize(engine.tokenize(text))] == [text]


def test_close_with_a_suspended_stream(tiny_model: Path) -> None:
    engine = Engine(tiny_model, n_ctx=64, n_threads=1)
    stream = engine.stream("x", max_tokens=50, temperature=1.0, seed=1)
    next(stream)
    engine.close()
    assert engine.closed
    with pytest.raises(ValidationError, match="closed"):
        for _ in stream:
            pass
    assert engine.model.closed
    engine.close()


def test_close_then_drop_a_stream(tiny_model: Path) -> None:
    with Engine(tiny_model, n_ctx=64, n_threads=1) as engine:
        stream = engine.stream("x", max_tokens=50, temperature=1.0, seed=1)
        next(stream)
    assert engine.model.closed
    with pytest.raises(ClosedError):
        next(stream)
    del stream
    gc.collect()


def test_close_while_another_thread_holds_the_context(tiny_model: Path) -> None:
    engine = Engine(tiny_model, n_ctx=64, n_threads=1)
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with engine.idle():
            held.set()
            assert leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        assert held.wait(60)
        engine.close()
        assert not engine.model.closed
        leave.set()
        holder.result(60)
    assert engine.model.closed


def test_close_at_any_point_of_a_generation_stops_it(tiny_model: Path) -> None:
    with Model(tiny_model) as model:
        engines: list[Engine] = []
        events: list[object] = []

        def run() -> None:
            engines.append(Engine(model, n_ctx=64, n_threads=1))
            with suppress(ClosedError):
                engines[-1].generate("x", "", 2, raw=True, ignore_eos=True, callback=events.append)

        def close() -> None:
            engines[-1].close()
            events.append("closed")

        within = Engine._exclusive, Engine._begin_turn, Engine._tokens, CancelToken.hold
        for n in interrupted_everywhere(run, *within, by=close):
            assert engines[-1].context.closed, n
            assert events.pop() == "closed", n
            events.clear()
        assert len(engines) > 15


def test_calls_after_close(tiny_model: Path) -> None:
    engine = Engine(tiny_model, n_ctx=64, n_threads=1)
    engine.close()
    for call in (
        lambda: engine.generate("x"),
        lambda: engine.generate_tokens([1]),
        lambda: next(engine.stream("x")),
        lambda: engine.tokenize("x"),
        lambda: engine.detokenize([1]),
        lambda: engine.format_prompt("x"),
        engine.__enter__,
    ):
        with pytest.raises(ValidationError, match="closed"):
            call()


def test_close_from_another_thread(tiny_model: Path) -> None:
    engine = Engine(tiny_model, n_ctx=256, n_threads=1)
    errors: list[Exception] = []

    def run() -> None:
        try:
            while True:
                engine.generate_tokens([1, 2, 3], 200, temperature=1.0, seed=1)
        except ValidationError as e:
            errors.append(e)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    engine.generate_tokens([1], 3, temperature=0)
    engine.close()
    for thread in threads:
        thread.join(30)
    assert len(errors) == 3
    assert engine.model.closed


def test_failed_constructor_leaves_nothing_open(tiny_model: Path) -> None:
    with pytest.raises(LlamaError):
        Engine(tiny_model, n_ctx=2**31 - 1)


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_silent_from_load_to_exit(child: Child, tiny_model: Path, build: str) -> None:
    """Exiting with everything open and a half-read stream: code 0 and no output."""
    code = """
        import sys
        from llama_cffi import Engine
        from llama_cffi.binding import Context, Model, SamplerChain
        engines = [Engine(sys.argv[1], n_ctx=64, n_threads=2) for _ in range(2)]
        engines[0].generate("h\\u00e9", max_tokens=4)
        stream = engines[1].stream("x", max_tokens=40, temperature=1.0, seed=1)
        next(stream)
        model = Model(sys.argv[1])
        things = [Context(model, n_ctx=64), SamplerChain(model).add_greedy()]
        things.append(things)  # a cycle
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_opening_and_closing_keeps_memory_flat(child: Child, tiny_model: Path, build: str) -> None:
    code = """
        import json, random
        from llama_cffi import Engine

        rng, kept = random.Random(1), []
        for i in range(200):
            engine = Engine(sys.argv[1], n_ctx=64, n_threads=1)
            engine.generate_tokens([1, 2], 2, temperature=0)
            if i % 3 == 0:
                engine.close()
            elif i % 3 == 1:
                kept.append([engine, engine.stream("x", max_tokens=9), engine.model.vocab])
                kept[-1].append(kept[-1])
                next(kept[-1][1])
            if len(kept) > 3:
                kept.pop(rng.randrange(4))
                gc.collect()
            if i == 60:
                before = measure()
        del engine
        kept.clear()
        after = measure()
        print(json.dumps({name: after[name] - before[name] for name in after}))
    """
    result = child(MEASURE + textwrap.dedent(code), tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    growth = json.loads(result.stdout)
    # 140 engines; leaking one KV cache each would be 18 MB. glibc may keep freed buffers.
    assert growth["held"] < 2_000_000
    assert growth["rss_kb"] < 60_000
