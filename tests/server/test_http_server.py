"""Servers in a thread: starting, stopping, several models, what is missing."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from support.children import Child
from support.http_requests import get, post

from llama_cffi import Llama, LlamaError, LlamaPool, ModelLoadError, ValidationError
from llama_cffi.api.config import LlamaConfig
from llama_cffi.server.app import create_app
from llama_cffi.server.http_server import HttpServer
from llama_cffi.server.serving import serve

CONFIG = LlamaConfig(n_parallel=2, n_ctx=128, n_threads=1)
ASK: dict[str, Any] = {"prompt": "abc", "max_tokens": 3, "temperature": 0}


def test_a_server_opens_its_models_and_closes_them(tiny_model: Path) -> None:
    before = {*threading.enumerate()}
    with serve(tiny_model, CONFIG, port=0) as server:
        assert server.is_running
        assert get(f"{server.url}/v1/models").json["data"][0]["id"] == "tiny"
        (model,) = server._state.models
        llm = model.llm
    assert llm.closed
    assert not server.is_running
    assert {*threading.enumerate()} <= before
    with pytest.raises(OSError):  # noqa: PT011  # refused
        get(f"{server.url}/health")
    server.close()  # does nothing


def test_an_open_model_stays_open(pool: LlamaPool) -> None:
    with pool.llm.serve() as server:
        assert post(f"{server.url}/v1/completions", ASK).status == 200
    assert not pool.llm.closed
    with pool.serve() as again:
        assert post(f"{again.url}/v1/completions", ASK).status == 200


def test_a_closed_model_is_503(tiny_model: Path) -> None:
    with Llama(tiny_model, n_parallel=2, n_ctx=64, n_threads=1) as llm, llm.serve() as server:
        llm.close()
        for reply in (get(f"{server.url}/health"), post(f"{server.url}/v1/completions", ASK)):
            assert reply.status == 503
            assert reply.error["type"] == "unavailable_error"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_died_is_told_and_not_asked_again(
    tiny_model: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Llama(tiny_model, n_parallel=2, n_ctx=64, n_threads=1) as llm, llm.serve() as server:

        def die() -> None:
            raise MemoryError("no more")

        engine: Any = llm.engine
        monkeypatch.setattr(engine._core, "step", die)
        reply = post(f"{server.url}/v1/completions", {**ASK, "stream": stream})
        if stream:
            assert reply.events[-1]["error"]["type"] == "server_error"
        else:
            assert reply.status == 500
            assert reply.headers["x-should-retry"] == "false"
        assert post(f"{server.url}/v1/completions", ASK).status == 500
        assert get(f"{server.url}/health").status == 503


def test_a_program_that_forgets_its_server_can_end(child: Child, tiny_model: Path) -> None:
    done = child(
        """
        import sys
        from llama_cffi import Llama
        server = Llama(sys.argv[1], n_parallel=2, n_ctx=64, n_threads=1).serve()
        print(server)
        """,
        tiny_model,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("<HttpServer http://127.0.0.1:")
    assert done.stderr == ""


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_without_n_parallel_is_served_too(tiny_model: Path, stream: bool) -> None:
    with Llama(tiny_model, n_ctx=64, n_threads=1) as llm, llm.serve() as server:
        alone = llm.create_completion("abc", max_tokens=3, temperature=0)["choices"][0]["text"]
        reply = post(f"{server.url}/v1/completions", {**ASK, "stream": stream})
        choices = [e["choices"][0] for e in (reply.events[:-1] if stream else [reply.json])]
        assert "".join(choice["text"] for choice in choices) == alone
        long = post(f"{server.url}/v1/completions", {"prompt": [5] * 300, "stream": stream})
        assert long.status == 400
        assert (long.error["n_prompt_tokens"], long.error["n_ctx"]) == (300, llm.n_ctx)


def test_several_models_are_chosen_by_name(pool: LlamaPool, tiny_model: Path) -> None:
    with HttpServer(create_app([pool, tiny_model], CONFIG), port=0) as server:
        names = [model["id"] for model in get(f"{server.url}/v1/models").json["data"]]
        assert names == ["demo", "tiny"]
        for name in names:
            reply = post(f"{server.url}/v1/completions", {**ASK, "model": name})
            assert reply.json["model"] == name
        unknown = post(f"{server.url}/v1/completions", {**ASK, "model": "gpt-9"})
        assert unknown.status == 404
        assert unknown.error["code"] == "model_not_found"
        assert "demo, tiny" in unknown.error["message"]
        assert post(f"{server.url}/v1/completions", ASK).error["param"] == "model"


def test_one_model_answers_to_any_name(url: str) -> None:
    reply = post(f"{url}/completions", {**ASK, "model": "gpt-9"})
    assert reply.status == 200
    assert reply.json["model"] == "demo"


def test_what_cannot_start_says_why(tiny_model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LlamaError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(tiny_model, CONFIG, port=port)
    with pytest.raises(LlamaError, match="cannot listen on"):
        serve(tiny_model, CONFIG, host="no-such-host.invalid", port=0)
    with pytest.raises((ModelLoadError, ValidationError), match="missing"):
        serve(tmp_path / "missing.gguf", CONFIG, port=0)
    with pytest.raises(ValidationError, match="no model"):
        create_app([])
    with pytest.raises(ValidationError, match="two models have the name"):
        create_app([tiny_model, tiny_model])
    with pytest.raises(ValidationError, match="a model must be"):
        create_app([5])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "settings",
    [
        {"api_keys": "secret"}, {"max_waiting": -1}, {"ping_s": 0}, {"max_body_bytes": 0},
        {"send_timeout_s": "x"}, {"cors_origins": [5]}, {"nonsense": 1},
    ],
)  # fmt: skip
def test_settings_are_checked(tiny_model: Path, settings: Any) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        create_app(tiny_model, **settings)


def test_the_app_needs_no_server_of_ours(tiny_model: Path) -> None:
    """Its models open and close with ASGI's lifespan."""
    app = create_app(tiny_model, CONFIG)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            (model,) = app.state.server.models
            assert not model.llm.closed

    asyncio.run(run())


def test_without_its_packages_it_says_what_to_install(child: Child, tiny_model: Path) -> None:
    done = child(
        """
        import sys
        sys.modules["starlette"] = sys.modules["uvicorn"] = None
        import llama_cffi
        from llama_cffi.server.serving import serve
        try:
            serve(sys.argv[1])
        except llama_cffi.LlamaError as e:
            print(e)
        """,
        tiny_model,
    )
    assert "pip install 'llama-cffi[server]'" in done.stdout, done.stderr


def test_importing_the_package_imports_no_server(child: Child) -> None:
    done = child("""
        import sys
        import llama_cffi
        from llama_cffi import Llama, LlamaPool
        print([name for name in ("starlette", "uvicorn") if name in sys.modules])
    """)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
def test_a_unix_socket(pool: LlamaPool, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as stale:  # of a server that was killed
        stale.bind(str(path))
    with pool.serve(str(path)) as server:
        assert server.url == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        with pytest.raises(LlamaError, match="another server listens there"):
            pool.serve(str(path))
    assert not path.exists()
    with pytest.raises(LlamaError, match="cannot listen on"):
        pool.serve(str(tmp_path / "missing" / "x.sock"))
