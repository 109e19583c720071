"""A web endpoint: a sync generator, each step of which runs in any thread of a pool."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llama_cffi import Llama

_END = object()


@pytest.mark.parametrize("n_parallel", [1, 4])
@pytest.mark.parametrize("closes", [True, False], ids=["closed", "dropped"])
def test_clients_that_leave_at_random_harm_no_others(
    tiny_model: Path, n_parallel: int, closes: bool
) -> None:
    llm = Llama(tiny_model, n_ctx=64, n_threads=1, n_parallel=n_parallel)
    chances = random.Random(n_parallel)
    prompts = [[65 + i % 20, 66, 67] for i in range(20)]
    options = {"temperature": 0, "ignore_eos": True}
    alone = [
        llm.create_completion(prompt, max_tokens=12, **options)["choices"][0]["text"]  # type: ignore[arg-type]
        for prompt in prompts
    ]
    leaves = [chances.choice([None, None, 0, 1, 5]) for _ in prompts]

    def endpoint(prompt: list[int]) -> Iterator[str]:
        for chunk in llm.create_completion(prompt, max_tokens=12, stream=True, **options):  # type: ignore[arg-type]
            yield chunk["choices"][0]["text"]

    async def client(i: int, pool: ThreadPoolExecutor) -> str:
        # As starlette's iterate_in_threadpool; a client that leaves only ends the iteration.
        run, pieces, text = asyncio.get_running_loop().run_in_executor, endpoint(prompts[i]), ""
        n = 0
        while n != leaves[i] and (piece := await run(pool, next, pieces, _END)) is not _END:
            text, n = text + str(piece), n + 1
            if n == 2 and i % 4 == 0:
                await asyncio.sleep(0.02)  # a slow client
        if closes:
            await run(pool, pieces.close)  # type: ignore[attr-defined]
        return text

    async def serve() -> list[str]:
        with ThreadPoolExecutor(8) as pool:
            return await asyncio.gather(*(client(i, pool) for i in range(len(prompts))))

    texts = asyncio.run(asyncio.wait_for(serve(), 100))
    for text, whole, leave in zip(texts, alone, leaves, strict=True):
        assert whole.startswith(text) if leave is not None else text == whole
    assert len(llm.generate("x", max_tokens=2, **options)) > 0  # type: ignore[arg-type]
    llm.close()
