"""marimo_chat: called as `marimo.ui.chat` calls a model, without marimo."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from llama_cffi import Llama, LlamaPool, Model, ValidationError
from llama_cffi.demo import model_path
from llama_cffi.notebook.marimo_chat import marimo_chat


@dataclass
class Message:
    """The shape of marimo's ChatMessage."""

    role: str
    content: Any
    id: str = "1"
    attachments: list[Any] | None = None
    parts: list[Any] = field(default_factory=list)
    metadata: Any = None


@dataclass
class Config:
    """The shape of marimo's ChatModelConfig, with its defaults."""

    max_tokens: int | None = 100
    temperature: float | None = 0.5
    top_p: float | None = 1
    top_k: int | None = 40
    frequency_penalty: float | None = 0
    presence_penalty: float | None = 0


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(model_path()) as model:
        yield model


def text_of(answer: Any, most: int | None = None) -> list[str]:
    async def read() -> list[str]:
        pieces = []
        async for piece in answer:
            pieces.append(piece)
            if len(pieces) == most:
                await answer.aclose()
        return pieces

    assert inspect.isasyncgen(answer)  # what marimo streams
    return asyncio.run(read())


def test_the_answer_is_that_of_a_chat_completion(model: Model) -> None:
    talk = [
        Message("user", "What is 17 + 25?"),
        Message("assistant", "42"),
        Message("user", None, parts=[SimpleNamespace(type="step-start"),
                                     SimpleNamespace(type="text", text="Tell me a story.")]),
    ]  # fmt: skip
    messages: list[Any] = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "What is 17 + 25?"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "Tell me a story."},
    ]
    for make in (Llama, LlamaPool):
        with make(model, n_ctx=512, n_threads=1) as llm:
            inner = llm.llm if isinstance(llm, LlamaPool) else llm
            expected = inner.create_chat_completion(messages, max_tokens=12, temperature=0)
            answer = marimo_chat(llm, "Answer briefly.", temperature=0)(talk, Config(12))
            pieces = text_of(answer)
            assert len(pieces) > 1
            assert "".join(pieces) == expected["choices"][0]["message"]["content"]
            assert len(text_of(marimo_chat(llm)(talk, Config()), most=2)) == 2
            assert inner.parse("What is 17 + 25?", int, temperature=0) == 42


def test_options_win_over_the_settings_of_the_element(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    with Llama(model, n_ctx=256, n_threads=1) as llm:
        prepare = llm.chat.prepare

        def recorded(messages: Any, options: Any, *args: Any, **more: Any) -> Any:
            seen.append(options)
            return prepare(messages, options, *args, **more)

        monkeypatch.setattr(llm.chat, "prepare", recorded)
        talk = [Message("user", "Hi")]
        text_of(marimo_chat(llm, max_tokens=3, seed=1)(talk, Config(temperature=None)))
    assert seen == [
        {"max_tokens": 3, "seed": 1, "top_p": 1, "top_k": 40, "frequency_penalty": 0,
         "presence_penalty": 0},
    ]  # fmt: skip


def test_attachments_and_other_models_are_refused(model: Model) -> None:
    with pytest.raises(ValidationError, match="llm must be a Llama or a LlamaPool, got 'gpt'"):
        marimo_chat("gpt")  # type: ignore[arg-type]
    with Llama(model, n_ctx=256, n_threads=1) as llm:
        for message in (
            Message("user", "Look", attachments=[object()]),
            Message("user", "Look", parts=[SimpleNamespace(type="file")]),
        ):
            with pytest.raises(ValidationError, match="has an attachment, which this model cannot"):
                text_of(marimo_chat(llm)([message], Config()))


def test_importing_it_imports_no_marimo() -> None:
    code = "import sys, llama_cffi.notebook.marimo_chat; sys.exit('marimo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
