"""Several models: on demand, within limits, asleep when idle; presets, folders, and the routes."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from support.http_requests import Reply, connect, get, post, request_bytes, send
from support.server_state import wait_for
from support.split_gguf import write_split
from support.strict_sdk import assert_strict
from support.tiny_gguf import write_tiny

from llama_cffi import Llama, LlamaError, UnknownOptionError, ValidationError
from llama_cffi.api.config import LlamaConfig
from llama_cffi.errors import (
    CancelledError,
    FetchError,
    ModelLoadError,
    OutOfMemoryError,
    QueueFullError,
)
from llama_cffi.server import served_model
from llama_cffi.server.errors import ApiError
from llama_cffi.server.http_server import HttpServer
from llama_cffi.server.model_card import ModelCard
from llama_cffi.server.models import Models, ModelState, ServedModel
from llama_cffi.server.presets import read_presets
from llama_cffi.server.residency import Residency
from llama_cffi.server.serving import serve
from llama_cffi.server.settings import Settings

CONFIG = LlamaConfig(n_parallel=2, n_ctx=64, n_threads=1)
ASK: dict[str, Any] = {"prompt": "abc", "max_tokens": 2, "temperature": 0}
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models."""
    path = tmp_path_factory.mktemp("several")
    for seed, name in enumerate(NAMES):
        write_tiny(path / f"{name}.gguf", n_layer=1, n_embd=32, seed=seed)
    return path


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Loads wait until it is set, as slow ones do."""
    event, load = threading.Event(), ServedModel.open

    def open_slowly(model: ServedModel, cancelled: threading.Event) -> None:
        while not (event.wait(0.002) or cancelled.is_set()):
            pass
        load(model, cancelled)

    monkeypatch.setattr(ServedModel, "open", open_slowly)
    yield event
    event.set()


def state(server: HttpServer, name: str) -> str:
    """What `GET /models` says."""
    (found,) = [m for m in get(f"{server.url}/models").json["data"] if m["id"] == name]
    value: str = found["status"]["value"]
    return value


def states(server: HttpServer) -> list[str]:
    return [m["status"]["value"] for m in get(f"{server.url}/models").json["data"]]


def ask(server: HttpServer, name: str, **more: Any) -> Reply:
    return post(f"{server.url}/v1/completions", {**ASK, "model": name, **more})


def routed(server: HttpServer, action: str, name: str, **headers: str) -> Reply:
    return post(f"{server.url}/models/{action}", {"model": name}, **headers)


# Over HTTP


def test_several_models_are_loaded_by_their_first_request(folder: Path) -> None:
    with serve(models_dir=folder, config=CONFIG, port=0) as server:
        unloaded = get(f"{server.url}/v1/models").json["data"]
        assert states(server) == ["unloaded"] * 3
        assert ask(server, "b").json["model"] == "b"
        assert states(server) == ["unloaded", "loaded", "unloaded"]
        # The header says what the loaded model says.
        assert [m["meta"] for m in get(f"{server.url}/v1/models").json["data"]] == [
            m["meta"] for m in unloaded
        ]
        assert unloaded[0]["meta"]["n_ctx"] == 64
        assert unloaded[0]["architecture"] == {
            "input_modalities": ["text"], "output_modalities": ["text"],
        }  # fmt: skip
        assert get(f"{server.url}/health").status == 200
        assert states(server) == ["unloaded", "loaded", "unloaded"]
        with serve(folder / "b.gguf", CONFIG, port=0) as alone:
            assert state(alone, "b") == "loaded"  # a single one: at the start
            assert ask(alone, "b").json["choices"] == ask(server, "b").json["choices"]


@pytest.mark.behaviour("router: the properties tell of each model")
def test_router_props_have_a_role(folder: Path) -> None:
    with serve(models_dir=folder, port=0, models_max=2, models_autoload=False) as server:
        props = get(f"{server.url}/props").json
        assert (props["role"], props["max_instances"]) == ("router", 2)
        assert props["models_autoload"] is False
        assert "llama_cffi" in props["build_info"]
        own = get(f"{server.url}/props?model=b").json
        assert own["model_alias"] == "b"
        assert own["is_sleeping"] is False
        assert state(server, "b") == "unloaded"  # reading does not load


@pytest.mark.behaviour(
    "router: a request by name streams, and an unknown model is an error",
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.behaviour("router: a request by name streams, and an unknown model is an error")
def test_router_streams_and_refuses_unknown_models(folder: Path, stream: bool) -> None:
    with serve(models_dir=folder, config=CONFIG, port=0) as server:
        known = ask(server, "a", stream=stream)
        assert known.status == 200
        unknown = ask(server, "nothing", stream=stream)
        assert unknown.status == 404
        assert unknown.error["code"] == "model_not_found"
        for action in ("load", "unload"):
            assert routed(server, action, "nothing").status == 404
            assert post(f"{server.url}/models/{action}", {}).error["param"] == "model"


@pytest.mark.behaviour(
    "router: a model can be unloaded",
    "router: with autoload off a request for an unloaded model is 400",
)
def test_models_are_loaded_and_unloaded_on_request(folder: Path) -> None:
    with serve(models_dir=folder, config=CONFIG, port=0, models_autoload=False) as server:
        refused = ask(server, "a")
        assert refused.status == 400
        assert refused.error["code"] == "model_not_loaded"
        assert "/models/load" in refused.error["message"]
        assert "not loaded" in routed(server, "unload", "a").error["message"]
        assert routed(server, "load", "a").json == {"success": True}
        wait_for(lambda: state(server, "a") == "loaded")
        assert "already loaded" in routed(server, "load", "a").error["message"]
        assert ask(server, "a").status == 200
        assert routed(server, "unload", "a").json == {"success": True}
        wait_for(lambda: state(server, "a") == "unloaded")
        assert ask(server, "a").status == 400
        allowed = post(f"{server.url}/v1/completions?autoload=true", {**ASK, "model": "a"})
        assert allowed.status == 200


def test_a_busy_model_is_unloaded_after_its_answer_and_comes_back(folder: Path) -> None:
    with serve(models_dir=folder, config=CONFIG, port=0) as server:
        assert ask(server, "a").status == 200
        model = server._state.models.find("a")
        engine: Any = model.llm.engine
        engine.pause()
        first: list[Reply] = []
        thread = threading.Thread(target=lambda: first.append(ask(server, "a")))
        thread.start()
        wait_for(lambda: model.n_calls == 1)
        assert routed(server, "unload", "a").status == 200
        assert not model.llm.closed
        engine.resume()
        thread.join()
        assert first[0].status == 200
        wait_for(lambda: model.state is ModelState.UNLOADED)
        assert ask(server, "a").json["choices"] == first[0].json["choices"]


@pytest.mark.behaviour("router: keys guard models, too")
def test_router_routes_need_the_key(folder: Path) -> None:
    with serve(models_dir=folder, config=CONFIG, port=0, api_keys=["secret"]) as server:
        assert get(f"{server.url}/models").status == 200
        assert get(f"{server.url}/models?reload=1").status == 401
        assert routed(server, "load", "a").status == 401
        assert routed(server, "unload", "a").status == 401
        assert state(server, "a") == "unloaded"
        assert routed(server, "load", "a", authorization="Bearer secret").status == 200
        wait_for(lambda: state(server, "a") == "loaded")


def test_an_open_model_is_never_unloaded(folder: Path) -> None:
    with (
        Llama(folder / "a.gguf", CONFIG) as llm,
        serve([llm, folder / "b.gguf"], CONFIG, port=0, models_max=1, sleep_idle_s=0.001) as server,
    ):
        assert ask(server, "b").status == 200
        assert ask(server, "a").status == 200
        assert "belongs to the program" in routed(server, "unload", "a").error["message"]
        wait_for(lambda: states(server) == ["loaded", "sleeping"])
        assert not llm.closed


@pytest.mark.behaviour("router: presets can be read again")
def test_presets_are_read_again_on_request(folder: Path, tmp_path: Path) -> None:
    presets = tmp_path / "models.ini"

    def write(*sections: str) -> None:
        presets.write_text("\n".join(sections))

    def section(name: str, more: str = "") -> str:
        return f"[{name}]\nmodel = {folder / 'a.gguf'}\n{more}\n"

    def reloaded(server: HttpServer) -> Reply:
        return get(f"{server.url}/models?reload=1")

    write(section("one"), section("two"), section("three"))
    with serve(models_preset=presets, config=CONFIG, port=0) as server:
        for name in ("one", "two", "three"):
            assert ask(server, name).status == 200
        gone, kept, changed = server._state.models
        write(section("two"), section("three", "n_ctx = 32"), section("four"))
        assert [m["id"] for m in reloaded(server).json["data"]] == ["two", "three", "four"]
        assert ask(server, "one").status == 404
        wait_for(lambda: not (gone.is_open or changed.is_open))
        assert next(iter(server._state.models)) is kept
        assert states(server) == ["loaded", "unloaded", "unloaded"]
        assert ask(server, "three").status == 200
        wrong = section("two", "n_ctxx = 1")
        write(wrong)
        assert "n_ctx" in reloaded(server).error["message"]
        assert len(states(server)) == 3


def test_a_failed_load_is_told_and_tried_again(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "b.gguf", tmp_path / "b.gguf")
    broken = tmp_path / "a.gguf"
    broken.write_bytes((folder / "a.gguf").read_bytes()[:3000])
    with serve(models_dir=tmp_path, config=CONFIG, port=0) as server:
        for stream in (False, True):
            reply = ask(server, "a", stream=stream)
            assert reply.status == 500
            assert "a.gguf" in reply.error["message"]
            assert reply.headers["x-should-retry"] == "false"
        told = get(f"{server.url}/v1/models/a").json
        assert told["meta"] is None
        assert told["status"]["failed"] is True
        assert "a.gguf" in told["status"]["error"]
        assert ask(server, "b").status == 200  # the others are served
        shutil.copy(folder / "a.gguf", broken)
        assert ask(server, "a").status == 200
        assert get(f"{server.url}/v1/models/a").json["status"] == {"value": "loaded"}


# Sleep


def sleeping(server: HttpServer, name: str) -> bool:
    found: bool = get(f"{server.url}/props?model={name}").json["is_sleeping"]
    return found


@pytest.fixture
def sleeper(folder: Path) -> Iterator[HttpServer]:
    """A server whose only model sleeps as soon as it is idle."""
    with serve(folder / "a.gguf", CONFIG, port=0, sleep_idle_s=0.001, metrics=True) as server:
        yield server


@pytest.mark.behaviour("sleep: an idle model sleeps, and the next request wakes it")
def test_an_idle_model_sleeps_and_the_next_request_wakes_it(sleeper: HttpServer) -> None:
    model = sleeper._state.models.find(None)
    wait_for(lambda: sleeping(sleeper, "a"))  # also if no request came
    wait_for(lambda: not model.is_open)
    assert get(f"{sleeper.url}/health").status == 200
    with serve(model.entry.path, CONFIG, port=0) as awake:
        assert ask(sleeper, "a").json["choices"] == ask(awake, "a").json["choices"]
    wait_for(lambda: sleeping(sleeper, "a"))
    assert ask(sleeper, "a", stream=True).events[-1] == "[DONE]"


@pytest.mark.behaviour(
    "sleep: reading /health, /props, /models and /metrics neither wakes nor delays",
)
def test_reads_neither_wake_nor_delay(sleeper: HttpServer) -> None:
    wait_for(lambda: state(sleeper, "a") == "sleeping")
    told = [
        get(sleeper.url + path).json for path in ("/v1/models", "/v1/models/a", "/props", "/health")
    ]
    assert told[0]["data"][0]["meta"] == told[1]["meta"]
    assert told[2]["chat_template"]
    assert get(f"{sleeper.url}/metrics").status == 200
    assert state(sleeper, "a") == "sleeping"


@pytest.mark.behaviour("sleep: counters survive the sleep")
def test_counters_survive_sleep(sleeper: HttpServer) -> None:
    def predicted() -> float:
        lines = get(f"{sleeper.url}/metrics").body.decode().splitlines()
        (line,) = [x for x in lines if x.startswith("llamacpp:tokens_predicted_total ")]
        return float(line.split()[-1])

    totals = []
    for _ in range(3):
        assert ask(sleeper, "a").json["usage"]["completion_tokens"] == 2
        wait_for(lambda: state(sleeper, "a") == "sleeping")
        totals.append(predicted())
        body = get(f"{sleeper.url}/metrics").body
        assert get(f"{sleeper.url}/metrics").body == body
    assert totals == [2, 4, 6]
    assert post(f"{sleeper.url}/v1/embeddings", {"input": "abc", "model": "a"}).status == 200
    wait_for(lambda: state(sleeper, "a") == "sleeping")
    body += get(f"{sleeper.url}/metrics").body
    assert b'vllm:request_success_total{model_name="a",finished_reason="stop"} 1' in body
    assert b'vllm:request_success_total{model_name="a",finished_reason="length"} 3' in body
    assert b'vllm:request_generation_tokens_count{model_name="a"} 3' in body


@pytest.mark.behaviour("sleep: counting tokens wakes the model")
def test_token_counting_wakes(sleeper: HttpServer) -> None:
    wait_for(lambda: state(sleeper, "a") == "sleeping")
    assert post(f"{sleeper.url}/tokenize", {"content": "abc"}).json["tokens"]
    wait_for(lambda: state(sleeper, "a") == "sleeping")
    chat = {"messages": [{"role": "user", "content": "abc"}]}
    counted = post(f"{sleeper.url}/v1/chat/completions/input_tokens", chat)
    assert counted.json["input_tokens"] > 3


# Limits and order, without HTTP


def run(folder: Path, test: Callable[[Models], Awaitable[None]], **settings: Any) -> None:
    """Run a test with the models of the folder; free them."""

    async def body() -> None:
        models = Models((), CONFIG, Settings(models_dir=folder, **settings))
        try:
            await asyncio.wait_for(test(models), 60)
        finally:
            models.residency.stop()
            await models.residency.join()
            models.close()
        assert not any(model.is_open for model in models)

    asyncio.run(body())


def loaded(models: Models) -> list[str]:
    return [model.name for model in models if model.state is ModelState.LOADED]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def use(models: Models, *names: str) -> None:
    for name in names:
        await models.residency.hold(models.find(name))
        models.residency.release(models.find(name))


@pytest.mark.behaviour(
    "router: at the limit the model unused for the longest goes, and never a busy one",
)
def test_at_the_limit_the_longest_idle_model_goes(folder: Path) -> None:
    async def test(models: Models) -> None:
        await use(models, "a", "b", "a", "c")
        assert loaded(models) == ["a", "c"]
        await use(models, "b")
        assert loaded(models) == ["b", "c"]

    run(folder, test, models_max=2)


@pytest.mark.behaviour(
    "router: at the limit the model unused for the longest goes, and never a busy one",
)
def test_a_busy_model_never_goes(folder: Path) -> None:
    async def test(models: Models) -> None:
        a, b = models.find("a"), models.find("b")
        await models.residency.hold(a)
        await use(models, "b", "c")
        assert loaded(models) == ["a", "c"]
        await models.residency.hold(models.find("c"))
        waiting = asyncio.ensure_future(models.residency.hold(b))
        await until(lambda: a.is_leaving)
        assert loaded(models) == ["a", "c"]  # nobody makes place
        again = asyncio.ensure_future(models.residency.hold(a))  # after the one that waits
        models.residency.release(models.find("c"))  # sooner than the one that was to leave
        await asyncio.gather(waiting, again)
        assert loaded(models) == ["a", "b"]
        assert a.n_calls == 2

    run(folder, test, models_max=2)


@pytest.mark.behaviour("router: requests that wait for one model share its load")
def test_equal_waiting_requests_share_one_load(folder: Path, gate: threading.Event) -> None:
    async def test(models: Models) -> None:
        a = models.find("a")
        opened: list[None] = []
        real = a.open
        a.open = lambda cancelled: opened.append(real(cancelled))  # type: ignore[method-assign]
        waiting = [asyncio.ensure_future(models.residency.hold(a)) for _ in range(5)]
        await until(lambda: a.state is ModelState.LOADING)
        gate.set()
        await asyncio.gather(*waiting)
        assert a.n_calls == 5
        assert len(opened) == 1

    run(folder, test)


@pytest.mark.behaviour(
    "router: a client that leaves does not cancel the load",
)
@pytest.mark.parametrize("n_leaving", [1, 2])
@pytest.mark.behaviour("router: a client that leaves does not cancel the load")
def test_a_client_that_leaves_does_not_cancel_the_load(
    folder: Path, gate: threading.Event, n_leaving: int
) -> None:
    with serve(models_dir=folder, config=CONFIG, port=0) as server:
        model = server._state.models.find("a")
        clients = []
        for _ in range(n_leaving):
            clients.append(connect(server.url))
            clients[-1].sendall(request_bytes("/v1/completions", {**ASK, "model": "a"}))
        wait_for(lambda: len(server._state.calls) == n_leaving and state(server, "a") == "loading")
        for client in clients:
            client.close()
        wait_for(lambda: not server._state.calls)
        assert state(server, "a") == "loading"
        gate.set()
        wait_for(lambda: state(server, "a") == "loaded")
        assert model.n_calls == 0
        assert ask(server, "a").status == 200


@pytest.mark.behaviour("router: loads are first come, first served, and waiters share an eviction")
def test_waiting_requests_are_served_in_order(folder: Path) -> None:
    async def test(models: Models) -> None:
        order = []

        async def visit(name: str) -> None:
            await models.residency.hold(models.find(name))
            order.append(name)
            await asyncio.sleep(0)
            models.residency.release(models.find(name))

        await models.residency.hold(models.find("a"))
        waiting = []
        for name in ("b", "c", "a"):  # the last one is loaded, but has to go first
            waiting.append(asyncio.ensure_future(visit(name)))
            await until(lambda: models.find("a").is_leaving)
        models.residency.release(models.find("a"))
        await asyncio.gather(*waiting)
        assert order == ["b", "c", "a"]

    run(folder, test, models_max=1)


@pytest.mark.behaviour("router: loads are first come, first served, and waiters share an eviction")
def test_two_waiters_are_one_eviction(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    real = Residency._close

    def close(self: Residency, model: ServedModel, then: ModelState) -> Any:
        closed.append(model.name)
        return real(self, model, then)

    monkeypatch.setattr(Residency, "_close", close)

    async def test(models: Models) -> None:
        await use(models, "a", "b")
        c = models.find("c")
        await asyncio.gather(*[models.residency.hold(c) for _ in range(2)])
        assert closed == ["a"]
        assert loaded(models) == ["b", "c"]

    run(folder, test, models_max=2)


def test_nobody_makes_place_for_clients_that_have_left(folder: Path, gate: threading.Event) -> None:
    async def test(models: Models) -> None:
        first = asyncio.ensure_future(models.residency.hold(models.find("a")))
        left = asyncio.ensure_future(models.residency.hold(models.find("b")))
        await until(lambda: models.find("b").state is ModelState.LOADING)
        left.cancel()
        gate.set()
        await first
        await until(lambda: models.find("b").state is ModelState.UNLOADED)
        assert loaded(models) == ["a"]

    run(folder, test)


def test_models_share_the_memory(folder: Path) -> None:
    size = ServedModel(next(iter(Models((), CONFIG, Settings(models_dir=folder)))).entry, 1)
    need = size.estimate()
    assert need > (folder / "a.gguf").stat().st_size * 0.9

    async def test(models: Models) -> None:
        await use(models, "a", "b", "c")
        assert loaded(models) == ["b", "c"]

    run(folder, test, models_memory=int(2.5 * need))

    async def too_small(models: Models) -> None:
        with pytest.raises(OutOfMemoryError, match="models_memory"):
            await use(models, "a")

    run(folder, too_small, models_memory=need - 1)


def test_each_waiter_is_told_why_a_load_failed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    shutil.copy(folder / "a.gguf", tmp_path / "y.gguf")

    async def test(models: Models) -> None:
        x = models.find("x")
        found = await asyncio.gather(
            *[models.residency.hold(x) for _ in range(3)], return_exceptions=True
        )
        assert [type(error) for error in found] == [ModelLoadError] * 3
        assert x.state is ModelState.UNLOADED
        assert x.n_calls == 0
        await use(models, "y")

    run(tmp_path, test)


def test_unloading_cancels_a_load(folder: Path, gate: threading.Event) -> None:
    async def test(models: Models) -> None:
        a, b = models.find("a"), models.find("b")
        waiting = [asyncio.ensure_future(models.residency.hold(m)) for m in (a, b)]
        await until(lambda: b.state is ModelState.LOADING)
        for model in (b, a):  # b waits for a
            models.residency.unload(model)
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in found] == [CancelledError] * 2
        await until(lambda: {a.state, b.state} == {ModelState.UNLOADED})
        gate.set()
        await use(models, "a")

    run(folder, test)


def test_a_request_after_unloading_loads_again(folder: Path, gate: threading.Event) -> None:
    async def test(models: Models) -> None:
        a = models.find("a")
        first = asyncio.ensure_future(models.residency.hold(a))
        await until(lambda: a.progress == 0 and models.residency._current is not None)
        models.residency.unload(a)
        second = asyncio.ensure_future(models.residency.hold(a))
        with pytest.raises(CancelledError, match="cancelled"):
            await first
        gate.set()
        await second
        assert a.n_calls == 1
        models.residency.unload(a)  # after that request
        third = asyncio.ensure_future(models.residency.hold(a))
        await use(models, "b")  # which does not wait for it
        assert not third.done()
        models.residency.release(a)
        await third
        assert loaded(models) == ["a", "b"]

    run(folder, test)


def test_only_so_many_requests_wait_for_a_load(folder: Path, gate: threading.Event) -> None:
    async def test(models: Models) -> None:
        a = models.find("a")
        waiting = [asyncio.ensure_future(models.residency.hold(a)) for _ in range(3)]
        await until(lambda: a.state is ModelState.LOADING)
        with pytest.raises(QueueFullError, match="3 requests wait until a is loaded, of at most 3"):
            await models.residency.hold(a)
        gate.set()
        await asyncio.gather(*waiting)

    run(folder, test, max_waiting=1)  # and two that run


def test_a_server_that_stops_while_a_model_loads_ends_cleanly(
    folder: Path, gate: threading.Event
) -> None:
    before = threading.active_count()
    replies: list[Reply] = []
    with serve(models_dir=folder, config=CONFIG, port=0) as server:
        models = [*server._state.models]
        threads = [
            threading.Thread(target=lambda n=name: replies.append(ask(server, n)))
            for name in ("a", "b")
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: states(server)[:2] == ["loading", "loading"])
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies] == [503, 503]
    assert "shutting down" in replies[0].error["message"]
    assert not any(model.is_open for model in models)
    wait_for(lambda: threading.active_count() == before)


def test_a_download_delays_no_other_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, asked = threading.Event(), []

    def resolve(source: str) -> Path:
        if not source.startswith("hf:"):
            return Path(source)
        asked.append(source)
        assert arrived.wait(60)
        if len(asked) == 1:
            raise FetchError("the hub does not answer")
        return folder / "a.gguf"

    monkeypatch.setattr(served_model, "resolve_model", resolve)

    async def body() -> None:
        models = Models(["hf:o/r", str(folder / "b.gguf")], CONFIG, Settings())
        remote, b = models
        assert remote.card is None
        waiting = asyncio.ensure_future(models.residency.hold(remote))
        await until(lambda: asked == ["hf:o/r"])
        await models.residency.hold(b)
        assert not waiting.done()
        arrived.set()
        with pytest.raises(FetchError, match="does not answer"):
            await waiting
        assert remote.failure == "the hub does not answer"
        await models.residency.hold(remote)
        assert remote.card is not None
        models.residency.stop()
        await models.residency.join()
        models.close()

    asyncio.run(body())


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_requests_keeps_the_limits(folder: Path, seed: int) -> None:
    rng = random.Random(seed)

    async def test(models: Models) -> None:
        residency = models.residency

        async def visit() -> None:
            model = models.find(rng.choice(NAMES))
            await asyncio.sleep(rng.random() / 50)
            try:
                await residency.hold(model)
            except CancelledError:  # by the unloading below
                return
            try:
                for _ in range(rng.randrange(4)):
                    assert not model.llm.closed
                    assert sum(m.is_open for m in models) <= 2
                    await asyncio.sleep(rng.random() / 500)
            finally:
                residency.release(model)

        tasks = [asyncio.ensure_future(visit()) for _ in range(40)]
        for task in tasks:
            await asyncio.sleep(0.0005)
            if rng.random() < 0.2:
                task.cancel()
            if rng.random() < 0.1:
                with suppress(ApiError):
                    residency.unload(models.find(rng.choice(NAMES)))
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        for name in NAMES:  # nothing is left behind
            await residency.hold(models.find(name))
            residency.release(models.find(name))
        assert not any(model.n_calls for model in models)

    run(folder, test, models_max=2, sleep_idle_s=0.002)


# Presets and folders


def test_presets_have_defaults_and_own_settings(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "a.gguf", tmp_path / "a.gguf")
    file = tmp_path / "models.ini"
    file.write_text(
        "version = 1 ; of the format\n; all\n[*] ; defaults\nctx-size = 48  # tokens\n"
        "flash-attn = off\nn_batch = 32\n\n"
        "[first]\nmodel = a.gguf\nalias = one, uno\ntags = small,random\nparallel = 3\n"
        "load-on-startup = true\n\n[second]\nmodel = ./a.gguf\nn_ctx = 0\nflash-attn = auto\n\n"
        "[owner/repo:Q8_0]\ntensor_split = 1, 0.5\nrope_freq_base = 1e4\n"
    )
    first, second, third = read_presets(file, CONFIG)
    assert first.aliases == ("first", "one", "uno")
    assert first.tags == ("small", "random")
    assert (first.preload, second.preload) == (True, False)
    assert (first.config.n_ctx, first.config.n_parallel, first.config.n_batch) == (48, 3, 32)
    assert (first.config.n_threads, first.config.flash_attn) == (1, False)
    assert (second.config.n_ctx, second.config.flash_attn) == (0, None)
    assert third.source == "hf:owner/repo:Q8_0"
    assert (third.config.tensor_split, third.config.rope_freq_base) == ([1, 0.5], 1e4)
    with serve(models_preset=file, config=CONFIG, port=0) as server:
        told = get(f"{server.url}/v1/models").json["data"]
        assert [m["status"]["value"] for m in told] == ["loaded", "unloaded", "unloaded"]
        assert set(told[0]["aliases"]) == {"first", "one", "uno"}
        assert set(told[0]["tags"]) == {"small", "random"}
        assert told[0]["meta"]["n_ctx"] == 48
        assert told[2]["meta"] is None  # not fetched yet
        assert ask(server, "uno").json["model"] == "first"


def test_the_example_of_the_docs_is_right(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    (tmp_path / "x.ini").write_text(text.split("```ini\n")[1].split("```")[0], encoding="utf-8")
    chat, remote = read_presets(tmp_path / "x.ini", CONFIG)
    assert chat.aliases == ("chat", "gpt-4o", "assistant")
    assert (chat.source, chat.preload) == (str(tmp_path / "models/chat.gguf"), True)
    assert (chat.config.n_parallel, chat.config.n_ctx) == (8, 8192)
    assert (remote.source, remote.config.type_k) == ("hf:owner/repo:Q4_K_M", "q8_0")


def test_presets_may_leave_sizes_to_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "models.ini"
    file.write_text("[a]\nmodel = a.gguf\nc = auto\nngl = Auto\nfa = auto\n")
    (entry,) = read_presets(file, CONFIG)
    assert (entry.config.n_ctx, entry.config.n_gpu_layers) == ("auto", "auto")
    assert entry.config.flash_attn is None


def test_presets_in_toml_are_the_same(tmp_path: Path) -> None:
    ini, toml = tmp_path / "x.ini", tmp_path / "x.toml"
    ini.write_text("[*]\nn_ctx = 48\n[m]\nmodel = a.gguf\naliases = n,o\nuse_mmap = no\n")
    toml.write_text(
        'version = 1\n["*"]\nn_ctx = 48\n[m]\nmodel = "a.gguf"\naliases = ["n", "o"]\n'
        "use_mmap = false\n"
    )
    assert read_presets(ini, CONFIG) == read_presets(toml, CONFIG)
    toml.write_text('[m]\nmodel = "a.gguf"\nkv_overrides = {"llama.context_length" = 128}\n')
    (entry,) = read_presets(toml, CONFIG)
    assert entry.config.kv_overrides == {"llama.context_length": 128}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[m]\nmodel = a\nn_ctxx = 5\n", UnknownOptionError, r"\[m\] has no option.*'n_ctx'"),
        ("[m]\nmodel = a\nctx-sise = 5\n", UnknownOptionError, "'ctx_size'"),
        ("[*]\nctx = 5\n[m]\nmodel = a\n", UnknownOptionError, r"\[\*\] has no option 'ctx'"),
        ("[m]\nmodel = a\nn_ctx = x\n", ValidationError, "n_ctx must be an integer, got 'x'"),
        ("[m]\nmodel = a\nn_ctx = -1\n", ValidationError, r"\[m\]: n_ctx"),
        ("[m]\nmodel = a\nuse_mmap = 7x\n", ValidationError, r"use_mmap must be"),
        ("[m]\nmodel = a\npreload = maybe\n", ValidationError, "preload must be true or false"),
        ("[m]\nmodel = a\nc = 1\nn_ctx = 2\n", ValidationError, "n_ctx twice, also as n_ctx"),
        ("[m]\nn_ctx = 1\n", ValidationError, r"\[m\] has no model"),
        ("[m]\nmodel = a\n[m]\nmodel = b\n", ValidationError, r"line 3: .*\[m\] is there twice"),
        ("version = 1\nmodel = a\n", ValidationError, "line 2: 'model = a' is in no section"),
        ("version = 2\n[m]\nmodel = a\n", ValidationError, "version must be 1, got 2"),
        ("[m]\nmodel a\n", ValidationError, "line 2 is neither"),
    ],
)
def test_wrong_presets_say_what_is_wrong(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    file = tmp_path / "models.ini"
    file.write_text(text)
    with pytest.raises(error, match=message):
        read_presets(file, CONFIG)
    with pytest.raises(ValidationError, match="cannot read the presets"):
        read_presets(tmp_path / "missing.ini", CONFIG)


@pytest.mark.behaviour("router: a model in the cache is listed once")
def test_a_folder_hides_what_is_no_other_model(folder: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "mmproj-a.gguf", "notes.txt", ".hidden.gguf"):
        shutil.copy(folder / "a.gguf", tmp_path / name)
    for sub, inside in (("one", ["x.gguf"]), ("two", ["x.gguf", "y.gguf"]), ("none", [])):
        (tmp_path / sub).mkdir()
        for name in inside:
            shutil.copy(folder / "b.gguf", tmp_path / sub / name)
    (tmp_path / "parts").mkdir()
    write_split(tmp_path / "parts")
    (tmp_path / "parts" / "whole.gguf").unlink()
    presets = tmp_path / "models.ini"
    presets.write_text("[mine]\nmodel = one/x.gguf\n[two/y]\nmodel = a.gguf\n")

    def names(**settings: Any) -> list[str]:
        found = Models((), CONFIG, Settings(models_dir=tmp_path, **settings))
        return [model.name for model in found]

    assert names() == ["a", "one", "parts", "two/x", "two/y"]
    # One file is one model unless two sections say otherwise, and a name means one.
    assert names(models_preset=presets) == ["mine", "two/y", "parts", "two/x"]
    with pytest.raises(ValidationError, match="no model in"):
        Models((), CONFIG, Settings(models_dir=tmp_path / "none"))
    with pytest.raises(ValidationError, match="cannot read the folder"):
        Models((), CONFIG, Settings(models_dir=tmp_path / "missing"))


@pytest.mark.behaviour("basics: a GGUF in several files is loaded and answers")
def test_a_model_in_several_files_is_loaded_and_answers(tmp_path: Path) -> None:
    first, *_ = write_split(tmp_path, name="parted")
    with serve(models_dir=tmp_path, config=CONFIG, port=0) as server:
        whole, parted = ask(server, "whole"), ask(server, "parted")
        assert parted.json["choices"] == whole.json["choices"]
    with serve(first, CONFIG, port=0) as server:
        assert ask(server, "any").json["choices"] == parted.json["choices"]


def test_preloading_is_a_choice(folder: Path, tmp_path: Path) -> None:
    paths = [folder / f"{name}.gguf" for name in NAMES]
    with serve(paths, CONFIG, port=0, preload=True) as server:
        assert states(server) == ["loaded"] * 3
    with serve(paths[0], CONFIG, port=0, preload=False) as server:
        assert states(server) == ["unloaded"]
        assert ask(server, "any name").json["model"] == "a"
    with pytest.raises(ValidationError, match=r"3 models .* models_max is 2"):
        serve(paths, CONFIG, port=0, preload=True, models_max=2)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(LlamaError, match=r"bad\.gguf"):
        serve([paths[0], tmp_path / "bad.gguf"], CONFIG, port=0, preload=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"models_max": -1}, {"models_memory": -1}, {"models_autoload": "no"}, {"preload": "yes"},
        {"sleep_idle_s": 0}, {"models_dir": 5}, {"tags": "one"},
    ],
)  # fmt: skip
def test_the_settings_are_checked(settings: Any) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Settings(**settings)


@pytest.mark.behaviour(
    "router: with autoload off a request for an unloaded model is 400",
)
def test_a_request_without_autoload_joins_a_load(folder: Path, gate: threading.Event) -> None:
    async def test(models: Models) -> None:
        a = models.find("a")
        with pytest.raises(ApiError, match="not loaded"):
            await models.residency.hold(a, autoload=False)
        models.residency.load(a)
        joined = asyncio.ensure_future(models.residency.hold(a, autoload=False))
        gate.set()
        await joined
        assert a.n_calls == 1

    run(folder, test, models_autoload=False)


@pytest.fixture
def deleting(folder: Path, tmp_path: Path) -> Iterator[HttpServer]:
    """A server that may delete `a`, `b` in two parts, `sub` in a folder, and the link `link`."""
    for path in (tmp_path / "models" / "sub", tmp_path / "other"):
        path.mkdir(parents=True)
    inside = tmp_path / "models"
    shutil.copy(folder / "a.gguf", inside)
    for i in (1, 2):
        shutil.copy(folder / "b.gguf", inside / f"b-{i:05}-of-00002.gguf")
    shutil.copy(folder / "b.gguf", inside / "sub" / "m.gguf")
    shutil.copy(folder / "c.gguf", tmp_path / "other" / "m.gguf")
    (inside / "link.gguf").symlink_to(tmp_path / "other" / "m.gguf")
    (inside / "away").symlink_to(tmp_path / "other")
    (inside / "notes.txt").write_text("kept")
    with serve(folder / "c.gguf", CONFIG, models_dir=inside, allow_delete=True, port=0) as server:
        yield server


def names(server: HttpServer) -> set[str]:
    return {model["id"] for model in get(f"{server.url}/models").json["data"]}


@pytest.mark.behaviour("router: a model can be deleted")
def test_a_model_is_deleted_with_its_files(deleting: HttpServer, tmp_path: Path) -> None:
    inside = tmp_path / "models"
    before = names(deleting)
    assert before == {"a", "b", "sub", "link", "c", "away"}
    with openai.OpenAI(base_url=f"{deleting.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.models.delete("a")
        assert_strict(answer)
        assert (answer.id, answer.deleted) == ("a", True)
        with pytest.raises(openai.NotFoundError):
            client.models.delete("a")
    assert not (inside / "a.gguf").exists()
    for name in ("b", "sub", "link"):
        reply = send("DELETE", f"{deleting.url}/models?model={name}")
        assert reply.json == {"success": True}
    assert sorted(path.name for path in inside.iterdir()) == ["away", "notes.txt", "sub"]
    assert not [*(inside / "sub").iterdir()]
    assert (tmp_path / "other" / "m.gguf").exists()  # where the links lead
    assert names(deleting) == {"c", "away"}
    assert ask(deleting, "a").status == 404
    get(f"{deleting.url}/models?reload=1")
    assert names(deleting) == {"c", "away"}
    assert send("DELETE", f"{deleting.url}/models").status == 404


def test_only_what_is_below_the_folder_is_deleted(deleting: HttpServer, tmp_path: Path) -> None:
    for name in ("c", "away"):  # of -m, and behind a link
        reply = send("DELETE", f"{deleting.url}/v1/models/{name}")
        assert (reply.status, reply.error["type"]) == (403, "permission_error")
    for name in ("../other/m.gguf", "notes.txt", "m", "%2e%2e/other/m"):
        assert send("DELETE", f"{deleting.url}/v1/models/{name}").status == 404
    assert (tmp_path / "other" / "m.gguf").exists()
    assert (tmp_path / "models" / "notes.txt").exists()
    assert {"c", "away"} <= names(deleting)


def test_a_model_in_use_is_not_deleted(
    deleting: HttpServer, tmp_path: Path, gate: threading.Event
) -> None:
    path, url = tmp_path / "models" / "a.gguf", f"{deleting.url}/v1/models/a"
    assert post(f"{deleting.url}/models/load", {"model": "a"}).status == 200
    for word in ("loading", "loaded"):
        wait_for(lambda word=word: state(deleting, "a") == word)  # type: ignore[misc]
        reply = send("DELETE", url)
        assert (reply.status, reply.error["param"]) == (400, "model")
        assert f"is {word}" in reply.error["message"]
        gate.set()
    assert ask(deleting, "a").status == 200
    assert post(f"{deleting.url}/models/unload", {"model": "a"}).status == 200
    wait_for(lambda: send("DELETE", url).status == 200)
    assert not path.exists()


def test_a_file_that_cannot_be_deleted_stays_a_model(
    deleting: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        reply = send("DELETE", f"{deleting.url}/v1/models/a")
    assert reply.status == 500
    assert "Permission denied" in reply.error["message"]
    assert (tmp_path / "models" / "a.gguf").exists()
    assert ask(deleting, "a").status == 200


def test_nothing_is_deleted_unless_the_option_allows_it(folder: Path) -> None:
    with serve(models_dir=folder, port=0, api_keys=["secret"]) as server:
        assert send("DELETE", f"{server.url}/v1/models/a").status == 401
        reply = send("DELETE", f"{server.url}/v1/models/a", None, {"x-api-key": "secret"})
        assert (reply.status, reply.error["type"]) == (501, "not_supported_error")
        assert "--allow-delete" in reply.error["message"]
    assert (folder / "a.gguf").exists()


def test_a_shared_kv_cache_is_estimated_by_its_own_size(folder: Path) -> None:
    path = str(folder / "a.gguf")
    own, shared, small = (
        ModelCard.of_file(path, LlamaConfig(n_parallel=2, n_ctx=64, n_threads=1, n_kv_tokens=n))
        for n in (None, 256, 32)
    )
    assert small.memory_bytes < own.memory_bytes < shared.memory_bytes
    assert [card.n_ctx for card in (own, shared, small)] == [64, 64, 32]
    with Llama(path, n_parallel=2, n_ctx=64, n_threads=1, n_kv_tokens=256) as llm:
        assert ModelCard.of(llm).memory_bytes == shared.memory_bytes
        assert llm.n_ctx == 64
