"""ResponseCache: the same answer again, without generating it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.loras import make_pairs, write_lora

from llama_cffi import Llama, LlamaGrammar, ResponseCache, SamplingParams, ValidationError
from llama_cffi.demo import model_path
from llama_cffi.generation.request_scope import RequestScope

PROMPT = "Once upon a time"
MESSAGES: Any = [{"role": "user", "content": "What is 17 + 25?"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(model_path(), n_ctx=256, n_threads=1) as llm:
        yield llm


def counts(cache: ResponseCache) -> tuple[int, int, int, int]:
    return tuple(cache.info)  # type: ignore[return-value]


def test_the_same_request_is_answered_from_memory(llm: Llama) -> None:
    cache = ResponseCache(llm)
    assert counts(cache) == (0, 0, 0, 0)
    for _ in range(3):
        assert cache.generate(PROMPT, 8, temperature=0) == llm.generate(PROMPT, 8, temperature=0)
    assert counts(cache) == (2, 1, 0, 1)
    whole = cache.create_chat_completion(MESSAGES, temperature=0)
    again = cache.create_chat_completion(MESSAGES, temperature=0)
    assert whole == again
    assert again["choices"][0]["message"]["content"] == "42"
    again["choices"][0]["message"]["content"] = "changed"  # a caller's copy
    assert cache.create_chat_completion(MESSAGES, temperature=0) == whole
    text = cache.create_completion(PROMPT, None, 8, temperature=0, logprobs=2)
    assert cache.create_completion(PROMPT, None, 8, temperature=0, logprobs=2) == text
    assert counts(cache) == (5, 3, 0, 3)
    cache.clear()
    assert cache.info.n_entries == 0
    cache.generate(PROMPT, 8, temperature=0)
    assert counts(cache) == (5, 4, 0, 1)


def test_every_difference_is_another_request(llm: Llama, tiny_model: Path, tmp_path: Path) -> None:
    cache = ResponseCache(llm)
    calls: list[tuple[Any, ...]] = [
        (PROMPT, 8, {"temperature": 0}),
        (PROMPT + " ", 8, {"temperature": 0}),
        (PROMPT, 9, {"temperature": 0}),
        (PROMPT, 8, {"temperature": 0, "special": True}),
        (PROMPT, 8, {"temperature": 0, "stop": "a"}),
        (PROMPT, 8, {"temperature": 0, "stop": 97}),
        (PROMPT, 8, {"temperature": 0, "top_k": 1}),
        (PROMPT, 8, {"temperature": 0, "logit_bias": {5: 1.0}}),
        (PROMPT, 8, {"temperature": 0, "grammar": LlamaGrammar.from_regex("a+")}),
        (PROMPT, 8, {"temperature": 0, "grammar": LlamaGrammar.from_regex("b+")}),
        (PROMPT, 8, {"temperature": 1.0, "seed": 3}),
        (PROMPT, 8, {"temperature": 1.0, "seed": 4}),
        (PROMPT, 8, {"sampling": SamplingParams(temperature=0)}),
        (PROMPT, 8, {"sampling": SamplingParams(seed=1)}),
    ]
    for _ in range(2):
        for prompt, n, options in calls:
            cache.generate(prompt, n, **options)
    assert counts(cache) == (len(calls), len(calls), 0, len(calls))
    cache.generate(PROMPT, 8, temp=0)  # only another spelling
    assert cache.info.hits == len(calls) + 1
    with Llama(tiny_model, n_ctx=64, n_threads=1) as other:
        adapted = ResponseCache(other)
        plain = adapted.generate(PROMPT, 8, temperature=0)
        other.load_lora(write_lora(tmp_path / "lora.gguf", make_pairs()), 4.0)
        assert adapted.generate(PROMPT, 8, temperature=0) == other.generate(
            PROMPT, 8, temperature=0
        )
        assert adapted.info.misses == 2
        other.clear_lora()
        assert adapted.generate(PROMPT, 8, temperature=0) == plain
        assert adapted.info.hits == 1
    lora = str(tmp_path / "lora.gguf")
    with Llama(tiny_model, n_ctx=64, n_threads=1, adapters={lora: 0.0}) as other:
        adapted = ResponseCache(other)
        texts = []
        for scale in (0.0, 4.0, 0.0, 4.0):
            with RequestScope(adapters={lora: scale}):
                texts.append(adapted.generate(PROMPT, 8, temperature=0))
        assert texts[:2] == texts[2:]
        assert texts[0] != texts[1]
        other.set_adapters({lora: 4.0})
        assert adapted.generate(PROMPT, 8, temperature=0) == texts[1]
        assert counts(adapted)[:2] == (3, 2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"seed": -1},
        {"sampling": SamplingParams(temperature=1.0)},
        {"sampling": "model"},
        {"temperature": 0, "logits_processor": [lambda ids, scores: scores]},
        {"temperature": 0, "stopping_criteria": lambda ids, scores: False},
    ],
)
def test_what_may_differ_is_generated_each_time(llm: Llama, options: dict[str, Any]) -> None:
    cache = ResponseCache(llm)
    for _ in range(2):
        cache.generate(PROMPT, 4, **options)
    assert counts(cache) == (0, 0, 2, 0)


def test_the_least_recently_used_answer_is_dropped(llm: Llama) -> None:
    cache = ResponseCache(llm, max_entries=2)
    for prompt in ("a", "b", "a", "c"):  # b is dropped, not a
        cache.generate(prompt, 1, temperature=0)
    assert counts(cache) == (1, 3, 0, 2)
    cache.generate("a", 1, temperature=0)
    assert cache.info.hits == 2
    cache.generate("b", 1, temperature=0)
    assert cache.info.misses == 4


def test_answers_have_a_time_to_live(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, forever, now = ResponseCache(llm, ttl_s=10), ResponseCache(llm), time.monotonic()
    for at, hits in ((0, 0), (9, 1), (11, 1), (20, 2)):
        monkeypatch.setattr(time, "monotonic", lambda at=at: now + at)
        cache.generate(PROMPT, 1, temperature=0)
        forever.generate(PROMPT, 1, temperature=0)
        assert cache.info.hits == hits
    assert forever.info.hits == 3


def test_an_error_is_not_kept(llm: Llama) -> None:
    cache = ResponseCache(llm)
    for _ in range(2):
        with pytest.raises(ValidationError):
            cache.generate(PROMPT, 0, temperature=0)
    assert cache.info.n_entries == 0
    for stream in (cache.create_completion, cache.generate):
        with pytest.raises(ValidationError, match="no streams"):
            stream(PROMPT, temperature=0, stream=True)  # type: ignore[operator]
    with pytest.raises(ValidationError, match="logprobs"):
        cache.generate(PROMPT, temperature=0, logprobs=1)
    for arguments in ((llm, 0), (llm, 1, -1), (model_path(),)):
        with pytest.raises(ValidationError):
            ResponseCache(*arguments)  # type: ignore[arg-type]


def test_threads_share_the_answers(llm: Llama) -> None:
    cache, texts = ResponseCache(llm), list[str]()

    def work() -> None:
        for i in range(4):
            texts.append(cache.generate(f"{PROMPT} {i % 2}", 4, temperature=0))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(texts)) <= 2
    assert cache.info.n_entries == 2
    assert cache.info.hits + cache.info.misses == 16
