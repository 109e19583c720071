"""GET and POST /lora-adapters, and the field `lora`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.http_requests import get, post
from support.loras import make_pairs, write_lora

from llama_cffi import LlamaPool
from llama_cffi.server.http_server import HttpServer

ASK: dict[str, Any] = {"prompt": [5, 6, 7, 8] * 10, "n_predict": 8, "temperature": 0}
ASK["ignore_eos"] = True


@pytest.fixture(scope="module")
def adapted(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[HttpServer, dict[str, float]]]:
    """A server with two adapters, and these."""
    folder = tmp_path_factory.mktemp("loras")
    files = [str(write_lora(folder / f"{i}.gguf", make_pairs(i))) for i in (1, 2)]
    adapters = {files[0]: 0.0, files[1]: 0.5}
    with (
        LlamaPool(tiny_model, n_parallel=3, n_ctx=128, n_threads=1, adapters=adapters) as pool,
        pool.serve() as server,
    ):
        yield server, adapters


def text_of(server: HttpServer, **fields: Any) -> str:
    reply = post(f"{server.url}/completion", {**ASK, **fields})
    assert reply.status == 200, reply.body
    text: str = reply.json["content"]
    return text


def lora(*scales: float) -> list[dict[str, float]]:
    return [{"id": i, "scale": scale} for i, scale in enumerate(scales)]


@pytest.mark.behaviour(
    "lora: scale 1 changes the text, and 0 changes it back",
)
def test_lora_scale_changes_the_text_and_back(
    adapted: tuple[HttpServer, dict[str, float]], tiny_model: Path
) -> None:
    server, adapters = adapted
    route = f"{server.url}/lora-adapters"
    with LlamaPool(tiny_model, n_parallel=2, n_ctx=128, n_threads=1) as pool, pool.serve() as none:
        plain = text_of(none)
        assert get(f"{none.url}/lora-adapters").json == []
        assert text_of(none, lora=[]) == plain
        reply = post(f"{none.url}/completion", {**ASK, "lora": lora(1.0)})
        assert "start the server with --lora" in reply.error["message"]
    listed = [
        {"id": i, "path": path, "scale": scale} for i, (path, scale) in enumerate(adapters.items())
    ]
    assert get(route).json == listed
    before = text_of(server)
    assert before == text_of(server, lora=lora(0.0, 0.5)) != plain
    assert post(route, lora(0.0)).json == {"success": True}  # those that are not given: 0
    assert [adapter["scale"] for adapter in get(route).json] == [0.0, 0.0]
    assert text_of(server) == plain
    assert post(route, lora(0.0, 0.5)).status == 200
    assert text_of(server) == before


@pytest.mark.behaviour(
    "lora: parallel requests with scales of their own get texts of their own",
)
def test_lora_per_request_scales_in_parallel_each_give_their_own_text(
    adapted: tuple[HttpServer, dict[str, float]],
) -> None:
    server, _ = adapted
    scales = [lora(0.0, 0.0), lora(1.0), lora(0.0, 1.0), lora(0.5, -0.5), lora(0.0, 0.1)]
    alone = [text_of(server, lora=given) for given in scales]
    assert len({*alone}) >= 4
    with ThreadPoolExecutor(10) as threads:
        together = [*threads.map(lambda given: text_of(server, lora=given), scales * 2)]
    assert together == alone * 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([3], "must be"),
        ([{"id": 0}], "scale"),
        ([{"id": 0, "scale": "1"}], "a number"),
        ([{"id": 0, "scale": True}], "a number"),
        ([{"id": 2, "scale": 1}], "ids: 0 to 1"),
        ([{"id": -1, "scale": 1}], "ids: 0 to 1"),
        ([{"id": "0", "scale": 1}], "ids: 0 to 1"),
        ([{"id": 0, "scale": 1e9}], "scale"),
    ],
)
def test_wrong_adapters_are_400(
    adapted: tuple[HttpServer, dict[str, float]], given: Any, words: str
) -> None:
    server, adapters = adapted
    for reply in (
        post(f"{server.url}/lora-adapters", given),
        post(f"{server.url}/completion", {**ASK, "lora": given}),
    ):
        assert reply.status == 400, reply.body
        assert words in reply.error["message"]
    assert post(f"{server.url}/lora-adapters", 3).status == 400
    assert [a["scale"] for a in get(f"{server.url}/lora-adapters").json] == [*adapters.values()]


def test_one_slot_has_adapters_of_single_requests_too(
    adapted: tuple[HttpServer, dict[str, float]], tiny_model: Path
) -> None:
    server, adapters = adapted
    expected = text_of(server, lora=lora(1.0))
    with (
        LlamaPool(tiny_model, 1, n_ctx=128, n_threads=1, adapters=adapters) as pool,
        pool.serve() as one,
    ):
        assert text_of(one, lora=lora(1.0)) == expected
    first = next(iter(adapters))
    with (
        LlamaPool(tiny_model, 1, n_ctx=128, n_threads=1, lora_path=first) as pool,
        pool.serve() as one,
    ):
        assert text_of(one) == expected
        assert [a["scale"] for a in get(f"{one.url}/lora-adapters").json] == [1.0]
        reply = post(f"{one.url}/completion", {**ASK, "lora": lora(0.5)})
        assert (reply.status, reply.error["type"]) == (501, "not_supported_error")
        assert post(f"{one.url}/lora-adapters", lora(0.0)).status == 200
        assert text_of(one) == text_of(server, lora=lora(0.0))
