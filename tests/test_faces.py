"""The same question through every class and command: the same prompt, the same answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from llama_cffi import (
    Engine,
    InferenceEngine,
    Llama,
    LlamaPool,
    Model,
    PromptLookup,
    UnifiedLLM,
)
from llama_cffi.cli import main
from llama_cffi.demo import model_path
from llama_cffi.llama_cpp import Llama as DropIn

# The tokens of one answer do not depend on how its batches are cut with these.
EXACT: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "flash_attn": False}
QUESTION, SYSTEM, ANSWER = "What is 17 + 25?", "You answer briefly.", "42"
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(model_path()) as model:
        yield model


def content(response: Any) -> str:
    text: str = response["choices"][0]["message"]["content"]
    return text


def test_every_face_gives_the_same_answer(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, **EXACT}
    answers: dict[str, str] = {}
    prompts: dict[str, list[int]] = {}
    with Engine(model, **options) as engine:
        prompts["Engine"] = engine.tokenize_chat(MESSAGES)
        answers["Engine.generate"] = engine.generate(QUESTION, SYSTEM, temperature=0)
        answers["Engine.generate_chat"] = engine.generate_chat(MESSAGES, temperature=0)
        answers["Engine.stream"] = "".join(engine.stream(QUESTION, SYSTEM, temperature=0))
    with InferenceEngine(model, 2, **options) as shared:
        prompts["InferenceEngine"] = shared.tokenize_chat(MESSAGES)
        answers["InferenceEngine"] = shared.generate(prompts["InferenceEngine"], temperature=0)
    with Llama(model, **options) as llm:
        prompts["Llama"] = llm.renderer.render(MESSAGES).tokens
        answers["Llama"] = content(llm.create_chat_completion(MESSAGES, temperature=0))
        text = llm.renderer.render(MESSAGES).text
        answers["Llama.generate"] = llm.generate(text, temperature=0)
    with LlamaPool(model, 2, **options) as pool:
        prompts["LlamaPool"] = pool.llm.renderer.render(MESSAGES).tokens
        answer = asyncio.run(pool.create_chat_completion(MESSAGES, temperature=0))
        answers["LlamaPool"] = content(answer)
    with UnifiedLLM(model, **options) as unified:
        answers["UnifiedLLM"] = unified.generate(QUESTION, system_prompt=SYSTEM, temperature=0)
    with DropIn(str(model_path()), n_ctx=512, n_threads=1, verbose=False) as drop_in:
        answers["llama_cpp"] = content(drop_in.create_chat_completion(MESSAGES, temperature=0))
    assert main(["generate", "-p", QUESTION, "-s", SYSTEM, "-c", "512", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    answers["generate --json"] = printed["text"]
    assert main(["generate", "-p", QUESTION, "-s", SYSTEM, "-c", "512"]) == 0
    answers["generate"] = capsys.readouterr().out.removesuffix("\n")
    assert set(answers.values()) == {ANSWER}, answers
    assert len({tuple(tokens) for tokens in prompts.values()}) == 1, prompts
    assert printed["prompt_tokens"] == len(prompts["Engine"])


def test_stop_tokens_and_ignore_eos_hold_everywhere(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    two = model.vocab.tokenize("2", add_special=False)[-1]
    options: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, **EXACT}
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"stop": [two], "temperature": 0}, {}),
        ({"ignore_eos": True, "max_tokens": 12, "temperature": 0}, {}),
    ]
    with Engine(model, **options) as engine:
        prompt = engine.tokenize_chat(MESSAGES)
        for case, answers in cases:
            answers["Engine"] = engine.generate_chat(MESSAGES, **case)
            answers["stream"] = "".join(engine.stream_chat(MESSAGES, **case))
            answers["tokens"] = engine.detokenize(engine.generate_tokens(prompt, **case))
    drafters = (None, PromptLookup())
    for draft in drafters:
        with InferenceEngine(model, 2, draft=draft, **options) as shared:
            for case, answers in cases:
                answers[f"InferenceEngine, {draft}"] = shared.generate(prompt, **case)
    with Llama(model, **options) as llm:
        text = llm.renderer.render(MESSAGES).text
        for case, answers in cases:
            answers["Llama"] = content(llm.create_chat_completion(MESSAGES, **case))
            answers["Llama.generate"] = llm.generate(text, **case)
            completion = llm.create_completion(text, **case)
            answers["Llama.create_completion"] = completion["choices"][0]["text"]
            n = completion["usage"]["completion_tokens"]
            assert n == len(llm.tokenize(answers["Engine"], add_bos=False))
    with UnifiedLLM(model, **options) as unified:
        for case, answers in cases:
            answers["UnifiedLLM"] = unified.generate(QUESTION, system_prompt=SYSTEM, **case)
    with DropIn(str(model_path()), n_ctx=512, n_threads=1, verbose=False) as drop_in:
        for case, answers in cases:
            answers["llama_cpp"] = content(drop_in.create_chat_completion(MESSAGES, **case))
    arguments = ["generate", "-p", QUESTION, "-s", SYSTEM, "-c", "512"]
    assert main([*arguments, "--ignore-eos", "-n", "12", "--json"]) == 0
    cases[1][1]["generate"] = json.loads(capsys.readouterr().out)["text"]
    stopped, endless = (answers for _, answers in cases)
    assert set(stopped.values()) == {"4"}, stopped
    assert len(set(endless.values())) == 1, endless
    assert endless["Llama"].startswith(ANSWER)
