"""POST /infill: prefix, suffix, and further files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gguf
import pytest
from support.http_requests import post
from support.tiny_gguf import write_tiny

from llama_cffi import LlamaPool
from llama_cffi.server.http_server import HttpServer

PRE, SUF, MID, REP, SEP = range(259, 264)
ASK: dict[str, Any] = {"input_prefix": "def f(", "input_suffix": "return 1\n", "n_predict": 4}
ASK |= {"temperature": 0, "ignore_eos": True}


def fim_model(folder: Any, **parts: int) -> Any:
    def edit(writer: gguf.GGUFWriter) -> None:
        for name, token in parts.items():
            writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", token)

    control = [f"<fim{i}>" for i in range(5)]
    return write_tiny(folder / "fim.gguf", control=control, edit=edit)


@pytest.fixture(scope="module")
def fim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HttpServer, LlamaPool]]:
    """A server whose model knows repositories, and its model."""
    path = fim_model(tmp_path_factory.mktemp("fim"), pre=PRE, suf=SUF, mid=MID, rep=REP, sep=SEP)
    with (
        LlamaPool(path, n_parallel=2, n_ctx=256, n_threads=1) as pool,
        pool.serve() as server,
    ):
        yield server, pool


def infill(server: HttpServer, **fields: Any) -> Any:
    reply = post(f"{server.url}/infill", {**ASK, **fields})
    assert reply.status == 200, reply.body
    return reply.json


def same(server: HttpServer, tokens: list[int]) -> Any:
    """The answer to these tokens."""
    asked = {**ASK, "prompt": tokens}
    return post(f"{server.url}/completion", asked).json


@pytest.mark.behaviour(
    "infill: prefix, suffix and prompt",
)
def test_infill_puts_prefix_suffix_and_prompt_between_the_models_tokens(
    fim: tuple[HttpServer, LlamaPool],
) -> None:
    server, pool = fim

    def ids(text: str) -> list[int]:
        return pool.llm.tokenize(text, False)

    head = [REP, *ids("myproject\n"), SEP, *ids("filename\n")]
    core = [PRE, *ids("def f("), *ids("x"), SUF, *ids("return 1\n"), MID]
    found = infill(server, prompt="x")
    expected = same(server, [*head, *core])
    assert found["content"] == expected["content"]
    assert found["tokens_evaluated"] == len(head) + len(core)
    assert found["prompt"] == expected["prompt"]
    assert not found["truncated"]
    reply = post(f"{server.url}/infill", {**ASK, "prompt": "x", "stream": True})
    assert "".join(event["content"] for event in reply.events) == found["content"]


@pytest.mark.behaviour(
    "infill: other files in input_extra",
)
def test_infill_with_input_extra_begins_with_the_files(
    fim: tuple[HttpServer, LlamaPool],
) -> None:
    server, pool = fim

    def ids(text: str) -> list[int]:
        return pool.llm.tokenize(text, False)

    files = [{"filename": "a.py", "text": "A = 1\n"}, {"text": "B = 2\n"}]
    found = infill(server, input_extra=files)
    head = [REP, *ids("myproject\n"), SEP, *ids("a.py\nA = 1\n"), SEP, *ids("tmp\nB = 2\n")]
    core = [SEP, *ids("filename\n"), PRE, *ids("def f("), SUF, *ids("return 1\n"), MID]
    assert found["prompt"] == same(server, [*head, *core])["prompt"]


def test_infill_drops_the_oldest_files_that_do_not_fit_and_says_so(
    fim: tuple[HttpServer, LlamaPool],
) -> None:
    server, _ = fim
    files = [{"filename": "old", "text": "x" * 200}, {"filename": "new", "text": "y" * 50}]
    found = infill(server, input_extra=files)
    assert found["truncated"]
    assert found["tokens_evaluated"] == 256 - 4
    assert "new\n" + "y" * 50 in found["prompt"]
    assert "old" not in found["prompt"]
    reply = post(f"{server.url}/infill", {**ASK, "input_prefix": "x" * 300})
    assert (reply.status, reply.error["type"]) == (400, "exceed_context_size_error")


@pytest.mark.behaviour(
    "infill: bad input_extra is 400",
)
@pytest.mark.parametrize(
    "extra",
    [
        [{}],
        [{"filename": "ok"}],
        [{"filename": 123}],
        [{"filename": 123, "text": "abc"}],
        [{"filename": 123, "text": 456}],
        ["text"],
        {"text": "abc"},
    ],
)
def test_infill_with_bad_input_extra_is_400(fim: tuple[HttpServer, LlamaPool], extra: Any) -> None:
    server, _ = fim
    reply = post(f"{server.url}/infill", {**ASK, "input_extra": extra})
    assert reply.status == 400
    assert "input_extra" in reply.error["message"]


def test_infill_needs_both_texts(fim: tuple[HttpServer, LlamaPool]) -> None:
    server, _ = fim
    for name in ("input_prefix", "input_suffix"):
        for value in (None, 3, ["a"]):
            reply = post(f"{server.url}/infill", {**ASK, name: value})
            assert (reply.status, reply.error["param"]) == (400, name)


def test_infill_without_tokens_for_it_is_501(server: HttpServer) -> None:
    reply = post(f"{server.url}/infill", ASK)
    assert (reply.status, reply.error["type"]) == (501, "not_supported_error")
    assert "fill-in-the-middle" in reply.error["message"]


def test_infill_with_a_real_models_layout(tmp_path: Any) -> None:
    """Models of the older kind know no repositories, and have a separator in words."""
    path = fim_model(tmp_path, pre=PRE, suf=SUF, mid=MID)
    with LlamaPool(path, n_parallel=1, n_ctx=128, n_threads=1) as pool, pool.serve() as server:
        found = infill(server, input_extra=[{"text": "A"}])
        tokens = pool.llm.tokenize("\n\n--- snippet ---\n\nA", False)
        core = [PRE, *pool.llm.tokenize("def f(", False), SUF]
        tokens += [*core, *pool.llm.tokenize("return 1\n", False), MID]
        assert found["prompt"] == same(server, tokens)["prompt"]
