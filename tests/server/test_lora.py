"""GET and POST /lora-adapters, and the field `lora`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.http_requests import Reply, get, post
from support.loras import make_pairs, write_lora
from support.rounding import EXACT

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
        LlamaPool(tiny_model, 3, n_ctx=128, n_threads=1, adapters=adapters, **EXACT) as pool,
        pool.serve() as server,
    ):
        yield server, adapters


class Near(float):
    """A number that rounding may change."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(self - other) < 1e-3

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = float.__hash__


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "abcd"}], "max_tokens": 8}
CHAT |= {"temperature": 0, "ignore_eos": True}
# Routes that take `lora`, what they are asked, and where the answer is.
FACES: dict[str, tuple[dict[str, Any], Callable[[Reply], Any]]] = {
    "/v1/chat/completions": (CHAT, lambda reply: reply.json["choices"][0]["message"]["content"]),
    "/v1/chat/completions?stream": (
        {**CHAT, "stream": True},
        lambda reply: [e["choices"][0]["delta"] for e in reply.events[:-1]],
    ),
    "/v1/completions": (
        {"prompt": ASK["prompt"], "max_tokens": 8, "temperature": 0, "ignore_eos": True},
        lambda reply: reply.json["choices"][0]["text"],
    ),
    "/v1/responses": (
        {"input": "abcd", "max_output_tokens": 16, "temperature": 0, "ignore_eos": True},
        lambda reply: reply.json["output"][-1]["content"][0]["text"],
    ),
    "/v1/messages": (
        {**CHAT, "temperature": 0.0}, lambda reply: reply.json["content"][0]["text"]
    ),
    "/v1/decisions": (
        {"input": "abcd", "questions": [{"type": "predicate", "instructions": "True?"}]},
        lambda reply: Near(reply.json["answers"][0]["probability"]),
    ),
}  # fmt: skip


def text_of(server: HttpServer, **fields: Any) -> str:
    reply = post(f"{server.url}/completion", {**ASK, **fields})
    assert reply.status == 200, reply.body
    text: str = reply.json["content"]
    return text


def lora(*scales: float) -> list[dict[str, float]]:
    return [{"id": i, "scale": scale} for i, scale in enumerate(scales)]


@pytest.mark.behaviour("lora: scale 1 changes the text, and 0 changes it back")
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


@pytest.mark.behaviour("lora: parallel requests with scales of their own get texts of their own")
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


@pytest.mark.parametrize("path", FACES)
def test_every_route_that_generates_takes_adapters(
    adapted: tuple[HttpServer, dict[str, float]], path: str
) -> None:
    server, _ = adapted
    asked, read = FACES[path]

    def answer(**fields: Any) -> Any:
        reply = post(f"{server.url}{path}", {**asked, **fields})
        assert reply.status == 200, reply.body
        return read(reply)

    found = [answer(lora=scales) for scales in (lora(0.0, 0.0), lora(1.0), lora(0.0, 0.5), None)]
    assert found[0] != found[1] != found[2] != found[0]
    assert found[3] == found[2]  # what is set for requests without the field
    with ThreadPoolExecutor(3) as threads:
        given = [lora(0.0, 0.0), lora(1.0), lora(0.0, 0.5)]
        assert [*threads.map(lambda scales: answer(lora=scales), given)] == found[:3]
    for wrong in ("0", [{"id": 2, "scale": 1}], [{"id": 0, "scale": 1e9}]):
        reply = post(f"{server.url}{path}", {**asked, "lora": wrong})
        assert reply.status == 400
        assert reply.headers["content-type"] == "application/json"
        message = reply.json["error"]["message"]
        assert "lora" in message or "scale" in message


def test_the_instances_of_one_request_have_adapters_of_their_own(
    adapted: tuple[HttpServer, dict[str, float]],
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    one = {"@requestFormat": "/completion", **ASK}
    given = [lora(0.0, 0.0), lora(1.0), None]
    with (
        LlamaPool(tiny_model, 3, n_ctx=128, n_threads=1, adapters=adapted[1], **EXACT) as pool,
        pool.serve() as server,
    ):
        body = {"instances": [{**one, "lora": scales} for scales in given]}
        found = [
            each["content"] for each in post(f"{server.url}/predict", body).json["predictions"]
        ]
    expected = [text_of(adapted[0], lora=scales) for scales in (*given[:2], lora(0.0, 0.5))]
    assert found == expected
    assert len({*found}) == 3


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
        chat = post(f"{one.url}/v1/chat/completions", {**CHAT, "lora": lora(0.5)})
        assert (chat.status, chat.error["type"]) == (501, "not_supported_error")
        assert post(f"{one.url}/lora-adapters", lora(0.0)).status == 200
        assert text_of(one) == text_of(server, lora=lora(0.0))
