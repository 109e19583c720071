"""/tokenize, /detokenize, /apply-template."""

from __future__ import annotations

from typing import Any

import pytest
from support.http_requests import post

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


def test_special_tokens_are_parsed_on_request(url: str, pool: LlamaPool) -> None:
    for parse in (True, False):
        reply = post(f"{url}/tokenize", {"content": "<|im_end|>", "parse_special": parse})
        assert reply.json["tokens"] == pool.llm.tokenize("<|im_end|>", False, parse)


@pytest.mark.behaviour("chat: /apply-template returns the prompt without running")
def test_the_template_is_applied_without_running(url: str, pool: LlamaPool) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    reply = post(f"{url}/apply-template", {"messages": messages})
    assert reply.json == {"prompt": pool.llm.renderer.render(messages).text}


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
