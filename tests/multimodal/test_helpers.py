"""Helpers of `Llama` with pictures: parse and map; and the pool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pytest
from multimodal.conftest import Files, picture

from llama_cffi import Llama, LlamaPool


class Shape(NamedTuple):
    colour: Literal["red", "green", "blue", "grey"]
    is_round: bool
    n_corners: int
    side: Literal["left", "right"]


def ask(seed: int) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture(seed, 30, 20)}, {"type": "text", "text": "what?"}]
    return [{"role": "user", "content": content}]


OPTIONS: dict[str, Any] = {"max_tokens": 8, "temperature": 0}


def text(response: Any) -> str:
    return str(response["choices"][0]["message"]["content"])


@pytest.fixture(scope="module", params=[1, 3], ids=["one at a time", "batched"])
def llm(request: pytest.FixtureRequest, files: dict[str, Files]) -> Iterator[Llama]:
    with Llama(
        files["janus_pro"].model, n_ctx=512, n_threads=1, n_parallel=request.param
    ) as llm:  # fmt: skip
        yield llm


def test_parse_extracts_from_a_picture(llm: Llama) -> None:
    found = [llm.parse(ask(i), Shape, max_tokens=200, temperature=0) for i in (1, 2, 3, 1)]
    assert all(isinstance(shape, Shape) for shape in found)
    assert found[0] == found[3]
    assert len({*found}) > 1


def test_map_answers_about_the_picture_of_each_row(llm: Llama) -> None:
    found = llm.map([1, 2, 3, 1], Shape, ask, max_tokens=200, temperature=0)
    assert [*found] == [llm.parse(ask(i), Shape, max_tokens=200, temperature=0)
                        for i in (1, 2, 3, 1)]  # fmt: skip


def test_the_pool_takes_pictures(files: dict[str, Files], llm: Llama) -> None:
    expected = [text(llm.create_chat_completion(ask(i), **OPTIONS)) for i in (1, 2)]

    async def answers() -> list[str]:
        async with LlamaPool(files["janus_pro"].model, 2, n_ctx=512, n_threads=1) as pool:
            asked = [pool.create_chat_completion(ask(i), **OPTIONS) for i in (1, 2)]
            return [text(one) for one in await asyncio.gather(*asked)]

    assert asyncio.run(answers()) == expected
