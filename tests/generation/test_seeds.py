from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llama_cffi import Llama, LlamaPool, SamplingParams, ValidationError
from llama_cffi.generation.seeds import SeedSequence

HOT: dict[str, Any] = {"temperature": 2.0, "top_k": 0, "min_p": 0.0, "top_p": 1.0}


def test_the_same_seed_gives_the_same_sequence() -> None:
    for seed in (0, 1, 42, 2**32 - 2):
        first, second = SeedSequence(seed), SeedSequence(seed)
        drawn = [first.draw() for _ in range(200)]
        assert drawn == [second.draw() for _ in range(200)]
        assert len({seed, *drawn}) == 201
        assert all(0 <= s <= 2**32 - 2 for s in drawn)
        continued = SeedSequence(drawn[9])
        assert [continued.draw() for _ in range(5)] == drawn[10:15]
        first.restart(seed)
        assert first.draw() == drawn[0]
    assert [SeedSequence().draw() for _ in range(3)] == [-1] * 3


@pytest.mark.parametrize("seed", [-2, 2**32 - 1, 1.5, "x", None])
def test_invalid_seeds(seed: Any) -> None:
    with pytest.raises(ValidationError, match="seed"):
        SeedSequence(seed)


@pytest.mark.parametrize("n_parallel", [1, 2])
def test_the_constructors_seed_fixes_a_sequence_of_answers(
    tiny_model: Path, n_parallel: int
) -> None:
    options: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "n_parallel": n_parallel}

    def answers(**more: Any) -> list[str]:
        with Llama(tiny_model, seed=11, **options) as llm:
            say = [{"role": "user", "content": "x"}]
            return [
                llm.generate("x", 8, **HOT, **more),
                "".join(llm.generate_stream("x", 8, **HOT, **more)),
                llm.create_completion("x", max_tokens=8, **HOT, **more)["choices"][0]["text"],
                llm.generate("x", 8, SamplingParams(**HOT), **more),
                str(llm.create_chat_completion(say, max_tokens=8, **HOT, **more)["choices"]),
                str(llm.create_chat_completion(say, max_tokens=8, **HOT, **more)["choices"]),
            ]

    first = answers()
    assert first == answers()
    assert len(set(first)) == 6
    # A call's own seed fixes that call.
    assert len(set(answers(seed=3)[:4])) == 1
    with Llama(tiny_model, seed=11, **options) as llm:
        assert llm.generate("x", 8, seed=3, **HOT) != first[0] == llm.generate("x", 8, **HOT)
        assert llm.generate("x", 8, **HOT) == first[1]


def test_the_pools_seed_fixes_a_sequence_of_answers(tiny_model: Path) -> None:
    async def answers() -> list[str]:
        async with LlamaPool(tiny_model, 3, n_ctx=128, n_threads=1, seed=5) as pool:
            return await pool.generate_batch(["x"] * 4, 8, **HOT)

    first = asyncio.run(answers())
    assert first == asyncio.run(answers())
    assert len(set(first)) == 4


def test_the_seed_is_checked_by_the_constructor(tiny_model: Path) -> None:
    with pytest.raises(ValidationError, match="seed"):
        Llama(tiny_model, seed=2**32)
