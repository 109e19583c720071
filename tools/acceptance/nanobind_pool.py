"""The features of llama-cpp-nanobind: LlamaPool."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from lines import MODEL, line
from nanobind import content

from llama_cffi import InferenceEngine, Llama, LlamaPool, Model

SUMS = {f"What is {a} + {b}?": str(a + b) for a in range(11, 15) for b in (20, 31, 45)}
ENGINE = "llama_cffi-engine"
OPTIONS: dict[str, Any] = {"n_ctx": 512, "n_threads": 1}


def conversation(question: str) -> list[dict[str, str]]:
    """Return a conversation of one message."""
    return [{"role": "user", "content": question}]


@line("nanobind", "async with LlamaPool(path, pool_size=4, warmup=True): results in input order")
def _() -> None:
    prompts = ["Once upon", "The sun is", "One, two,", "Hello", "What", "A fox"]
    with Llama(MODEL, **OPTIONS) as llm:
        alone = [llm.generate(prompt, 8, temperature=0) for prompt in prompts]

    async def main() -> None:
        async with LlamaPool(str(MODEL), pool_size=4, warmup=True, **OPTIONS) as pool:
            assert await pool.generate_batch(prompts, max_tokens=8, temperature=0) == alone
            responses = await pool.create_chat_completion_batch(
                [conversation(question) for question in SUMS], max_tokens=16, temperature=0
            )
            assert [content(response) for response in responses] == [*SUMS.values()]

    asyncio.run(main())


@line("nanobind", "asyncio.gather(pool.generate(...), ...): in parallel, at most pool_size")
def _() -> None:
    pool = LlamaPool(MODEL, pool_size=3, **OPTIONS)

    async def main() -> list[str]:
        return await asyncio.gather(*(pool.generate("Once upon", 30, seed=n) for n in range(8)))

    assert len(asyncio.run(main())) == 8
    engine: Any = pool.llm.engine
    assert 1 < max(moment.n_running for moment in engine.timeline) <= 3
    assert engine.stats.n_finished == 8
    pool.close()
    pool.close()


@line(
    "nanobind",
    "one model, one context and one thread; theirs: one model and one worker per request",
)
def _() -> None:
    loaded, init = [], Model.__init__

    def counted(self: Model, *args: Any, **options: Any) -> None:
        loaded.append(self)
        init(self, *args, **options)

    Model.__init__ = counted  # type: ignore[method-assign]
    try:
        with LlamaPool(MODEL, pool_size=4, **OPTIONS) as pool:
            assert isinstance(pool.llm.engine, InferenceEngine)
            assert len(loaded) == 1
            names = [thread.name for thread in threading.enumerate()]
            assert names.count(ENGINE) == 1
    finally:
        Model.__init__ = init  # type: ignore[method-assign]
