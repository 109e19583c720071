"""/tokenize, /detokenize, /apply-template."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gguf
import pytest
from support.http_requests import post
from support.tiny_gguf import write_tiny

from llama_cffi import LlamaPool


@pytest.mark.behaviour("tokenize: tokens go round")
@pytest.mark.parametrize("text", ["a cat", "été 🙂", "", " two  spaces "])
def test_tokens_go_round(url: str, text: str) -> None:
    tokens = post(f"{url}/tokenize", {"content": text}).json["tokens"]
    assert post(f"{url}/detokenize", {"tokens": tokens}).json == {"content": text}


@pytest.mark.behaviour("tokenize: pieces are text, or bytes of a character")
def test_pieces_are_text_or_bytes(url: str) -> None:
    tokens = post(f"{url}/tokenize", {"content": "a🙂", "with_pieces": True}).json["tokens"]
    pieces = [token["piece"] for token in tokens]
    joined = b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in pieces)
    assert joined == "a🙂".encode()
    assert any(isinstance(piece, list) for piece in pieces)


@pytest.mark.behaviour("tokenize: the first token is BOS with add_special")
def test_the_first_token_is_bos_with_add_special(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.add_bos_token"].value = True

    path = write_tiny(tmp_path / "bos.gguf", edit=edit)
    with LlamaPool(path, 1, n_ctx=64, n_threads=1) as pool, pool.serve() as server:
        for special, bos in ((True, [256]), (False, []), (None, [])):
            asked = {"content": "ab", "add_special": special}
            tokens = post(f"{server.url}/tokenize", asked).json["tokens"]
            assert tokens == [*bos, *pool.llm.tokenize("ab", False)]


def test_special_tokens_are_parsed_on_request(url: str, pool: LlamaPool) -> None:
    for parse in (True, False):
        reply = post(f"{url}/tokenize", {"content": "<|im_end|>", "parse_special": parse})
        assert reply.json["tokens"] == pool.llm.tokenize("<|im_end|>", False, parse)


@pytest.mark.behaviour("chat: /apply-template returns the prompt without running")
def test_the_template_is_applied_without_running(url: str, pool: LlamaPool) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    reply = post(f"{url}/apply-template", {"messages": messages})
    assert reply.json == {"prompt": pool.llm.renderer.render(messages).text}


# The end of a prompt as four families of models write it.
QWEN3 = """<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}"""
DEEPSEEK = "<|im_start|>assistant\n{% if thinking %}<think>{% else %}</think>{% endif %}"
ALWAYS = "<|im_start|>assistant\n<think>\n"
NEVER = "<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"


@pytest.mark.behaviour("template: thinking on, automatic and off change the end of the prompt")
@pytest.mark.behaviour("template: add_generation_prompt on and off")
@pytest.mark.behaviour("template: the date is in the prompt where the template asks for it")
@pytest.mark.parametrize(
    ("ending", "switch", "on", "auto", "off"),
    [
        (QWEN3, "enable_thinking", "", "", NO_THOUGHT),
        (DEEPSEEK, "thinking", "<think>", "</think>", "</think>"),
        (ALWAYS, "enable_thinking", "<think>\n", "<think>\n", "<think>\n"),
        (NEVER, "enable_thinking", "", "", ""),
    ],
    ids=["qwen3", "deepseek", "always", "never"],
)
def test_the_end_of_the_prompt_says_whether_the_model_thinks(
    tmp_path: Path, ending: str, switch: str, on: str, auto: str, off: str
) -> None:
    template = (
        "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        f"{{% if add_generation_prompt %}}{ending}{{% endif %}}"
    )
    path = write_tiny(tmp_path / "tiny.gguf", chat_template=template)
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
    with LlamaPool(path, 1, n_ctx=64, n_threads=1) as pool, pool.serve() as server:

        def prompt(**fields: Any) -> str:
            reply = post(f"{server.url}/apply-template", {**asked, **fields})
            assert reply.status == 200, reply.body
            found: str = reply.json["prompt"]
            return found

        days = {time.strftime("%Y-%m-%d")}
        text = prompt()
        days.add(time.strftime("%Y-%m-%d"))
        head = "<|im_start|>user\nhello<|im_end|>\n"
        assert text[:11] in {f"{day} " for day in days}
        assert text[11:] == f"{head}<|im_start|>assistant\n{auto}"
        for value, end in ((True, on), (False, off)):
            told = prompt(chat_template_kwargs={switch: value})
            assert told[11:] == f"{head}<|im_start|>assistant\n{end}"
        assert prompt(add_generation_prompt=False)[11:] == head


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("tokenize", {}), ("tokenize", {"content": 5}), ("tokenize", {"content": []}),
        ("tokenize", {"content": "x", "add_special": "yes"}), ("detokenize", {}),
        ("detokenize", {"tokens": "x"}), ("detokenize", {"tokens": [10**9]}),
        ("detokenize", {"tokens": [-1]}), ("detokenize", {"tokens": [2**70]}),
        ("detokenize", {"tokens": ["x"]}), ("detokenize", {"tokens": [True]}),
        ("apply-template", {}), ("apply-template", {"messages": [5]}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_400(url: str, path: str, body: Any) -> None:
    reply = post(f"{url}/{path}", body)
    assert reply.status == 400, reply.body
    assert reply.error["type"] == "invalid_request_error"
