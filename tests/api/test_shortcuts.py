"""complete and ask: one line from a model file to an answer."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_cffi import (
    Llama,
    Model,
    ModelLoadError,
    UnifiedLLM,
    UnknownOptionError,
    ValidationError,
    ask,
    complete,
    shutdown,
)
from llama_cffi.api import llama, shortcuts
from llama_cffi.demo import model_path

QUESTION = "What is 17 + 25?"
SMALL: dict[str, Any] = {"n_ctx": 256}


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    shortcuts._last = shortcuts._LastModel()
    others = [each for each in llama._open if not each.closed]  # of other tests
    for each in others:
        llama._open.discard(each)
    yield
    shutdown()
    llama._open.update(others)
    shortcuts._last = shortcuts._LastModel()


def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the path of every model that is loaded from now on."""
    seen: list[str] = []
    load = Model.__init__

    def counted(self: Model, path: Any, **options: Any) -> None:
        seen.append(str(path))
        load(self, path, **options)

    monkeypatch.setattr(Model, "__init__", counted)
    return seen


def test_the_answers_are_those_of_the_classes() -> None:
    with Llama(model_path(), **SMALL) as llm:
        text = llm.generate("Once upon a time", 20, temperature=0)
        stopped = llm.generate("Once upon a time", 20, temperature=0, stop=[" "])
    with UnifiedLLM(model_path(), **SMALL) as unified:
        answer = unified.generate(QUESTION, system_prompt="Be brief.", temperature=0)
        messages: Any = [{"role": "user", "content": QUESTION}]
        assert unified.generate(messages, temperature=0) == "42"
    assert complete("Once upon a time", model_path(), 20, temperature=0, **SMALL) == text
    assert complete(
        "Once upon a time", str(model_path()), 20, temperature=0, stop=[" "], **SMALL
    ) == (stopped)
    assert ask(QUESTION, model_path(), system_prompt="Be brief.", temperature=0, **SMALL) == answer
    assert ask(messages, model_path(), temperature=0, **SMALL) == "42"
    pieces = [*complete("Once upon a time", model_path(), 20, stream=True, temperature=0, **SMALL)]
    assert len(pieces) > 3
    assert "".join(pieces) == text
    assert "".join(ask(QUESTION, model_path(), stream=True, temperature=0, **SMALL)) == "42"


def test_the_model_of_the_last_call_is_kept(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    seen = loads(monkeypatch)
    for _ in range(3):
        assert ask(QUESTION, model_path(), temperature=0, **SMALL) == "42"
        complete("Hi", str(model_path()), 2, **SMALL)
    assert len(seen) == 1
    kept = shortcuts._last._llm
    assert kept is not None
    model = weakref.ref(kept.llm.model)
    del kept
    complete("Hi", tiny_model, 2, **SMALL)  # another model takes its place
    gc.collect()
    assert model() is None
    complete("Hi", tiny_model, 2, n_ctx=128)  # as do other settings
    assert len(seen) == 3
    shutdown()
    complete("Hi", tiny_model, 2, n_ctx=128)
    assert len(seen) == 4


def test_a_stream_survives_the_next_model(tiny_model: Path) -> None:
    stream = ask(QUESTION, model_path(), stream=True, temperature=0, **SMALL)
    first = next(stream)
    complete("Hi", tiny_model, 2, **SMALL)
    gc.collect()
    assert first + "".join(stream) == "42"


def test_threads_get_their_own_answers(tiny_model: Path) -> None:
    answers: list[str] = []

    def work(i: int) -> None:
        for _ in range(2):
            if i % 2:
                complete("Hi", tiny_model, 2, **SMALL)
            else:
                answers.append(ask(QUESTION, model_path(), temperature=0, **SMALL))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["42"] * 4


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        complete("Hi", tmp_path / "none.gguf")
    with pytest.raises(UnknownOptionError, match="temperature"):
        complete("Hi", model_path(), temperatur=1, **SMALL)  # type: ignore[call-overload]
    with pytest.raises(ValidationError, match="max_tokens"):
        ask("Hi", model_path(), 0, **SMALL)
    with pytest.raises(ValidationError, match="logprobs"):
        complete("Hi", model_path(), logprobs=3, **SMALL)
    with Model(model_path()) as model, pytest.raises(ValidationError, match="use Llama"):
        ask("Hi", model)  # type: ignore[call-overload]
