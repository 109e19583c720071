"""RequestHandle: results, iteration, awaiting, and early ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from support.children import Child

from llama_cffi import (
    DecodeAbortedError,
    GenerationError,
    InferenceEngine,
    LlamaGrammar,
    Model,
    PromptLookup,
    QueueFullError,
    RequestState,
    ValidationError,
)
from llama_cffi.demo import model_path

SUM = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
NOTHING = dict.fromkeys(range(1536), float("-inf"))
ANY_JSON = LlamaGrammar.json_object()
ENDLESS: dict[str, Any] = {"temperature": 0, "logit_bias": {token: -100.0 for token in range(5)}}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(model_path()) as model:
        yield model


@pytest.fixture
def engine(model: Model) -> Iterator[InferenceEngine]:
    with InferenceEngine(model, 4, 512, n_threads=1) as engine:
        yield engine
        still_answers(engine)


def still_answers(engine: InferenceEngine) -> None:
    """The engine still works and has leaked nothing."""
    assert engine.generate(SUM, 8, temperature=0) == "42"
    for _ in range(500):
        if not engine.active_requests and not engine.scheduler.has_work:
            break
        time.sleep(0.01)
    assert engine.active_requests == []
    assert engine._core.handles == {}
    cache = engine.stats.cache
    assert cache.n_free + cache.n_cached == cache.n_blocks


# Results


def test_result_and_its_timeout(engine: InferenceEngine) -> None:
    handle = engine.submit(SUM, 300, **ENDLESS)
    with pytest.raises(TimeoutError, match=r"0\.001 s"):
        handle.result(0.001)
    assert not handle.done
    text = handle.result(60)
    assert (handle.text, handle.done) == (text, True)
    assert handle.result(0) == text
    assert handle.stats.finish_reason == "length"
    assert repr(handle) == f"<RequestHandle of {handle.request!r}>"
    assert handle.future.result() == text


def test_iterating_gives_the_result(engine: InferenceEngine) -> None:
    seen: list[str] = []
    for options in ({}, {"callback": seen.append}):
        handle = engine.submit(SUM, 30, **ENDLESS, stop=["never"], **options)  # type: ignore[arg-type]
        pieces = list(handle)
        assert len(pieces) > 3
        assert "".join(pieces) == handle.result()
        assert list(handle) == []  # consumed already
    assert seen == pieces


def test_late_iteration_gives_one_piece(engine: InferenceEngine) -> None:
    handle = engine.submit(SUM, 8, temperature=0)
    handle.result()
    assert list(handle) == ["42"]
    assert list(engine.submit(SUM, 8, temperature=0).steps())[-1].text is not None


def test_one_step_per_token(engine: InferenceEngine) -> None:
    steps = list(engine.steps(engine.tokenize(SUM, parse_special=True), 20, **ENDLESS))
    assert len([s for s in steps if s.token is not None]) == 20
    with_logprobs = engine.submit(SUM, 5, logprobs=2, **ENDLESS)
    with_logprobs.result()  # kept for a late iteration
    found = list(with_logprobs.steps())
    assert [len(s.logprob.top) for s in found if s.logprob] == [2] * 5


def test_leaving_an_iteration_cancels(engine: InferenceEngine) -> None:
    handle = engine.submit(SUM, 400, **ENDLESS)
    for _ in handle:
        break
    with pytest.raises(DecodeAbortedError, match="cancelled") as caught:
        handle.result(60)
    assert (caught.value.reason, caught.value.text) == ("cancel", handle.text)
    assert handle.text
    assert handle.request.state is RequestState.CANCELLED
    assert handle.stats.finish_reason == "cancel"
    dropped = engine.steps([65], 400, **ENDLESS)
    del dropped
    gc.collect()


def test_a_dropped_handle_does_not_cancel(engine: InferenceEngine) -> None:
    ended = threading.Event()
    engine.submit(SUM, 8, temperature=0).future.add_done_callback(lambda _: ended.set())
    gc.collect()
    assert ended.wait(60)


def test_slow_and_simultaneous_readers(engine: InferenceEngine) -> None:
    expected = engine.generate(SUM, 20, **ENDLESS)
    texts: list[str] = []

    def read(pause_s: float) -> None:
        pieces = []
        for piece in engine.submit(SUM, 20, **ENDLESS):
            time.sleep(pause_s)
            pieces.append(piece)
        texts.append("".join(pieces))

    threads = [threading.Thread(target=read, args=(0.01 * (i % 3),)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == [expected] * 12


def test_one_iteration_at_a_time(engine: InferenceEngine) -> None:
    handle = engine.submit(SUM, 30, **ENDLESS)
    first = iter(handle)
    next(first)
    with pytest.raises(ValidationError, match="being iterated"):
        next(iter(handle))
    assert not handle.done or handle.request.state is RequestState.FINISHED
    list(first)
    handle.result()


# Ends


@pytest.mark.parametrize("when", ["before", "first", "after"])
def test_cancel(model: Model, when: str) -> None:
    with InferenceEngine(model, 1, 512, n_threads=1, start=False) as engine:
        handle = engine.submit(SUM, 300, **ENDLESS)
        other = engine.submit(SUM, 8, temperature=0)
        if when == "first":
            engine.step()
        elif when == "after":
            while not handle.done:
                engine.step()
        threading.Thread(target=handle.cancel).start()
        time.sleep(0.05)
        handle.cancel()
        while engine.step():
            pass
        if when == "after":
            assert handle.result()
        else:
            with pytest.raises(DecodeAbortedError):
                handle.result()
        assert other.result() == "42"
        assert handle.stats.n_generated == {"before": 0, "first": 1, "after": 300}[when]


def test_cancel_from_callbacks(engine: InferenceEngine) -> None:
    handles: list[Any] = []
    seen: list[str] = []

    def stop(text: str) -> None:
        seen.append(text)
        for handle in handles:
            handle.cancel()

    other = engine.submit(SUM, 300, **ENDLESS)
    handles += [other, engine.submit(SUM, 300, callback=stop, **ENDLESS)]
    for handle in handles:
        with pytest.raises(DecodeAbortedError):
            handle.result(60)
    assert len(seen) <= 3


def test_deadlines(engine: InferenceEngine) -> None:
    late = engine.submit(SUM, 480, timeout_s=0.05, callback=lambda _: time.sleep(0.1), **ENDLESS)
    never = engine.submit(SUM, 480, timeout_s=0, **ENDLESS)
    fine = engine.submit(SUM, 8, timeout_s=60, temperature=0)
    for handle in (late, never):
        with pytest.raises(DecodeAbortedError, match="deadline") as caught:
            handle.result(60)
        assert caught.value.reason == handle.stats.finish_reason == "deadline"
    assert fine.result() == "42"
    assert never.stats.n_generated == 0


class BadError(BaseException):
    """An error that is not an Exception."""


def raises(error: BaseException, after: int = 0) -> Callable[..., None]:
    calls = []

    def function(*_: Any) -> None:
        calls.append(1)
        if len(calls) > after:
            raise error

    return function


@pytest.mark.parametrize(
    "error",
    [KeyError("mine"), SystemExit(3), BadError(), TimeoutError(), StopIteration(1)],
    ids=repr,
)
@pytest.mark.parametrize("after", [0, 3])
def test_callbacks_that_raise(engine: InferenceEngine, error: BaseException, after: int) -> None:
    others = [engine.submit(SUM, 12, temperature=0) for _ in range(3)]
    bad = engine.submit(SUM, 100, callback=raises(error, after), **ENDLESS)
    with pytest.raises(type(error)) as caught:
        bad.result(60)
    assert caught.value is error
    assert bad.request.state is RequestState.FAILED
    assert [other.result() for other in others] == ["42"] * 3


def test_a_callback_that_raises_at_the_very_end_fails(engine: InferenceEngine) -> None:
    last = engine.submit(
        "say", 20, grammar='root ::= "abc"', stop=["abcd"], callback=raises(KeyError())
    )
    with pytest.raises(KeyError):
        last.result(60)
    assert last.request.state is RequestState.FAILED
    assert engine.stats.n_failed == 1


def nan(ids: Any, scores: Any) -> Any:
    return np.full_like(scores, np.nan)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"logits_processor": [raises(ZeroDivisionError("mine"), 2)]}, ZeroDivisionError),
        ({"logits_processor": [nan]}, GenerationError),
        ({"logits_processor": [lambda ids, scores: scores[:5]]}, ValidationError),
        ({"logits_processor": [raises(BadError())], "structured": ANY_JSON}, BadError),
        ({"stopping_criteria": raises(KeyError("mine"), 1)}, KeyError),
        ({"reasoning_limit": raises(KeyError("mine"))}, KeyError),
        ({"grammar": 'root ::= "a'}, ValidationError),
        ({"grammar": 'root ::= "a" | "b"', "logit_bias": NOTHING}, GenerationError),
        ({"logit_bias": NOTHING}, GenerationError),
        ({"logit_bias": {10**6: 1.0}}, ValidationError),
    ],
)  # fmt: skip
def test_failing_requests(engine: InferenceEngine, options: Any, error: type[Exception]) -> None:
    good = [engine.submit(SUM, 12, temperature=0) for _ in range(3)]
    for _ in range(2):  # a broken chain is not reused
        bad = engine.submit(SUM, 40, temperature=0, **options)
        with pytest.raises(error):
            bad.result(60)
        assert bad.request.state is RequestState.FAILED
    assert [other.result() for other in good] == ["42"] * 3


# Deadlocks


@pytest.mark.parametrize("threaded", [True, False])
def test_a_callback_cannot_wait_for_its_own_engine(model: Model, threaded: bool) -> None:
    with InferenceEngine(model, 2, 256, n_threads=1, start=False, max_waiting=1) as engine:
        other = engine.submit(SUM, 200, **ENDLESS)
        calls: list[Callable[[], object]] = [
            lambda: engine.generate("x", 2),
            lambda: other.result(),
            lambda: next(iter(other)),
            lambda: next(other.steps()),
            lambda: engine.submit("x", 2, wait=True),
            lambda: engine.shutdown(),
            lambda: engine.close(),
            lambda: engine.run(),
            lambda: engine.step(),
        ]
        errors = []

        def callback(_: str) -> None:
            while calls:
                try:
                    calls.pop()()
                except ValidationError as error:
                    errors.append(str(error))

        handle = engine.submit(SUM, 5, callback=callback, **ENDLESS)
        if threaded:
            engine.start()
        while not handle.done:
            if not threaded:
                engine.step()
        assert len(errors) == 9
        other.cancel()


# Shutdown


def test_shutdown_drains_or_not(model: Model) -> None:
    for drain in (True, False):
        engine = InferenceEngine(model, 2, 512, n_threads=1)
        handles = [engine.submit(SUM, 60, **ENDLESS) for _ in range(8)]
        engine.shutdown(drain)
        assert all(handle.done for handle in handles)
        if drain:
            assert [handle.result() for handle in handles]
        else:
            with pytest.raises(DecodeAbortedError, match="closed") as caught:
                handles[-1].result()
            assert caught.value.reason == "close"
        with pytest.raises(ValidationError, match="closed"):
            engine.submit("x")
        with pytest.raises(ValidationError, match="closed"):
            engine.start()
        assert engine.context.closed
        assert not model.closed
        engine.shutdown(False)
        assert not engine.step()
        handles[0].cancel()
        assert engine.stats.n_running == 0


def test_shutdown_while_20_threads_submit(model: Model) -> None:
    engine = InferenceEngine(model, 4, 256, n_threads=1, max_waiting=10)
    ends: list[str] = []

    def work(i: int) -> None:
        try:
            while True:
                engine.submit(SUM, 4, temperature=0, wait=i % 2 == 0).result(60)
        except (ValidationError, DecodeAbortedError, QueueFullError) as error:
            ends.append(type(error).__name__)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    closers = [threading.Thread(target=engine.shutdown, args=(drain,)) for drain in (True, False)]
    for thread in closers:
        thread.start()
    for thread in [*threads, *closers]:
        thread.join(60)
        assert not thread.is_alive()
    assert len(ends) == 20
    assert engine.context.closed


def test_run_in_a_thread_of_the_caller(model: Model) -> None:
    engine = InferenceEngine(model, 2, 256, n_threads=1, start=False)
    thread = threading.Thread(target=engine.run)
    thread.start()
    assert engine.generate(SUM, 8, temperature=0) == "42"
    for call in (engine.step, engine.run):
        with pytest.raises(ValidationError, match="already running"):
            call()
    engine.start()  # nothing happens
    engine.shutdown()
    thread.join(60)
    assert not thread.is_alive()


def test_errors_outside_of_requests_end_the_engine(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    for threaded in (True, False):
        engine = InferenceEngine(model, 2, 256, n_threads=1, start=False)

        def schedule() -> None:
            raise MemoryError("no more")

        handles = [engine.submit(SUM, 50, **ENDLESS) for _ in range(4)]
        engine.step()
        engine.scheduler.schedule = schedule  # type: ignore[assignment, method-assign]
        if threaded:
            engine.start()
        else:
            with pytest.raises(MemoryError):
                engine.step()
        for handle in handles:
            with pytest.raises(GenerationError, match=r"stopped: MemoryError\('no more'\)"):
                handle.result(60)
            assert handle.request.state is RequestState.FAILED
        with pytest.raises(GenerationError, match="open a new one") as caught:
            engine.submit(SUM)
        assert isinstance(caught.value.__cause__, MemoryError)
        if not threaded:
            with pytest.raises(GenerationError):
                engine.step()
        engine.shutdown()
        assert engine.context.closed
        assert engine.stats.n_failed == 4
    assert "the engine has stopped" in caplog.text


def test_a_failing_drafter_only_ends_speculative_decoding(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(PromptLookup):
        closed = False

        def draft(self, requests: Any, lengths: Any) -> Any:
            raise ZeroDivisionError("mine")

        def close(self) -> None:
            self.closed = True

    drafter = Broken()
    with InferenceEngine(model, 2, 256, n_threads=1, draft=drafter) as engine:
        assert engine.generate(SUM, 8, temperature=0) == "42"
        assert engine.generate(SUM, 8, temperature=0) == "42"
    assert drafter.closed
    assert caplog.text.count("continues without") == 1


def test_exit_while_the_engine_runs(child: Child) -> None:
    code = f"""
        from llama_cffi import InferenceEngine
        from llama_cffi.demo import model_path
        engine = InferenceEngine(model_path(), 4, 512, n_threads=1)
        options = {{"callback": len, "logit_bias": {{2: -100}}}}
        handles = [engine.submit({SUM!r}, 400, **options) for _ in range(8)]
        next(iter(handles[0]))
    """
    result = child(code)
    assert (result.returncode, result.stderr) == (0, "")


# asyncio


def test_asyncio(engine: InferenceEngine) -> None:
    expected = engine.generate(SUM, 20, **ENDLESS)

    async def stream() -> str:
        return "".join([piece async for piece in engine.submit(SUM, 20, **ENDLESS)])

    async def whole() -> str:
        return await engine.submit(SUM, 20, **ENDLESS)

    async def main() -> list[str]:
        return await asyncio.gather(*(stream() if i % 2 else whole() for i in range(100)))

    assert asyncio.run(main()) == [expected] * 100


def test_tasks_that_are_cancelled(engine: InferenceEngine) -> None:
    async def main() -> list[Any]:
        handles = [engine.submit(SUM, 450, **ENDLESS) for _ in range(4)]

        async def stream(handle: Any) -> None:
            async for _ in handle:
                pass

        async def whole(handle: Any) -> None:
            await handle

        tasks = [
            asyncio.create_task((stream if i % 2 else whole)(h)) for i, h in enumerate(handles)
        ]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(e, asyncio.CancelledError)
            for e in await asyncio.gather(*tasks, return_exceptions=True)
        )
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.submit(SUM, 450, **ENDLESS), 0.02)
        left = engine.submit(SUM, 450, **ENDLESS)
        async for _ in left:
            break
        return [*handles, left]

    for handle in asyncio.run(main()):
        with pytest.raises(DecodeAbortedError):
            handle.result(60)


def test_errors_in_asyncio(engine: InferenceEngine) -> None:
    async def main() -> None:
        bad: dict[str, Any] = {"callback": raises(KeyError("mine"), 2), **ENDLESS}
        with pytest.raises(KeyError):
            await engine.submit(SUM, 50, **bad)
        again = engine.submit(SUM, 50, **{**bad, "callback": raises(KeyError("mine"), 2)})
        pieces: list[str] = []

        async def read() -> None:
            async for piece in again:
                pieces.append(piece)

        with pytest.raises(KeyError):
            await read()
        assert pieces

    asyncio.run(main())


def test_an_event_loop_closed_early(child: Child) -> None:
    code = f"""
        import asyncio, os, sys
        from llama_cffi import InferenceEngine
        from llama_cffi.demo import model_path
        engine = InferenceEngine(model_path(), 4, 512, n_threads=1)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
        handles = [engine.submit({SUM!r}, 300, logit_bias={{2: -100}}) for _ in range(4)]
        async def stream(handle):
            async for piece in handle:
                pass
        async def whole(handle):
            await handle
        async def main():
            tasks = [loop.create_task(f(h)) for f in (stream, whole) for h in handles[:2]]
            await asyncio.sleep(0.1)
            return tasks
        tasks = loop.run_until_complete(main())
        loop.close()
        for handle in handles:
            try:
                handle.result(60)
            except Exception as error:
                print(repr(error))
        print(engine.generate({SUM!r}, 8, temperature=0))
        engine.shutdown()
        sys.stdout.flush()
        os._exit(0)  # otherwise asyncio complains about pending tasks
    """
    result = child(code)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "42\n")


def test_cancel_scopes(engine: InferenceEngine) -> None:
    from llama_cffi.generation.cancellation import CancelScope

    scope = CancelScope()
    with scope:
        handle = engine.submit(SUM, 480, **ENDLESS)
    scope.cancel()
    with suppress(DecodeAbortedError):
        handle.result(60)
    assert handle.request.state is RequestState.CANCELLED
