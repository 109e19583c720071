"""Prompts that leave the cells, over HTTP: kept in RAM, and on disk across restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.http_requests import post
from support.rounding import EXACT

from llama_cffi import LlamaConfig
from llama_cffi.server.http_server import HttpServer
from llama_cffi.server.serving import serve

FIRST, *OTHERS = (f"{word} " * 90 for word in ("fox", "tree", "ship"))


def open_server(model: Path, **options: Any) -> HttpServer:
    config = LlamaConfig(n_parallel=2, n_ctx=512, n_threads=1, **EXACT, **options)
    return serve(model, config, port=0)


def answer(server: HttpServer, prompt: str) -> tuple[str, int]:
    """Return the text, and how many tokens of the prompt were cached."""
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0}
    reply = post(f"{server.url}/v1/completions", body).json
    return reply["choices"][0]["text"], reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def asked_again(server: HttpServer) -> int:
    """Return how many tokens were cached when a prompt came back after two others."""
    text, n_cached = answer(server, FIRST)
    assert n_cached == 0
    for prompt in OTHERS:  # there are two slots
        answer(server, prompt)
    again, n_cached = answer(server, FIRST)
    assert again == text
    return n_cached


@pytest.mark.behaviour(
    "idle slots: an idle slot moves to memory when another request needs its cells, and back"
)
def test_a_prompt_that_left_its_slot_comes_back(demo_f32: Path) -> None:
    with open_server(demo_f32) as server:
        assert asked_again(server) > 64


@pytest.mark.behaviour("idle slots: an option turns that off")
def test_without_memory_for_it_a_prompt_is_computed_again(demo_f32: Path) -> None:
    with open_server(demo_f32, cache_ram=0) as server:
        assert asked_again(server) < 8


@pytest.mark.behaviour("cache: a prompt in the disk cache is restored after a restart")
def test_a_restart_keeps_the_prompts_of_the_disk(demo_f32: Path, tmp_path: Path) -> None:
    with open_server(demo_f32, cache_dir=tmp_path) as server:
        text, _ = answer(server, FIRST)
    with open_server(demo_f32, cache_dir=tmp_path) as server:
        again, n_cached = answer(server, FIRST)
    assert again == text
    assert n_cached > 64


@pytest.mark.behaviour("cache: a corrupt file is dropped and the prompt computed")
def test_a_damaged_file_is_no_error(demo_f32: Path, tmp_path: Path) -> None:
    with open_server(demo_f32, cache_dir=tmp_path) as server:
        text, _ = answer(server, FIRST)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 4096]
    assert files
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with open_server(demo_f32, cache_dir=tmp_path) as server:
        assert answer(server, FIRST) == (text, 0)
