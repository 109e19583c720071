"""InferenceEngine: pause and resume, and requests found by their ids."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_cffi import (
    CancelledError,
    ClosedError,
    DeadlineExceededError,
    InferenceEngine,
    Model,
    QueueFullError,
    ValidationError,
)

PROMPT = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
ENDLESS: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(demo_f32: Path) -> Iterator[Model]:
    with Model(demo_f32) as model:
        yield model


@pytest.fixture
def engine(model: Model) -> Iterator[InferenceEngine]:
    with InferenceEngine(model, 4, 256, n_threads=1) as engine:
        yield engine


def test_a_paused_engine_takes_requests_and_answers_them_later(engine: InferenceEngine) -> None:
    engine.pause()
    assert engine.paused
    handles = [engine.submit(PROMPT, 8, temperature=0) for _ in range(6)]
    with pytest.raises(TimeoutError):
        handles[0].result(timeout_s=0.1)
    assert [handle.text for handle in handles] == [""] * 6
    assert len(engine.active_requests) == 6
    engine.resume()
    assert not engine.paused
    assert [handle.result() for handle in handles] == ["42"] * 6


def test_a_running_answer_is_the_same_with_pauses(engine: InferenceEngine) -> None:
    expected = engine.generate(PROMPT, 40, **ENDLESS)
    halted = threading.Event()

    def halt(piece: str) -> None:
        if len(handle.request.generated_tokens) % 10 == 0:
            engine.pause()  # from a callback, too
            halted.set()

    started = threading.Event()

    def first(piece: str) -> None:
        assert started.wait(10)
        halt(piece)

    handle = engine.submit(PROMPT, 40, callback=first, **ENDLESS)
    started.set()
    n_pauses = 0
    while not handle.done:
        if halted.wait(0.02):
            halted.clear()
            before = handle.request.n_generated
            assert engine.paused
            with pytest.raises(TimeoutError):
                handle.result(timeout_s=0.05)
            assert handle.request.n_generated == before
            n_pauses += 1
            engine.resume()
    assert handle.result() == expected
    assert n_pauses >= 3


def test_cancellations_and_deadlines_count_in_a_pause(engine: InferenceEngine) -> None:
    running = engine.submit(PROMPT, 200, **ENDLESS)
    while not running.request.n_generated:
        pass
    engine.pause()
    waiting = engine.submit(PROMPT, 8, temperature=0)
    late = engine.submit(PROMPT, 8, temperature=0, timeout_s=0.05)
    running.cancel()
    with pytest.raises(CancelledError):
        running.result(timeout_s=10)
    with pytest.raises(DeadlineExceededError):
        late.result(timeout_s=10)
    assert not waiting.done
    engine.resume()
    assert waiting.result() == "42"


def test_steps_of_a_paused_engine_do_nothing(model: Model) -> None:
    with InferenceEngine(model, 2, 256, n_threads=1, start=False) as engine:
        handle = engine.submit(PROMPT, 8, temperature=0)
        engine.pause()
        assert not engine.step()
        assert handle.request.num_computed_tokens == 0
        engine.resume()
        while engine.step():
            pass
        assert handle.result() == "42"


@pytest.mark.parametrize("drain", [True, False])
def test_a_paused_engine_can_be_shut_down(model: Model, drain: bool) -> None:
    engine = InferenceEngine(model, 2, 256, n_threads=1)
    engine.pause()
    handles = [engine.submit(PROMPT, 8, temperature=0) for _ in range(3)]
    engine.shutdown(drain=drain)
    if drain:
        assert [handle.result() for handle in handles] == ["42"] * 3
    else:
        for handle in handles:
            with pytest.raises(CancelledError):
                handle.result()
    engine.pause()
    assert not engine.paused


def test_a_pause_does_not_block_an_event_loop(engine: InferenceEngine) -> None:
    async def run() -> str:
        engine.pause()
        handle = engine.submit(PROMPT, 8, temperature=0)
        asyncio.get_running_loop().call_later(0.05, engine.resume)
        return await handle

    assert asyncio.run(run()) == "42"


def test_ids_name_requests(engine: InferenceEngine) -> None:
    handle = engine.submit(PROMPT, 8, temperature=0, id="user-1/7")
    assert handle.request.id == "user-1/7"
    assert handle.result() == "42"
    assert engine.generate(PROMPT, 8, temperature=0, id="user-1/7") == "42"  # free again
    numbered = engine.submit(PROMPT, 8, temperature=0)
    assert numbered.request.id == f"request-{numbered.request.number}"
    engine.pause()
    first = engine.submit(PROMPT, 200, id="a", **ENDLESS)
    other = engine.submit(PROMPT, 8, temperature=0, id="b")
    with pytest.raises(ValidationError, match="'a' has not ended"):
        engine.submit(PROMPT, id="a")
    engine.cancel("a")
    engine.cancel("a")
    engine.cancel("unknown")
    with pytest.raises(CancelledError, match="a has ended"):
        first.result(timeout_s=10)
    engine.resume()
    assert other.result() == "42"
    for wrong in ("", 7, b"a"):
        with pytest.raises(ValidationError, match="id="):
            engine.submit(PROMPT, id=wrong)  # type: ignore[arg-type]


def test_an_id_is_free_after_a_refused_submit(model: Model) -> None:
    with InferenceEngine(model, 1, 256, n_threads=1, max_waiting=1, start=False) as engine:
        handles = [engine.submit(PROMPT, 8, temperature=0) for _ in range(2)]
        for _ in range(2):
            with pytest.raises(QueueFullError):
                engine.submit(PROMPT, 8, id="x")
        while engine.step():
            pass
        assert [handle.result() for handle in handles] == ["42"] * 2
        assert engine.submit(PROMPT, 8, temperature=0, id="x").request.id == "x"
    with pytest.raises(ClosedError):
        engine.submit(PROMPT, id="x")


def test_of_many_threads_with_one_id_one_gets_it(model: Model) -> None:
    taken: list[str] = []
    with InferenceEngine(model, 2, 256, n_threads=1) as engine:
        engine.pause()

        def submit() -> None:
            try:
                engine.submit(PROMPT, 8, temperature=0, id="same")
                taken.append("same")
            except ValidationError:
                pass

        threads = [threading.Thread(target=submit) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert taken == ["same"]
        engine.resume()
