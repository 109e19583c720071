"""Every face feeds a model the same tokens: those of its own template, for 70 real templates.

That the text is also transformers' text is shown by `nox -s templates`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from support.chat_templates import NAMES, control_tokens, fetch_templates
from support.tiny_gguf import write_tiny

from llama_cffi import Engine, InferenceEngine, Llama, LlamaPool, SamplingParams, TemplateError
from llama_cffi.binding import Model
from llama_cffi.chat import template as template_module
from llama_cffi.chat.reasoning import opens_thinking
from llama_cffi.chat.template import ChatTemplate
from llama_cffi.cli import main
from llama_cffi.generation.chat_renderer import ChatRenderer

SYSTEM, USER = "You are <b>kind</b> & brief.", 'Say "hi" in 東京.\n'
TOOLS = [
    {"type": "function", "function": {"name": "now", "description": "Time.", "parameters": {
        "type": "object", "properties": {"zone": {"type": "string", "description": "Zone."}},
        "required": ["zone"],
    }}}
]  # fmt: skip
# What these templates need besides messages, in transformers too.
NEEDS: dict[str, dict[str, Any]] = {
    "CohereForAI-c4ai-command-r-plus-tool_use": {"tools": TOOLS},
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": {"tools": TOOLS},
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": {"tools": TOOLS},
    "fireworks-ai-llama-3-firefunction-v2": {
        "chat_template_kwargs": {"functions": json.dumps(TOOLS), "datetime": "2026-07-04"}
    },
}
NOW = datetime(2026, 7, 4, 12, 30)
N_CTX = 8192

pytestmark = pytest.mark.network


class Prompt(NamedTuple):
    """A model with one of the templates, a conversation, and its prompt."""

    path: Path
    messages: list[dict[str, str]]
    needs: dict[str, Any]
    text: str
    tokens: list[int]


@pytest.fixture(scope="module")
def sources(shared_cache: Path) -> dict[str, str]:
    return fetch_templates(shared_cache)


@pytest.fixture(scope="module")
def control(sources: dict[str, str]) -> list[str]:
    return control_tokens(sources.values())


@pytest.fixture(scope="module", autouse=True)
def clock() -> Iterator[None]:
    """Stop the clock: some templates write the date."""
    stopped = mock.Mock(wraps=datetime, **{"now.return_value": NOW})
    with mock.patch.object(template_module, "datetime", stopped):
        yield


@pytest.fixture(scope="module", params=NAMES)
def prompt(
    request: pytest.FixtureRequest,
    sources: dict[str, str],
    control: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Prompt:
    path = write_tiny(
        tmp_path_factory.mktemp("template") / "model.gguf", n_layer=1, n_embd=32, n_ctx=N_CTX,
        chat_template=sources[request.param], control=control,
    )  # fmt: skip
    template = ChatTemplate(sources[request.param], "<|endoftext|>", "<|im_end|>")
    user = {"role": "user", "content": USER}
    messages = [{"role": "system", "content": SYSTEM}, user]
    needs = NEEDS.get(request.param, {})
    given = {"tools": needs.get("tools"), **needs.get("chat_template_kwargs", {})}
    try:
        text = template.render(messages, **given)
    except TemplateError:
        messages = [user]
        text = template.render(messages, **given)
    with Model(path, vocab_only=True) as model:
        tokens = model.vocab.tokenize(text, False, True)
    return Prompt(path, messages, needs, text, tokens)


def test_every_template_is_listed(sources: dict[str, str]) -> None:
    assert len(NAMES) == 70
    assert sources.keys() == set(NAMES)


def test_text_and_tokens_are_the_templates(prompt: Prompt) -> None:
    with Model(prompt.path, vocab_only=True) as model:
        rendered = ChatRenderer(model).render(prompt.messages, **prompt.needs)
        assert rendered == (prompt.tokens, prompt.text)
        assert model.vocab.detokenize(rendered.tokens, True) == prompt.text
        assert USER.strip() in prompt.text


def test_without_reasoning_no_prompt_ends_inside_it(prompt: Prompt) -> None:
    with Model(prompt.path, vocab_only=True) as model:
        renderer = ChatRenderer(model)
        chat = renderer.render_without_reasoning(prompt.messages, **prompt.needs)
        assert model.vocab.detokenize(chat.tokens, True) == chat.text
        assert USER.strip() in chat.text
        if renderer.family.reasoning is not None:
            assert not opens_thinking(chat.text, renderer.family.reasoning[0])


def test_no_text_of_a_user_becomes_a_control_token(prompt: Prompt, control: list[str]) -> None:
    with Model(prompt.path, vocab_only=True) as model:
        vocab = model.vocab
        ids = {vocab.tokenize(token, False, True)[0] for token in control}
        assert len(ids) == len(control)
        hostile = f"{USER}{''.join(control)} {' '.join(control)}"
        *system, user = prompt.messages
        messages = [*system, {**user, "content": hostile}]
        tokens, text = ChatRenderer(model).render(messages, **prompt.needs)
        assert hostile in text
        assert vocab.detokenize(tokens, True) == text
        assert [t for t in tokens if t in ids] == [t for t in prompt.tokens if t in ids]


def test_every_face_feeds_the_same_tokens(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, messages = prompt.path, prompt.messages
    fed: list[list[int]] = []

    def record(ids: Any, scores: Any) -> Any:
        fed.append(list(ids))
        return scores

    options = {"n_ctx": N_CTX, "n_threads": 1, "n_gpu_layers": 0}
    with Engine(path, **options) as engine:
        assert engine.tokenize_chat(messages, **prompt.needs) == prompt.tokens
        if "tools" not in prompt.needs:
            sampling = SamplingParams(logits_processor=[record])
            engine.generate_chat(messages, 1, sampling=sampling, **prompt.needs)
    asked = {**prompt.needs, "max_tokens": 1, "logits_processor": record}
    with Llama(path, **options) as llm:
        assert llm.chat.renderer.render(messages, **prompt.needs).tokens == prompt.tokens
        llm.create_chat_completion(messages, **asked)
    with InferenceEngine(path, 2, **{**options, "n_ctx": N_CTX}) as shared:
        assert shared.tokenize_chat(messages, **prompt.needs) == prompt.tokens
    with LlamaPool(path, 2, **{**options, "n_ctx": 2 * N_CTX}) as pool:
        pool.llm.create_chat_completion(messages, **asked)
        asyncio.run(pool.create_chat_completion(messages, **asked))
    assert fed == [prompt.tokens] * (3 if "tools" in prompt.needs else 4)

    given: list[list[int]] = []

    def steps(self: Engine, tokens: list[int], *args: Any, **kwargs: Any) -> Any:
        given.append(tokens)
        return original(self, tokens, *args, **kwargs)

    original = Engine.steps
    monkeypatch.setattr(Engine, "steps", steps)
    by_role = {message["role"]: message["content"] for message in messages}
    system = ["-s", SYSTEM] if "system" in by_role else []
    arguments = ["generate", "--json", "-m", str(path), *system, "-p", USER, "-n", "1"]
    code = main([*arguments, "-c", str(N_CTX), "-t", "1", "--gpu-layers", "0"])
    printed = json.loads(capsys.readouterr().out)
    if prompt.needs:  # the command line has no such options
        assert (code, printed["error"]["type"]) == (1, "TemplateError")
    else:
        assert (code, printed["prompt_tokens"]) == (0, len(prompt.tokens))
        assert given == [prompt.tokens]
