"""LlamaPool and Llama(n_parallel=...) with the demo model."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

from llama_cffi import Llama, LlamaPool, ModelLoadError, PromptLookup, ValidationError, demo

SUMS = [(f"What is {a} + {b}?", str(a + b)) for a in range(11, 17) for b in (20, 31)]
OPTIONS: dict[str, Any] = {"n_ctx": 512, "n_threads": 1}


def conversation(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def content(response: Any) -> str:
    return str(response["choices"][0]["message"]["content"])


def test_batch_results_are_in_order_and_equal_single_answers() -> None:
    with Llama(demo.model_path(), **OPTIONS) as llm:
        prompts = ["The sun is", "One, two,", "A story", "Hello", "What"]
        alone = [llm.generate(prompt, 8, temperature=0) for prompt in prompts]

    async def main() -> None:
        async with LlamaPool(demo.model_path(), pool_size=3, warmup=True, **OPTIONS) as pool:
            assert pool.pool_size == 3
            assert await pool.generate_batch(prompts, max_tokens=8, temperature=0) == alone
            responses = await pool.create_chat_completion_batch(
                [conversation(question) for question, _ in SUMS], temperature=0
            )
            assert [content(response) for response in responses] == [answer for _, answer in SUMS]
            pieces = [
                p async for p in await pool.generate("The sun is", 8, stream=True, temperature=0)
            ]
            assert "".join(pieces) == alone[0]
            single = await asyncio.gather(
                *(pool.create_chat_completion(conversation(q), temperature=0) for q, _ in SUMS)
            )
            assert [content(response) for response in single] == [answer for _, answer in SUMS]
            assert await pool.generate_batch([]) == []

    asyncio.run(main())


def test_first_error_of_a_batch_is_raised_and_the_pool_stays_usable() -> None:
    async def main() -> None:
        async with LlamaPool(demo.model_path(), pool_size=2, **OPTIONS) as pool:
            with pytest.raises(ValidationError, match="max_tokens"):
                await pool.generate_batch(["a", "b"], max_tokens=0)
            with pytest.raises(ValidationError, match="no room"):
                await pool.generate_batch(["a", "b " * 600, "c"], max_tokens=5)
            asked = pool.create_chat_completion(conversation(SUMS[0][0]), temperature=0)
            assert content(await asked) == "31"
        with pytest.raises(ValidationError, match="closed"):
            await pool.generate("a")
        pool.close()

    asyncio.run(main())


def test_pool_needs_a_model_and_a_valid_size() -> None:
    with pytest.raises(ModelLoadError):
        LlamaPool("/nowhere.gguf")
    for size in (0, 257, "4"):
        with pytest.raises((ValidationError, TypeError), match="parallel"):
            LlamaPool(demo.model_path(), pool_size=size)  # type: ignore[arg-type]


def test_failed_warmup_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValidationError("no")

    monkeypatch.setattr(Llama, "generate", fail)
    with LlamaPool(demo.model_path(), warmup=True, **OPTIONS):
        assert "warming up the pool failed" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_threads_share_one_llama(stream: bool) -> None:
    found: dict[str, str] = {}
    with Llama(demo.model_path(), n_parallel=4, **OPTIONS) as llm:

        def ask(question: str) -> None:
            answer = llm.create_chat_completion(
                conversation(question), temperature=0, stream=stream
            )
            if stream:
                parts = (chunk["choices"][0]["delta"].get("content") or "" for chunk in answer)
                found[question] = "".join(parts)
            else:
                found[question] = content(answer)

        threads = [threading.Thread(target=ask, args=(question,)) for question, _ in SUMS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == dict(SUMS)
        assert max(moment.n_running for moment in llm.engine.timeline) > 1  # type: ignore[union-attr]


@pytest.mark.parametrize("n_parallel", [1, 4])
def test_all_answers_can_share_one_kv_cache(n_parallel: int) -> None:
    async def main() -> None:
        with LlamaPool(demo.model_path(), n_parallel, n_kv_tokens=256, **OPTIONS) as pool:
            context = pool.llm.engine.context
            assert (context.n_ctx, context.kv_unified) == (256, True)
            assert pool.llm.n_ctx == 256  # n_ctx=512 does not fit
            answers = (pool.create_chat_completion(conversation(q), temperature=0) for q, _ in SUMS)
            assert [content(a) for a in await asyncio.gather(*answers)] == [a for _, a in SUMS]

    asyncio.run(main())


def test_several_answers_and_formats_in_parallel() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    with Llama(demo.model_path(), n_parallel=3, **OPTIONS) as llm:
        response = llm.create_chat_completion(
            conversation("Hello"), n=4, temperature=1.2, seed=5, max_tokens=12,
            response_format={"type": "json_object", "schema": schema},
        )  # fmt: skip
        assert len(response["choices"]) == 4
        assert {choice["message"]["content"][:1] for choice in response["choices"]} == {"{"}
        best = llm.create_completion("The sun", max_tokens=4, n=1, best_of=3, logprobs=2, seed=1)
        assert len(best["choices"][0]["logprobs"]["tokens"]) == 4
        assert llm.create_completion("The sun", max_tokens=4, temperature=0, stop=["a"])
        seen: list[int] = []

        def met(ids: Any, logits: Any) -> bool:
            seen.append(len(ids))
            return len(seen) == 3

        short = llm.create_completion("The sun", max_tokens=9, stopping_criteria=met)
        assert short["usage"]["completion_tokens"] == 2


def test_state_is_not_available_in_parallel() -> None:
    with Llama(demo.model_path(), n_parallel=2, **OPTIONS) as llm:
        for call in (llm.get_state, llm.kv_cache_seq_rm, llm.save_state):
            with pytest.raises(ValidationError, match="many requests share"):
                call()
        llm.kv_cache_clear()
        llm.reset()
        assert content(llm.create_chat_completion(conversation(SUMS[0][0]), temperature=0)) == "31"
        with pytest.raises(ValidationError, match="shift"):
            llm.generate("a", context_policy="shift")


def test_leaving_a_stream_frees_its_sequence() -> None:
    with Llama(demo.model_path(), n_parallel=2, **OPTIONS) as llm:
        for _ in range(5):
            for _piece in llm.generate_stream("A story", 400, temperature=0, stop=["never"]):
                break
        dropped = [llm.generate("A story", 400, stream=True) for _ in range(4)]
        del dropped
        assert llm.generate("The sun is", 4, timeout_s=20)
        engine: Any = llm.engine
        assert engine.stats.n_cancelled == 9


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_on_every_build(child: Child, build: str) -> None:
    code = """
        import asyncio
        from llama_cffi import LlamaPool, demo

        async def main():
            async with LlamaPool(demo.model_path(), pool_size=4, n_ctx=256, n_threads=1) as pool:
                asked = [[{"role": "user", "content": f"What is {n} + 20?"}] for n in range(11, 19)]
                found = await pool.create_chat_completion_batch(asked, temperature=0)
                print([r["choices"][0]["message"]["content"] for r in found])

        asyncio.run(main())
    """
    run = child(code, LLAMA_CFFI_BUILD=build)
    assert run.stdout.strip() == str([str(n + 20) for n in range(11, 19)]), run.stderr


def test_speculative_decoding_gives_the_same_answers() -> None:
    prompt = "Repeat: a fox and a dog and a fox and a dog and a"
    answers = []
    for draft in (None, PromptLookup(8, 2, 1)):
        with Llama(demo.model_path(), draft=draft, **OPTIONS) as llm:
            answers.append(llm.generate(prompt, 40, temperature=0))
            if draft is not None:
                engine: Any = llm.engine
                assert engine.stats.n_steps < 41
    assert answers[0] == answers[1]


def test_asynchronous_calls_start_no_threads() -> None:
    async def main(pool: LlamaPool) -> None:
        before = {*threading.enumerate()}
        chunks = await pool.create_chat_completion(
            conversation(SUMS[0][0]), stream=True, temperature=0
        )
        asked = [asyncio.ensure_future(pool.generate("x", 8)) for _ in range(6)]
        async for _ in chunks:
            assert {*threading.enumerate()} <= before
        await asyncio.gather(*asked)
        assert {*threading.enumerate()} <= before

    with LlamaPool(demo.model_path(), 2, n_ctx=256, n_threads=1) as pool:
        asyncio.run(main(pool))
