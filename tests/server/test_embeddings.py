"""POST /v1/embeddings."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest
from support.http_requests import post
from support.strict_sdk import assert_strict

from llama_cffi import LlamaPool


@pytest.mark.behaviour("embeddings: a vector has length 1")
@pytest.mark.behaviour("embeddings: different texts have different vectors")
@pytest.mark.behaviour("embeddings: OpenAI's client works, one text and many")
@pytest.mark.behaviour("embeddings: usage, one text and many")
def test_vectors_have_length_1_and_differ(client: openai.OpenAI, pool: LlamaPool) -> None:
    texts = ["a cat", "a dog", "the weather", ""]
    answer = client.embeddings.create(model="demo", input=texts, encoding_format="float")
    assert_strict(answer)
    vectors = [item.embedding for item in answer.data]
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-4) for vector in vectors)
    assert len({tuple(vector) for vector in vectors}) == 4
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    assert vectors[0] == pytest.approx(pool.llm.embed("a cat"), abs=0.01)
    assert answer.usage.prompt_tokens == sum(pool.llm.n_tokens(text) for text in texts)


@pytest.mark.behaviour("embeddings: base64 has the same numbers as floats")
def test_base64_is_the_same(client: openai.OpenAI) -> None:
    """The client asks for base64 unless told otherwise, and decodes it."""
    floats = client.embeddings.create(model="demo", input="a cat", encoding_format="float")
    decoded = client.embeddings.create(model="demo", input="a cat")
    assert decoded.data[0].embedding == pytest.approx(floats.data[0].embedding, abs=1e-4)
    raw: Any = client.embeddings.create(model="demo", input="a cat", encoding_format="base64")
    assert isinstance(raw.data[0].embedding, str)


def test_dimensions_truncate_and_renormalise(client: openai.OpenAI) -> None:
    whole = client.embeddings.create(model="demo", input="a cat", encoding_format="float")
    cut = client.embeddings.create(
        model="demo", input="a cat", dimensions=16, encoding_format="float"
    )
    first = whole.data[0].embedding[:16]
    expected = [x / math.hypot(*first) for x in first]
    assert cut.data[0].embedding == pytest.approx(expected, abs=1e-3)


@pytest.mark.behaviour("embeddings: texts and token ids can be mixed, and a text may be empty")
def test_token_ids_and_text_give_the_same(client: openai.OpenAI, pool: LlamaPool) -> None:
    ids = pool.llm.tokenize("a cat")
    mixed: Any = ["a cat", ids]
    answer = client.embeddings.create(model="demo", input=mixed)
    one = client.embeddings.create(model="demo", input=ids)
    vectors = [item.embedding for item in [*answer.data, *one.data]]
    assert vectors[1] == pytest.approx(vectors[0], abs=0.01)
    assert vectors[2] == pytest.approx(vectors[0], abs=0.01)


@pytest.mark.behaviour("robustness: token ids outside the vocabulary are 400")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", []), ("input", None), ("input", 5), ("input", [[]]), ("input", [None]),
        ("input", [10**6]), ("input", [-1]), ("input", [[3, 2**70]]), ("input", [1.5]),
        ("input", [True]), ("input", {"a": 1}), ("input", ["x"] * 2049),
        ("dimensions", 0), ("dimensions", 10**6), ("encoding_format", "int8"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_400_with_their_name(url: str, field: str, value: Any) -> None:
    reply = post(f"{url}/embeddings", {"model": "demo", "input": "x", field: value})
    assert reply.status == 400, reply.body
    assert reply.error["param"] == field


@pytest.mark.behaviour("embeddings: a text that is too long is refused with a message")
def test_a_text_that_is_too_long_is_400_with_both_numbers(url: str) -> None:
    reply = post(f"{url}/embeddings", {"input": ["word " * 3000]})
    assert reply.status == 400
    assert reply.error["type"] == "exceed_context_size_error"
    assert reply.error["n_prompt_tokens"] > reply.error["n_ctx"]
