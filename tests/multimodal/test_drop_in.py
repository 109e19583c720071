"""The drop-in's handlers of images, on the one path over the model's own template."""

from __future__ import annotations

import base64
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from multimodal.conftest import Files, picture
from PIL import Image
from support.tiny_gguf import write_tiny

import llama_cffi
from llama_cffi.llama_cpp import Llama, llama_chat_format
from llama_cffi.llama_cpp.llama_chat_format import Llava15ChatHandler, MoondreamChatHandler

HANDLERS = sorted(
    name for name in llama_chat_format.__all__
    if isinstance(found := getattr(llama_chat_format, name), type)
    and issubclass(found, Llava15ChatHandler)
)  # fmt: skip


def ask(seed: int, text: str = "what?") -> list[Any]:
    """Return a message as programs for llama-cpp-python write it."""
    file = io.BytesIO()
    Image.fromarray(picture(seed, 30, 20)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    parts = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return [{"role": "user", "content": parts}]


def text(response: Any) -> str:
    return str(response["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def opened(files: dict[str, Files]) -> Iterator[Llama]:
    handler = Llava15ChatHandler(clip_model_path=str(files["janus_pro"].mmproj), verbose=False)
    with Llama(files["janus_pro"].model, chat_handler=handler, n_ctx=512, n_threads=1) as llm:
        yield llm


def test_a_handler_answers_as_llama_cffi_does(opened: Llama, files: dict[str, Files]) -> None:
    found = [text(opened.create_chat_completion(ask(i), max_tokens=8, temperature=0))
             for i in (1, 2)]  # fmt: skip
    assert found[0] != found[1]
    assert opened.modalities == ("text", "image")
    with llama_cffi.Llama(
        files["janus_pro"].model, mmproj=files["janus_pro"].mmproj, n_ctx=512, n_threads=1
    ) as llm:
        assert text(llm.create_chat_completion(ask(1), max_tokens=8, temperature=0)) == found[0]


def test_streams_and_text_alone(opened: Llama) -> None:
    whole = text(opened.create_chat_completion(ask(1), max_tokens=8, temperature=0))
    chunks = opened.create_chat_completion(ask(1), max_tokens=8, temperature=0, stream=True)
    deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(deltas) == whole
    assert opened.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=2)


@pytest.mark.parametrize("name", HANDLERS)
def test_every_name_is_the_same_path(name: str, opened: Llama) -> None:
    handler = getattr(llama_chat_format, name)(opened.config.mmproj)
    expected = opened.create_chat_completion(ask(1), max_tokens=4, temperature=0)
    found = handler(llama=opened, messages=ask(1), max_tokens=4, temperature=0)
    assert text(found) == text(expected)


def test_a_model_without_a_template_gets_the_handlers(
    files: dict[str, Files], tmp_path: Path
) -> None:
    model = write_tiny(tmp_path / "model.gguf", chat_template=None, n_embd=64, n_ctx=512)
    handler = MoondreamChatHandler(files["janus_pro"].mmproj)
    with Llama(model, chat_handler=handler, n_ctx=512, n_threads=1) as llm:
        done = llm.create_chat_completion(ask(1), max_tokens=2)
        n_text = len(llm.tokenize(b"\n\nQuestion: what?\n\nAnswer:", False))
        assert done["usage"]["prompt_tokens"] in (n_text + 16, n_text + 17)  # 17: BOS


def test_a_subclass_sets_the_format_and_the_system_message(
    opened: Llama, files: dict[str, Files]
) -> None:
    class Mine(Llava15ChatHandler):
        CHAT_FORMAT = "{% for m in messages %}{{ m.content }}{% endfor %}{{ ending }}"
        DEFAULT_SYSTEM_MESSAGE = "abc"

    handler = Mine(files["janus_pro"].mmproj, ending="de")
    done = handler(llama=opened, messages=ask(1, "fgh"), max_tokens=1)
    assert done["usage"]["prompt_tokens"] == len("abcfghde") + 16


def test_it_is_opened_again_from_a_pickle(opened: Llama) -> None:
    with pickle.loads(pickle.dumps(opened)) as again:
        assert text(again.create_chat_completion(ask(1), max_tokens=4, temperature=0)) == text(
            opened.create_chat_completion(ask(1), max_tokens=4, temperature=0)
        )
