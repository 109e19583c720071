"""Llama from threads and event loops: order, cancellation, closing, errors in callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.children import Child

from llama_cffi import ContextOverflowError, Llama, SamplingParams, ValidationError
from llama_cffi.api.aio import stream_async, whole_async
from llama_cffi.api.chat_completions import ChatPreparer
from llama_cffi.demo import model_path

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
STORY = (
    "<|im_start|>user\nTell me a story about a fox named Milo.<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(
        model_path(),
        n_ctx=1024,
        n_threads=1,
        embeddings=True,
        sampling=SamplingParams(temperature=0),
    ) as llm:
        yield llm


@pytest.fixture
def endless(llm: Llama) -> dict[str, Any]:
    """Return options with which an answer takes seconds."""
    bias = dict.fromkeys(llm.model.vocab.eog_tokens, -float("inf"))
    return {"logit_bias": bias, "max_tokens": 100_000, "context_policy": "shift"}


def test_each_call_has_a_thread() -> None:
    async def main() -> None:
        assert await whole_async(lambda: 5) == 5
        assert [i async for i in stream_async(lambda: range(3))] == [0, 1, 2]
        with pytest.raises(KeyError):
            await whole_async(lambda: {}["x"])

        def fails() -> Iterator[int]:
            yield 1
            raise KeyError("mine")

        stream = stream_async(fails)
        assert await anext(stream) == 1
        with pytest.raises(KeyError, match="mine"):
            await anext(stream)
        # More waiting calls than threads in the loop's executor.
        gate = threading.Event()
        waiting = [asyncio.ensure_future(whole_async(gate.wait)) for _ in range(40)]
        assert await whole_async(lambda: gate.set() or "free") == "free"
        assert await asyncio.gather(*waiting) == [True] * 40
        started: list[int] = []
        stream_async(lambda: started)  # never started

    asyncio.run(main())


def test_twenty_tasks_get_their_own_answers(llm: Llama) -> None:
    async def stream(i: int) -> str:
        pieces = await llm.generate_async(STORY, 16, temperature=1.0, seed=i, stream=True)
        return "".join([piece async for piece in pieces])

    async def main() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(*map(stream, range(20))), 60)

    serial = [llm.generate(STORY, 16, temperature=1.0, seed=i) for i in range(20)]
    assert asyncio.run(main()) == serial
    assert len(set(serial)) > 5


def test_four_threads_get_their_own_answers(llm: Llama) -> None:
    serial = [llm(STORY, max_tokens=12, seed=i)["choices"] for i in range(12)]
    found: dict[int, Any] = {}

    def work(first: int) -> None:
        for i in range(first, 12, 4):
            found[i] = llm(STORY, max_tokens=12, seed=i)["choices"]
            assert llm.embed("x")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(12)] == serial


def test_completions_and_embeddings(llm: Llama) -> None:
    async def main() -> None:
        whole = await llm.create_completion_async(STORY, max_tokens=12, temperature=0)
        expected = llm(STORY, max_tokens=12, temperature=0)
        assert whole["choices"] == expected["choices"]
        chunks = await llm.create_completion_async(STORY, max_tokens=12, temperature=0, stream=True)
        texts = [chunk["choices"][0]["text"] async for chunk in chunks]
        assert len(texts) > 3
        assert "".join(texts) == whole["choices"][0]["text"]
        one, several = await asyncio.gather(
            llm.create_embedding_async("a"), llm.create_embedding_async(["a", "b"])
        )
        expected = pytest.approx(await llm.embed_async("a"), abs=0.01)
        assert one["data"][0]["embedding"] == expected
        assert several["data"][0]["embedding"] == expected
        assert several["data"][1]["embedding"] != expected
        parsed = await asyncio.to_thread(llm.parse, "What is 17 + 25?", int, temperature=0)
        assert parsed == 42

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_await_raises_errors_of_arguments(llm: Llama, stream: bool) -> None:
    async def main() -> None:
        for call in (
            llm.generate_async("x", 0, stream=stream),
            llm.create_completion_async("x", max_tokens=0, stream=stream),
            llm.create_chat_completion_async(SUM, max_tokens=0, stream=stream),
        ):
            with pytest.raises(ValidationError):
                await call
        with pytest.raises(ValidationError):
            await llm.create_embedding_async(5)

    asyncio.run(main())


def test_cancelled_task_releases_the_engine(llm: Llama, endless: dict[str, Any]) -> None:
    async def consume() -> None:
        async for _ in await llm.create_completion_async(STORY, stream=True, **endless):
            pass

    async def main() -> None:
        for call in (
            llm.generate_async(STORY, **endless),
            llm.create_completion_async(STORY, **endless),
            consume(),
        ):
            running = asyncio.ensure_future(call)
            # These wait for the engine and are cancelled while waiting.
            waiting = [
                asyncio.ensure_future(llm.create_completion_async(STORY, **endless))
                for _ in range(5)
            ]
            await asyncio.sleep(0.1)
            assert not running.done()
            for task in [*waiting, running]:
                task.cancel()
            results = await asyncio.gather(running, *waiting, return_exceptions=True)
            assert all(isinstance(r, asyncio.CancelledError) for r in results)
            answer = await asyncio.wait_for(
                llm.create_chat_completion_async(SUM, temperature=0), 30
            )
            assert answer["choices"][0]["message"]["content"] == "42"

    asyncio.run(main())


def test_cancelling_one_task_does_not_affect_others(llm: Llama, endless: dict[str, Any]) -> None:
    async def main() -> None:
        good = [
            asyncio.ensure_future(llm.create_chat_completion_async(SUM, temperature=0))
            for _ in range(3)
        ]
        bad = asyncio.ensure_future(llm.generate_async(STORY, **endless))
        good += [
            asyncio.ensure_future(llm.create_chat_completion_async(SUM, temperature=0))
            for _ in range(3)
        ]
        await asyncio.sleep(0.1)
        bad.cancel()
        answers = await asyncio.wait_for(asyncio.gather(*good), 30)
        assert {a["choices"][0]["message"]["content"] for a in answers} == {"42"}

    asyncio.run(main())


def test_leaving_a_stream_ends_its_generation(llm: Llama, endless: dict[str, Any]) -> None:
    async def main() -> None:
        async for _ in await llm.generate_async(STORY, stream=True, **endless):
            break
        gc.collect()
        assert await asyncio.wait_for(llm.generate_async(STORY, 3), 30)

    asyncio.run(main())


def test_timeout_of_asyncio(llm: Llama, endless: dict[str, Any]) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(llm.generate_async(STORY, **endless), 0.1)
        assert await llm.generate_async(STORY, 3)

    asyncio.run(main())


def test_nested_streams(llm: Llama) -> None:
    """The first stream runs ahead in its thread, so the second does not wait for its reader."""

    async def main() -> None:
        async for _ in await llm.generate_async(STORY, 8, stream=True):
            assert await asyncio.wait_for(llm.generate_async(STORY, 2), 30)

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_errors_in_callbacks_reach_the_caller(llm: Llama, stream: bool) -> None:
    class Oops(BaseException):
        pass

    def fails(ids: Any, scores: Any) -> Any:
        if len(ids) > len(llm.tokenize(STORY, special=True)) + 1:
            raise Oops
        return None

    for options in ({"logits_processor": fails}, {"stopping_criteria": fails}):

        def call(options: dict[str, Any] = options) -> Any:
            answer = llm(STORY, max_tokens=8, stream=stream, **options)
            return list(answer) if stream else answer

        with pytest.raises(Oops):
            call()
        with pytest.raises(Oops):
            asyncio.run(whole_async(call))
        answer = llm.create_chat_completion(SUM, temperature=0)
        assert answer["choices"][0]["message"]["content"] == "42"


def test_close_while_other_threads_generate(endless: dict[str, Any]) -> None:
    llm = Llama(model_path(), n_ctx=256, n_threads=1, embeddings=True)
    errors: list[Exception] = []

    def work(call: Any) -> None:
        try:
            while True:
                call()
        except ValidationError as e:
            errors.append(e)

    calls = [
        lambda: llm.generate(STORY, **endless),
        lambda: list(llm(STORY, stream=True, **endless)),
        lambda: asyncio.run(llm.generate_async(STORY, **endless)),
        lambda: llm.embed(["some text"] * 20),
        lambda: llm.tokenize("some text"),
        llm.get_state,
    ]
    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    llm.close()
    for thread in threads:
        thread.join(30)
    assert len(errors) == len(calls)
    assert all("closed" in str(e) for e in errors), errors
    assert llm.model.closed
    with pytest.raises(ValidationError, match="closed"):
        llm.embed("x")


def test_exit_during_a_generation(child: Child) -> None:
    """A task that still runs at the end of the program is cancelled, without a crash."""
    done = child(
        """
        import asyncio, sys
        from llama_cffi import Llama
        llm = Llama(sys.argv[1], n_ctx=256, n_threads=1)
        async def main():
            asyncio.ensure_future(llm.generate_async("x", 10**6, context_policy="shift"))
            await asyncio.sleep(0.2)
        asyncio.run(main())
        print("end")
        """,
        model_path(),
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_long_prompts_are_prepared_while_the_event_loop_goes_on(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    prepare = ChatPreparer.prepare

    def watched(self: ChatPreparer, *args: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return prepare(self, *args, **options)

    monkeypatch.setattr(ChatPreparer, "prepare", watched)
    with Llama(tiny_model, n_ctx=64, n_threads=1, n_parallel=2) as llm:
        parts = [{"type": "text", "text": "word " * 5000}]
        for content in ("short", "word " * 5000, parts):
            ask = llm.create_chat_completion_async([{"role": "user", "content": content}])
            with contextlib.suppress(ContextOverflowError):
                asyncio.run(asyncio.wait_for(ask, 60))
    here = threading.get_ident()
    assert [thread == here for thread in threads] == [True, False, False]
