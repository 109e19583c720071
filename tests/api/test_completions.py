"""Text completions: fill-in-the-middle, several answers, streams, errors; and rerankers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.tiny_encoders import write_bert
from support.tiny_gguf import write_tiny

from llama_cffi import (
    ContextOverflowError,
    Embedder,
    Llama,
    LlamaGrammar,
    Model,
    ValidationError,
)
from llama_cffi.demo import model_path

STORY = (
    "<|im_start|>user\nTell me a story about a fox named Milo.<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(model_path(), n_ctx=512, n_threads=1) as llm:
        yield llm


def texts(chunks: Any) -> dict[int, str]:
    """Return the texts of a stream by index, after checking the finish reasons."""
    found: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert choice["index"] not in reasons
        found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
        if choice["finish_reason"] is not None:
            reasons[choice["index"]] = choice["finish_reason"]
    assert reasons.keys() == found.keys()
    return found


@pytest.mark.parametrize("add_bos", [False, True])
def test_fill_in_the_middle(tmp_path: Path, add_bos: bool) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_uint32("tokenizer.ggml.fim_pre_token_id", 250)
        writer.add_uint32("tokenizer.ggml.fim_suf_token_id", 251)
        writer.add_uint32("tokenizer.ggml.fim_mid_token_id", 252)
        writer.kv_data[0]["tokenizer.ggml.add_bos_token"].value = add_bos

    path = write_tiny(tmp_path / "fim.gguf", edit=edit)
    with Llama(path, n_ctx=128, n_threads=1) as llm:
        options: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
        tokens = [*([256] if add_bos else []), 250]
        tokens += [*llm.tokenize("def f(", False), 251, *llm.tokenize("): pass", False), 252]
        expected = llm(tokens, **options)["choices"][0]["text"]
        answer = llm("def f(", suffix="): pass", **options)
        assert answer["usage"]["prompt_tokens"] == len(tokens)
        assert answer["choices"][0]["text"] == expected
        # The text of special tokens in code stays text.
        named = llm("<|im_end|>", suffix="", **options)
        assert named["usage"]["prompt_tokens"] == add_bos + 3 + len("<|im_end|>")
        echoed = llm("def f(", suffix="): pass", echo=True, **options)
        assert echoed["choices"][0]["text"] == f"def f({expected}): pass"
        streamed = texts(llm("def f(", suffix="): pass", stream=True, **options))
        assert streamed == {0: expected}
        with pytest.raises(ValidationError):
            llm("a", suffix=5)  # type: ignore[arg-type]


def test_several_answers_with_and_without_streaming(llm: Llama) -> None:
    options: dict[str, Any] = {"max_tokens": 10, "temperature": 1.0, "seed": 5, "n": 3}
    answer = llm(STORY, **options)
    whole = {choice["index"]: choice["text"] for choice in answer["choices"]}
    assert len(set(whole.values())) > 1
    assert texts(llm(STORY, stream=True, **options)) == whole
    assert llm(STORY, **options)["choices"] == answer["choices"]
    assert 3 <= answer["usage"]["completion_tokens"] <= 30
    first = llm(STORY, **{**options, "n": 1})["choices"][0]
    assert first["text"] == whole[0]
    # If the stream is left after its first chunk, the second answer is never started.
    stream = llm(STORY, stream=True, **options)
    next(stream)
    stream.close()
    assert llm(STORY, **options)["choices"] == answer["choices"]


def test_best_of_has_the_best_mean_log_probability(llm: Llama) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 1.5, "seed": 2}
    every = llm(STORY, n=5, logprobs=0, **options)["choices"]

    def mean(choice: Any) -> float:
        return float(np.mean(choice["logprobs"]["token_logprobs"]))

    ranked = sorted(every, key=mean, reverse=True)
    best = llm(STORY, n=2, best_of=5, **options)
    assert [c["text"] for c in best["choices"]] == [c["text"] for c in ranked[:2]]
    assert [c["index"] for c in best["choices"]] == [0, 1]
    assert best["choices"][0]["logprobs"] is None
    assert best["usage"]["completion_tokens"] > 16
    assert llm(STORY, best_of=1, **options)["choices"][0]["text"] == every[0]["text"]
    for wrong in ({"n": 2, "best_of": 1}, {"best_of": 0}, {"best_of": 3, "stream": True}):
        with pytest.raises(ValidationError, match="best_of"):
            llm(STORY, **wrong)


def test_stop_string_over_several_tokens(llm: Llama) -> None:
    text = llm(STORY, max_tokens=30, temperature=0)["choices"][0]["text"]
    for start, end in ((3, 12), (10, 11), (0, 4), (17, 25)):
        stop = text[start:end]
        expected = text[: text.find(stop)]
        for stops in (stop, [stop], ["never this", stop]):
            answer = llm(STORY, max_tokens=30, temperature=0, stop=stops)["choices"][0]
            assert (answer["text"], answer["finish_reason"]) == (expected, "stop")
            stream = llm(STORY, max_tokens=30, temperature=0, stop=stops, stream=True)
            assert texts(stream) == {0: expected}
    many = [f"never {i}" for i in range(200)]
    assert llm(STORY, max_tokens=30, temperature=0, stop=many)["choices"][0]["text"] == text


def test_full_context_and_overflow(llm: Llama) -> None:
    no_end = dict.fromkeys(llm.model.vocab.eog_tokens, -float("inf"))
    for limit in (None, -1, 10**6):
        answer = llm(STORY, max_tokens=limit, temperature=0, logit_bias=no_end)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] in range(llm.n_ctx - 20, llm.n_ctx + 1)
    long = "word " * 600
    with pytest.raises(ContextOverflowError, match=r"\d+ tokens.*512"):
        llm(long)
    for policy in ("truncate_left", "truncate_middle"):
        assert llm(long, max_tokens=3, context_policy=policy)["usage"]["prompt_tokens"] < 512


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rank")
    return write_bert(folder / "rank.gguf", pooling=gguf.PoolingType.RANK, head=True)[0]


def test_rerank(ranker: Path) -> None:
    documents = ["a b", "c d e", "", "p o n", "a b"]
    with Llama(ranker, n_ctx=64, n_threads=1, embeddings=True) as llm:
        results = llm.rerank("a c", documents)
        assert sorted(r.index for r in results) == list(range(5))
        scores = [r.score for r in results]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) == 4
        assert [r.document for r in results] == [documents[r.index] for r in results]
        assert llm.rerank("a c", documents, top_n=2) == results[:2]
        assert llm.rerank("a c", []) == []
        with Model(ranker) as model, Embedder(model, pooling="rank") as embedder:
            assert embedder.rerank("a c", documents) == results
        with pytest.raises(ContextOverflowError):
            llm.rerank("a", ["b " * 200])
        for wrong in ("text", 5, None, [5]):
            with pytest.raises((ValidationError, TypeError)):
                llm.rerank("a", wrong)  # type: ignore[arg-type]
    with (
        Llama(ranker, n_ctx=64, n_threads=1) as bare,
        pytest.raises(ValidationError, match="embeddings=True"),
    ):
        bare.rerank("a", ["b"])
    with (
        Llama(model_path(), n_ctx=64, n_threads=1, embeddings=True) as chat,
        pytest.raises(ValidationError, match="rank"),
    ):
        chat.rerank("a", ["b"])


def test_text_offset_counts_from_the_beginning_of_the_prompt(llm: Llama) -> None:
    for prompt in (STORY, "é😀 x", llm.tokenize("é😀 x")):
        n = len(prompt) if isinstance(prompt, str) else 4
        options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "logprobs": 2}
        found = llm(prompt, **options)["choices"][0]["logprobs"]
        lengths = [len(token) for token in found["tokens"]]
        assert found["text_offset"] == [n + sum(lengths[:i]) for i in range(len(lengths))]
        chunks = [chunk["choices"][0] for chunk in llm(prompt, stream=True, **options)]
        streamed = [n for c in chunks if c["logprobs"] for n in c["logprobs"]["text_offset"]]
        assert streamed == found["text_offset"]


@pytest.mark.parametrize("text", ["😀é", "é", "a😀b", "日本", "x"])
def test_text_offset_of_tokens_inside_characters(tiny_model: Path, text: str) -> None:
    """One token per byte: each is at the character that it belongs to."""
    with Llama(tiny_model, n_ctx=64, n_threads=1) as llm:
        grammar = LlamaGrammar.from_choices([text])
        options: dict[str, Any] = {"max_tokens": 20, "logprobs": 0, "grammar": grammar}
        expected = [2 + i for i, character in enumerate(text) for _ in character.encode()]
        answer = llm("zé", **options)["choices"][0]
        assert answer["text"] == text
        assert answer["logprobs"]["text_offset"] == expected
        chunks = [chunk["choices"][0]["logprobs"] for chunk in llm("zé", stream=True, **options)]
        assert [n for c in chunks if c for n in c["text_offset"]] == expected


def test_the_whole_context_can_be_used(tiny_model: Path) -> None:
    """As with llama-cpp-python: prompt and answer fill the context to its last token."""
    bias = {256: float("-inf"), 258: float("-inf")}
    for options in ({}, {"n_parallel": 2}):
        with Llama(tiny_model, n_ctx=256, n_threads=1, **options) as llm:
            n = 250 if options else 240
            answer = llm([5] * n, max_tokens=None, temperature=0, logit_bias=bias)
            assert answer["usage"]["total_tokens"] == llm.n_ctx
            assert answer["choices"][0]["finish_reason"] == "length"
            one = llm([5] * (llm.n_ctx - 1), max_tokens=9, temperature=0, logit_bias=bias)
            assert one["usage"]["completion_tokens"] == 1
            with pytest.raises(ContextOverflowError, match=r"no room.*context holds 256\."):
                llm([5] * llm.n_ctx, max_tokens=1)


def test_the_options_of_engine_do_not_reach_llama(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SAFETY", "200"), ("SUPPRESS_THINK", "1"), ("SPECIAL", "1")):
        monkeypatch.setenv(f"LLAMA_CFFI_{name}", value)
    text = '{"done": 1} <think> x</think> y'
    with Llama(tiny_model, n_ctx=256, n_threads=1) as llm:
        grammar = LlamaGrammar.from_choices([text])
        assert llm.generate("x" * 100, grammar=grammar) == text
        assert "".join(llm.generate_stream("x", json_stop=None, grammar=grammar)) == text
        answer = llm.create_chat_completion([{"role": "user", "content": "x"}], grammar=grammar)
        assert answer["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("n_parallel", [1, 2])
def test_echo_with_logprobs_begins_with_those_of_the_prompt(n_parallel: int) -> None:
    options: Any = {"max_tokens": 3, "temperature": 0, "logprobs": 2}
    with Llama(model_path(), n_ctx=128, n_threads=1, n_parallel=n_parallel) as llm:
        plain = llm.create_completion("once upon", **options)["choices"][0]
        echoed = llm.create_completion("once upon", echo=True, **options)["choices"][0]
        again = asyncio.run(llm.create_completion_async("once upon", echo=True, **options))
        assert again["choices"][0]["text"] == echoed["text"] == "once upon" + plain["text"]
        scores, answer = echoed["logprobs"], plain["logprobs"]
        assert scores is not None
        assert answer is not None
        assert scores["tokens"][-len(answer["tokens"]) :] == answer["tokens"]
        assert scores["text_offset"][-len(answer["tokens"]) :] == answer["text_offset"]
        n = len(scores["tokens"]) - len(answer["tokens"])
        assert "".join(scores["tokens"][:n]) == "once upon"
        assert scores["token_logprobs"][0] is None
        assert all(value is not None and value <= 0 for value in scores["token_logprobs"][1:])
        chunks = [*llm.create_completion("once upon", echo=True, stream=True, **options)]
        streamed = [chunk["choices"][0] for chunk in chunks]
        assert "".join(choice["text"] for choice in streamed) == echoed["text"]
        assert streamed[-1]["finish_reason"] == echoed["finish_reason"]
        for name, values in scores.items():
            parts = [choice["logprobs"] for choice in streamed if choice["logprobs"]]
            assert [value for part in parts for value in part[name]] == values  # type: ignore[literal-required]
        options["max_tokens"] = 0
        alone = llm.create_completion("once upon", echo=True, n=2, **options)
        assert [choice["text"] for choice in alone["choices"]] == ["once upon"] * 2
        assert alone["usage"]["completion_tokens"] == 0
        for choice in alone["choices"]:
            assert choice["logprobs"] is not None
            assert choice["logprobs"]["tokens"] == scores["tokens"][:n]
        streamed = [
            choice
            for chunk in llm.create_completion("once upon", echo=True, stream=True, **options)
            for choice in chunk["choices"]
        ]
        assert [(c["text"], c["finish_reason"]) for c in streamed] == [
            ("once upon", None), ("", "length")
        ]  # fmt: skip
        with pytest.raises(ValidationError, match="max_tokens"):
            llm.create_completion("once upon", **options)
