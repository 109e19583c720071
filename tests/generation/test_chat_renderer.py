"""A conversation has one prompt, whatever its shape and the class; a GGUF may have templates."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage
from support.message_shapes import (
    ANSWER,
    CALL,
    CALLED,
    MEDIA,
    RESULT,
    SHAPES,
    TALK,
    TOOLS,
    USER,
    call,
    text,
)
from support.tiny_gguf import CHATML, write_tiny

from llama_cffi import Engine, InferenceEngine, Llama, LlamaPool, Model, UnifiedLLM
from llama_cffi.chat.formats import FORMATS
from llama_cffi.chat.template import ChatTemplate
from llama_cffi.errors import ValidationError
from llama_cffi.generation.chat_renderer import ChatRenderer
from llama_cffi.llama_cpp import Llama as DropIn

SHOWS_CALLS = (
    "{% if tools %}<|im_start|>tools {{ tools | tojson }}<|im_end|>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.tool_call_id }}\n{{ m.content }}"
    "{% for c in m.tool_calls or () %}{{ c.id }} {{ c.function | tojson }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
N_CTX = 2048
OPTIONS: dict[str, Any] = {"n_ctx": N_CTX, "n_threads": 1, "n_gpu_layers": 0}
FED = ("developer", "what we return", "functions", "every role in parts", "no ids", "refusal")


class Faces:
    """Every class over one model; each returns the tokens that it feeds for a conversation."""

    def __init__(self, path: Path) -> None:
        self._model = Model(path)
        self._engine = Engine(self._model, **OPTIONS)
        self._shared = InferenceEngine(self._model, 1, **OPTIONS)
        self._llm = Llama(self._model, **OPTIONS)
        self._pool = LlamaPool(self._model, 1, **OPTIONS)
        self._unified = UnifiedLLM(self._model, **OPTIONS)
        self._drop_in = DropIn(str(path), n_ctx=N_CTX, n_threads=1, verbose=False)

    def close(self) -> None:
        for face in (self._engine, self._shared, self._llm, self._pool, self._unified):
            face.close()  # type: ignore[attr-defined]
        self._drop_in.close()
        self._model.close()

    def rendered(self, messages: Any, tools: Any) -> dict[str, list[int]]:
        return {
            "Engine": self._engine.tokenize_chat(messages, tools),
            "InferenceEngine": self._shared.tokenize_chat(messages, tools),
            "Llama": self._llm.chat.prepare(messages, {"tools": tools}).request.tokens,
            "LlamaPool": self._pool.llm.chat.prepare(messages, {"tools": tools}).request.tokens,
            "llama_cpp": self._drop_in.renderer.render(messages, tools).tokens,
        }  # type: ignore[dict-item]

    def fed(self, messages: Any, tools: Any) -> list[list[int]]:
        seen: list[list[int]] = []

        def record(ids: Any, scores: Any) -> Any:
            seen.append(list(ids))
            return scores

        asked: dict[str, Any] = {"tools": tools, "max_tokens": 1, "logits_processor": record}
        self._llm.create_chat_completion(messages, **asked)
        self._drop_in.create_chat_completion(messages, **asked)
        asyncio.run(self._pool.create_chat_completion(messages, **asked))
        if tools is None:
            self._engine.generate_chat(messages, 1, logits_processor=record)
            self._unified.generate(messages, max_tokens=1, logits_processor=record)
        return seen


@pytest.fixture(scope="module", params=[CHATML, SHOWS_CALLS], ids=["chatml", "shows calls"])
def faces(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Faces]:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    found = Faces(write_tiny(path, n_layer=1, n_embd=32, n_ctx=N_CTX, chat_template=request.param))
    yield found
    found.close()


@pytest.mark.parametrize("what", SHAPES)
def test_every_class_renders_every_shape_as_its_plain_form(faces: Faces, what: str) -> None:
    shape = SHAPES[what]
    tools = TOOLS if shape.has_tools else None
    (expected, *others) = faces.rendered(shape.plain, tools).values()
    assert all(tokens == expected for tokens in others)
    for face, tokens in faces.rendered(shape.given, tools).items():
        assert tokens == expected, face


@pytest.mark.parametrize("what", FED)
def test_every_class_feeds_the_model_the_plain_form(faces: Faces, what: str) -> None:
    shape = SHAPES[what]
    tools = TOOLS if shape.has_tools else None
    expected = faces.rendered(shape.plain, tools)["Engine"]
    fed = faces.fed(shape.given, tools)
    assert fed == [expected] * (3 if shape.has_tools else 5)


@pytest.mark.parametrize("chat_format", [None, "chatml", ALTERNATES])
def test_media_and_unknown_roles_are_refused_without_a_template_too(
    tmp_path: Path, chat_format: str | None
) -> None:
    path = write_tiny(tmp_path / "m.gguf", n_layer=1, n_embd=32, chat_template=None)
    with Model(path, vocab_only=True) as model:
        renderer = ChatRenderer(model, chat_format)
        for part, kind in MEDIA:
            with pytest.raises(ValidationError, match=rf"messages\[0\].*\[1\] is .*'{kind}'"):
                renderer.render([{"role": "user", "content": [*text("Look:"), part]}])
        with pytest.raises(ValidationError, match="has the role 'wizard'"):
            renderer.render([{"role": "wizard", "content": "Hi"}])
        developer = [{"role": "developer", "content": "Be kind."}, USER]
        if chat_format != ALTERNATES:
            system = [{"role": "system", "content": "Be kind."}, USER]
            assert renderer.render(developer) == renderer.render(system)
            parts = [{**USER, "content": text("a", "b")}]
            assert renderer.render(parts) == renderer.render([{**USER, "content": "a\nb"}])


def named(**templates: str) -> list[dict[str, str]]:
    return [{"name": name, "template": source} for name, source in templates.items()]


def test_tools_are_rendered_by_the_template_tool_use(tmp_path: Path) -> None:
    templates = named(default=CHATML, tool_use="[TOOLS]" + SHOWS_CALLS, rag="[RAG]" + CHATML)
    path = write_tiny(tmp_path / "m.gguf", n_layer=1, n_embd=32, chat_template=templates)
    with TextFaces(path) as faces:
        for face, render in faces.items():
            assert render([USER], TOOLS).startswith("[TOOLS]"), face
            assert "[TOOLS]" not in render([USER], None), face
            assert "[TOOLS]" not in render([USER], []), face
            assert "Argvalue" in render(CALLED, TOOLS), face
    with Model(path, vocab_only=True) as model:
        for name, mark in (("rag", "[RAG]"), ("tool_use", "[TOOLS]"), ("default", "<|im_start|>")):
            for tools in (None, TOOLS):
                assert ChatRenderer(model, name).render([USER], tools).text.startswith(mark)
        own = ChatRenderer(model, ALTERNATES)
        assert not own.render([USER], TOOLS).text.startswith("[TOOLS]")


class TextFaces(dict[str, Any]):
    """Class -> the text that it renders."""

    def __init__(self, path: Path) -> None:
        self._engine = Engine(path, **OPTIONS)
        self._llm = Llama(path, **OPTIONS)
        self._drop_in = DropIn(str(path), n_ctx=N_CTX, n_threads=1, verbose=False)
        super().__init__(
            {
                "Engine": lambda chat, tools: self._engine.renderer.render(chat, tools).text,
                "Llama": lambda chat, tools: self._llm.renderer.render(chat, tools).text,
                "llama_cpp": lambda chat, tools: self._drop_in.renderer.render(chat, tools).text,
            }
        )

    def __enter__(self) -> TextFaces:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()
        self._llm.close()
        self._drop_in.close()


def test_the_format_of_calls_is_that_of_the_template_for_tools(tmp_path: Path) -> None:
    hermes = SHOWS_CALLS + '{# <tool_call> </tool_call> {"name": "arguments" #}'
    templates = named(default=CHATML, tool_use="<tool_call></tool_call>" + hermes)
    path = write_tiny(tmp_path / "m.gguf", n_layer=1, n_embd=32, chat_template=templates)
    alone = write_tiny(
        tmp_path / "alone.gguf", n_layer=1, n_embd=32, chat_template=templates[1]["template"]
    )
    with Model(path, vocab_only=True) as model, Model(alone, vocab_only=True) as single:
        expected = ChatRenderer(single).family.tool_format
        assert ChatRenderer(model).family.tool_format is expected
        assert ChatRenderer(model, "default").family.tool_format is not expected


def test_several_templates_without_a_default_are_named(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", n_layer=1, n_embd=32, chat_template=None)
    templates = named(rag="[RAG]" + CHATML, short="[SHORT]" + CHATML)
    several = write_tiny(tmp_path / "s.gguf", n_layer=1, n_embd=32, chat_template=templates)
    with Model(several, vocab_only=True) as model:
        with pytest.raises(ValidationError, match="available: 'rag', 'short'"):
            ChatRenderer(model)
        assert ChatRenderer(model, "short").render([USER]).text.startswith("[SHORT]")
    with Model(path, vocab_only=True) as model:
        assert ChatRenderer(model).render([USER]).text == USER["content"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("chat_format", [None, "chatml", ALTERNATES])
def test_calls_are_written_for_templates_that_drop_them(
    tmp_path: Path, name: str, chat_format: str | None
) -> None:
    path = write_tiny(tmp_path / "m.gguf", n_layer=1, n_embd=32, chat_template=None)
    form = FORMATS[name]
    with Model(path, vocab_only=True) as model:
        renderer = ChatRenderer(model, chat_format)
        renderer.family = type(renderer.family)(**{**vars(renderer.family), "tool_format": form})
        message = {**CALL, "content": "Wait."}
        shown = renderer.render([USER, message, RESULT]).text
        assert "Result of get_it: Resultvalue" in shown
        written = shown[shown.index("Wait.") + 6 : shown.index("Result of get_it")]
        (found,) = form.parse(written.split("<|im_end|>")[0].rstrip("\n"), TOOLS).tool_calls
        assert found.name == "get_it"
        assert json.loads(found.arguments) == {"a": "Argvalue"}


def test_results_become_one_user_message_where_the_template_has_no_role_for_them(
    tmp_path: Path,
) -> None:
    path = write_tiny(tmp_path / "m.gguf", n_layer=1, n_embd=32, chat_template=ALTERNATES)
    calls = [call({"a": "1"}, id="x"), call({"a": "2"}, "other", id="y")]
    results = [
        {"role": "tool", "tool_call_id": "x", "content": "One"},
        {"role": "tool", "tool_call_id": "y", "content": "Two"},
    ]
    messages = [USER, {**CALL, "tool_calls": calls}, *results, ANSWER, USER]
    with Model(path, vocab_only=True) as model:
        shown = ChatRenderer(model).render(messages).text
    assert "user\nResult of get_it: One\nResult of other: Two<|im_end|>" in shown
    assert not ChatTemplate(ALTERNATES).shows_results
    assert ChatTemplate(ALTERNATES).drops_calls
    assert ChatTemplate(SHOWS_CALLS).shows_results
    assert not ChatTemplate(SHOWS_CALLS).drops_calls


def test_the_oldest_turns_of_objects_are_dropped(tiny_model: Path) -> None:
    answer = ChatCompletionMessage(role="assistant", content="Answertext.")
    with Llama(tiny_model, n_ctx=160, n_threads=1, context_policy="drop_oldest_turns") as llm:
        fed = llm.chat.prepare([USER, answer] * 20 + [USER], {"max_tokens": 8}).request.tokens
        plain = llm.chat.prepare(TALK[:2] * 20 + [USER], {"max_tokens": 8}).request.tokens
        assert fed == plain
        assert len(fed) < llm.n_ctx
