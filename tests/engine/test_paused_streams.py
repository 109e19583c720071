"""Streams that are kept alive: newer calls take the context, and the streams can be continued."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
from support.answers import exact
from support.injection import interrupted_everywhere

import llama_cffi.llama_cpp as llama_cpp
from llama_cffi import (
    CancelledError,
    ClosedError,
    DeadlineExceededError,
    Engine,
    Llama,
    ValidationError,
)
from llama_cffi.demo import model_path
from llama_cffi.engine.engine import _Run
from llama_cffi.generation import call_lock as lock
from llama_cffi.generation.call_lock import Turn

BEGIN_TURN = Engine._begin_turn
NEVER_ENDS = {256: -1e5, 258: -1e5}
# Each needs something else of the state of its stream.
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seed": {"temperature": 1.5, "seed": 3, "top_k": 0},
    "penalty": {"temperature": 1.2, "seed": 4, "repeat_penalty": 1.4, "penalty_last_n": 64},
    "grammar": {"grammar": 'root ::= ("ab" | "cd" | [0-9])+', "seed": 5},
    "forced": {"grammar": 'root ::= "one two three, four five six"'},
    "mirostat": {"mirostat_mode": 2, "seed": 6},
    "stop": {"temperature": 1.5, "seed": 7, "stop": ["never this", "e"]},
    "logprobs": {"temperature": 1.0, "seed": 8, "logprobs": 2},
}


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=256, n_threads=1, **exact()) as engine:
        yield engine


def start(engine: Engine, kind: str, n: int = 24, prompt: str = "once upon") -> Any:
    options = {"logit_bias": NEVER_ENDS, **KINDS[kind]}
    return engine.stream(prompt, "", n, raw=True, **options)


def whole(engine: Engine, kind: str, n: int = 24, prompt: str = "once upon") -> str:
    return "".join(start(engine, kind, n, prompt))


def refused(engine: Engine) -> None:
    with pytest.raises(ValidationError):
        engine.generate_tokens([])


# What a thread does with an engine while its stream is paused.
BETWEEN: dict[str, Callable[[Engine], object]] = {
    "another prompt": lambda e: e.generate("zzz", max_tokens=3, raw=True, temperature=0),
    "the same prompt": lambda e: e.generate("once upon", max_tokens=5, raw=True, temperature=0),
    "a stream, left": lambda e: next(start(e, "seed", prompt="another")),
    "a stream, whole": lambda e: whole(e, "penalty", 4, "a third"),
    "cleared": lambda e: e.cache_clear(),
    "nothing but the lock": lambda e: e.idle().__enter__(),
    "an error": lambda e: refused(e),
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_continues_after_a_newer_call(engine: Engine, kind: str, between: str) -> None:
    expected = whole(engine, kind)
    kept: list[object] = []
    stream, pieces = start(engine, kind), []
    for i, piece in enumerate(stream):
        pieces.append(piece)
        if i in (0, 1, 5):
            kept.append(BETWEEN[between](engine))
    assert "".join(pieces) == expected
    assert whole(engine, kind) == expected


def test_the_newer_call_gives_its_own_answer(engine: Engine) -> None:
    for kind in KINDS:
        expected = whole(engine, kind, prompt="second")
        first = start(engine, "seed")
        next(first)
        assert whole(engine, kind, prompt="second") == expected
        assert engine.stats.n_generated > 0


def test_streams_in_turn(engine: Engine) -> None:
    """One thread reads several streams alternately, in any order."""
    rng = random.Random(1)
    expected = {kind: whole(engine, kind, 12, kind) for kind in KINDS}
    streams = {kind: start(engine, kind, 12, kind) for kind in KINDS}
    found = dict.fromkeys(KINDS, "")
    while streams:
        kind = rng.choice([*streams])
        try:
            found[kind] += next(streams[kind])
        except StopIteration:
            del streams[kind]
    assert found == expected


def test_a_stream_has_its_own_statistics(engine: Engine) -> None:
    stream = engine.steps(engine.tokenize("once"), 6, temperature=0, logit_bias=NEVER_ENDS)
    next(stream)
    engine.generate("x", max_tokens=2, temperature=0)
    newer = engine.stats
    found: list[Any] = []

    def rest() -> Iterator[object]:
        found.append((yield from stream))

    assert list(rest())
    assert found == [engine.stats]
    assert (engine.stats.n_generated, engine.stats.finish_reason) == (6, "length")
    assert newer.n_generated <= 2


def test_a_shifted_stream_continues(tiny_model: Path) -> None:
    with Engine(tiny_model, n_ctx=64, n_threads=1, context_policy="shift", safety=0) as engine:
        n = 3 * engine.n_ctx
        stream = start(engine, "seed", n)
        pieces = []
        for i, piece in enumerate(stream):
            pieces.append(piece)
            if i % 40 == 39:
                engine.generate("zzz", max_tokens=3)
        assert engine.stats.n_generated == n
        assert engine.stats.finish_reason == "length"


def test_an_error_that_keeps_a_stream_alive_does_not_block(engine: Engine) -> None:
    """As in a notebook, where the last traceback stays."""
    expected = whole(engine, "seed")

    def cell() -> None:
        for _ in start(engine, "seed"):
            raise LookupError

    with pytest.raises(LookupError) as kept:
        cell()
    assert whole(engine, "seed") == expected
    assert kept.traceback


def test_dropped_streams_leave_nothing_behind(engine: Engine) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            first = start(engine, "seed")
            next(first)
            second = start(engine, "grammar")
            next(second)  # takes the context from the first
            del first
            assert not engine._lock.paused or engine._lock.paused[0] is not None
            del second
            assert not engine._lock.lock.locked()
            assert engine._lock.paused == []
    finally:
        gc.enable()
    assert whole(engine, "seed") == whole(engine, "seed")


def test_a_late_deadline_does_not_stop_the_newer_call(engine: Engine) -> None:
    waits = threading.Event()
    stream = engine.stream("x", "", 200, timeout_s=0.2, logit_bias=NEVER_ENDS)
    text = next(stream)

    def wait(_ids: Any, _scores: Any) -> None:
        waits.wait(0.06)

    # 10 tokens take longer than the deadline of the paused stream.
    found = engine.generate_tokens([1, 2], 10, logits_processor=wait, logit_bias=NEVER_ENDS)
    assert len(found) == 10
    with pytest.raises(DeadlineExceededError) as e:
        next(stream)
    assert e.value.text.startswith(text)  # and the start of a character that was not yielded


def test_cancel_ends_the_newer_call_only(engine: Engine) -> None:
    expected = whole(engine, "seed")
    first, second = start(engine, "seed"), start(engine, "penalty")
    text = next(first) + next(first)
    next(second)
    engine.cancel()
    with pytest.raises(CancelledError):
        list(second)
    assert text + "".join(first) == expected


def test_close_frees_the_memory_at_a_paused_stream(tiny_model: Path) -> None:
    engine = Engine(tiny_model, n_ctx=64, n_threads=1)
    first, second = start(engine, "seed"), start(engine, "grammar")
    next(first)
    next(second)
    engine.close()
    assert engine.model.closed
    assert engine.context.closed
    for stream in (first, second):
        with pytest.raises(ClosedError):
            next(stream)


def test_another_thread_takes_the_context_of_a_stream_that_nobody_reads(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_LEAST_S", 0.02)
    expected = whole(engine, "seed")
    stream = start(engine, "seed")
    text = next(stream)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(whole, engine, "seed").result(60) == expected
    assert text + "".join(stream) == expected


def test_a_stream_that_is_read_keeps_the_context(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_LEAST_S", 1000)
    stream = start(engine, "seed", 20)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(whole, engine, "grammar")
        for _ in stream:
            assert not answer.done()
        assert answer.result(60)


@pytest.mark.parametrize("least_s", [0.0, 0.02])
def test_streams_move_between_threads(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, least_s: float
) -> None:
    """As the threads of a web server drive the generators of its clients, some of whom leave."""
    monkeypatch.setattr(lock, "_LEAST_S", least_s)
    with (
        Engine(tiny_model, n_ctx=128, n_threads=1, **exact()) as engine,
        ThreadPoolExecutor(4) as threads,
        ThreadPoolExecutor(10) as clients,
    ):
        kinds = [*KINDS]
        expected = {kind: whole(engine, kind, 10) for kind in kinds}

        def read(i: int) -> str:
            stream, found = start(engine, kinds[i % len(kinds)], 10), ""
            for n in range(100):
                if i % 5 == 4 and n == i % 3:
                    return ""  # leaves
                piece = threads.submit(next, stream, None).result(60)
                if piece is None:
                    return found
                found += piece
            raise AssertionError

        answers = [*clients.map(read, range(10))]
        for i, answer in enumerate(answers):
            assert answer == ("" if i % 5 == 4 else expected[kinds[i % len(kinds)]])
        gc.collect()
        assert whole(engine, "greedy", 10) == expected["greedy"]
        assert not engine._lock.lock.locked()


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every stream compute its whole answer when its first piece is read."""
    monkeypatch.setattr(Turn, "computes_ahead", True)


def test_a_pool_with_fewer_threads_than_streams_does_not_thrash(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the threads that could continue a stream wait for it themselves."""
    monkeypatch.setattr(lock, "_LEAST_S", 0.02)
    monkeypatch.setattr(lock, "_AHEAD", 1000)
    kinds, n = [*KINDS], 20
    with (
        Engine(tiny_model, n_ctx=128, n_threads=1, **exact()) as engine,
        ThreadPoolExecutor(2) as threads,
        ThreadPoolExecutor(8) as clients,
    ):
        expected = {kind: whole(engine, kind, n) for kind in kinds}
        turns: list[object] = []
        monkeypatch.setattr(Engine, "_begin_turn", partialmethod(counted, turns))

        def read(kind: str) -> str:
            stream = start(engine, kind, n)
            pieces = iter(lambda: threads.submit(next, stream, None).result(60), None)
            return "".join(pieces)

        assert [*clients.map(read, kinds)] == [*expected.values()]
    assert len(turns) < 6 * len(kinds)  # and not about one per token


def counted(engine: Engine, turns: list[object], run: _Run) -> None:
    turns.append(run)
    BEGIN_TURN(engine, run)


@pytest.mark.usefixtures("ahead")
def test_computing_ahead_changes_no_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {kind: [*start(engine, kind)] for kind in KINDS}
    steps = engine.steps(engine.tokenize("once"), 9, temperature=0, logit_bias=NEVER_ENDS)
    first = next(steps)
    assert not engine._lock.lock.locked()
    ahead = [first, *steps]
    assert engine.stats.n_generated == 9
    monkeypatch.undo()
    assert found == {kind: [*start(engine, kind)] for kind in KINDS}
    tokens = engine.tokenize("once")
    assert ahead == [*engine.steps(tokens, 9, temperature=0, logit_bias=NEVER_ENDS)]


@pytest.mark.usefixtures("ahead")
def test_what_was_computed_ahead_comes_before_its_error(engine: Engine) -> None:
    def fail(ids: Any, _scores: Any) -> None:
        if len(ids) > 5:
            raise LookupError

    def stop(ids: Any, _scores: Any) -> None:
        if len(ids) > 5:
            engine.cancel()

    for function, error in ((fail, LookupError), (stop, CancelledError)):
        stream = engine.steps([1], 20, logit_bias=NEVER_ENDS, logits_processor=function)
        found: list[Any] = []
        with pytest.raises(error) as raised:
            found.extend(stream)  # keeps what comes before the error
        assert len(found) in (5, 6)
        assert not engine._lock.lock.locked()
        if isinstance(raised.value, CancelledError):
            assert raised.value.text.startswith("".join(step.text for step in found))
    assert whole(engine, "seed") == whole(engine, "seed")


@pytest.mark.usefixtures("ahead")
def test_a_stream_computed_ahead_may_be_left(engine: Engine) -> None:
    expected = whole(engine, "seed")
    for n in range(3):
        stream = start(engine, "seed")
        for _ in range(n):
            next(stream)
        other = whole(engine, "seed")
        stream.close()
        assert other == expected
        assert not engine._lock.lock.locked()


def test_ctrl_c_at_any_point_of_a_stream_leaves_the_engine_usable(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_LEAST_S", 0.001)
    engine = Engine(tiny_model, n_ctx=64, n_threads=1, **exact())
    expected = whole(engine, "greedy", 4)

    def run() -> None:
        first = start(engine, "greedy", 4)
        next(first)
        second = start(engine, "seed", 4)
        next(second)
        list(first)
        second.close()

    turn = Turn.pause, Turn.release, Turn.reclaim, Turn.wait, Turn._wait
    functions = (*turn, _Run.__enter__, _Run.__exit__, _Run.paused_at, _Run.end)
    for waits in (False, True):
        n = 0
        engine._lock.waiting += [engine._lock.waiter()] * waits  # as if another thread did
        for n in interrupted_everywhere(run, *functions, Engine._begin_turn):  # noqa: B007
            engine._lock.waiting[waits:] = []
            assert whole(engine, "greedy", 4) == expected
            assert not engine._lock.lock.locked()
        assert n > 20
        engine._lock.waiting.clear()
    engine.close()


def test_the_other_classes_follow_the_same_rule() -> None:
    ask = [{"role": "user", "content": "What is 17 + 25?"}]
    path = str(model_path())
    for llm in (
        Llama(path, n_ctx=256, n_threads=1),
        llama_cpp.Llama(path, n_ctx=256, n_threads=1, verbose=False),
    ):
        options: Any = {"temperature": 0, "max_tokens": 20}
        expected = llm.create_chat_completion(ask, **options)["choices"][0]["message"]["content"]
        story = llm.create_completion("Once", **options)["choices"][0]["text"]
        streams = [
            llm.create_chat_completion(ask, stream=True, **options),
            llm.create_completion("Once", stream=True, **options),
        ]
        chunks: Any = [[next(stream), next(stream)] for stream in streams]
        assert llm.create_completion("Once", **options)["choices"][0]["text"] == story
        if isinstance(llm, llama_cpp.Llama):
            llm.eval(llm.tokenize(b"17"))
        for stream, found in zip(streams, chunks, strict=True):
            found += stream
        deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[0]]
        assert "".join(deltas) == expected
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks[1]) == story
        llm.close()


def test_a_dropped_stream_of_any_kind_frees_the_engine() -> None:
    """Without the garbage collector."""
    ask = [{"role": "user", "content": "Tell me a story."}]
    gc.collect()
    gc.disable()
    try:
        for kind in (Llama, llama_cpp.Llama):
            llm: Any = kind(str(model_path()), n_ctx=256, n_threads=1)
            for make in (
                partial(llm.create_chat_completion, ask),
                partial(llm.create_completion, "Once"),
                partial(llm.create_completion, "Once", n=2),
                partial(llm.generate, "Once", 30),
            ):
                stream = make(stream=True)
                next(stream)
                next(stream)
                assert llm.engine._lock.lock.locked()
                del stream
                assert not llm.engine._lock.lock.locked()
            llm.close()
    finally:
        gc.enable()
