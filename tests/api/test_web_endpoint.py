"""A web endpoint as everybody writes it, over real sockets: clients that leave harm no others."""

from __future__ import annotations

import http.client
import json
import logging
import random
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from support.rounding import EXACT

from llama_cffi import Llama, LlamaPool

PROMPTS = [f"{i}: once upon a time" for i in range(20)]
OPTIONS: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
RESET = struct.pack("ii", 1, 0)  # with SO_LINGER: `close` sends RST


def event(chunk: Any) -> str:
    return f"data: {json.dumps(chunk['choices'][0]['text'])}\n\n"


def sync_app(llm: Llama, n_threads: int) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = n_threads
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/{i}")
    def answer(i: int) -> StreamingResponse:
        def events() -> Iterator[str]:
            for chunk in llm.create_completion(PROMPTS[i], stream=True, **OPTIONS):
                yield event(chunk)

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def async_app(pool: LlamaPool) -> FastAPI:
    app = FastAPI()

    @app.get("/{i}")
    async def answer(i: int) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            stream = await pool.llm.create_completion_async(PROMPTS[i], stream=True, **OPTIONS)
            async for chunk in stream:
                yield event(chunk)

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


@contextmanager
def served(app: FastAPI) -> Iterator[int]:
    """Serve *app* in a thread; provide its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=30))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        listener.close()


def read(port: int, i: int, leaves: int | None) -> tuple[int, str]:
    """Request answer *i*, and leave after so many events; return the status and the text."""
    text, n = "", 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/{i}")
    assert connection.sock is not None
    if i % 2 and leaves is not None:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    if leaves == 0:
        connection.close()
        return 200, ""
    with closing(connection), connection.getresponse() as response:
        for line in response:
            if line.startswith(b"data: "):
                text, n = text + json.loads(line[6:]), n + 1
            if n == leaves:
                break
        return response.status, text


@pytest.mark.parametrize(
    ("n_parallel", "n_threads"),
    [(1, 40), (1, 3), (4, 40), (4, 3), (4, None)],
    ids=["one context", "with 3 threads", "n_parallel", "n_parallel with 3 threads", "LlamaPool"],
)
def test_clients_that_leave_at_random_harm_no_others(
    demo_f32: Path, n_parallel: int, n_threads: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    seed = random.randrange(10**6)
    leaves = [None, 0, *random.Random(seed).choices([None, 0, *range(1, 9)], [8, *[1] * 9], k=18)]
    options: Any = {"n_ctx": 128, "n_threads": 1, "n_parallel": n_parallel, **EXACT}
    pool = LlamaPool(demo_f32, **options)
    with pool.llm as llm, ThreadPoolExecutor(len(PROMPTS)) as clients:
        alone = [llm.create_completion(p, **OPTIONS)["choices"][0]["text"] for p in PROMPTS]
        app = async_app(pool) if n_threads is None else sync_app(llm, n_threads)
        with served(app) as port:
            answers = [*clients.map(partial(read, port), range(len(PROMPTS)), leaves)]
        for (status, text), whole, left in zip(answers, alone, leaves, strict=True):
            assert status == 200, f"seed {seed}"
            assert text == whole if left is None else whole.startswith(text), f"seed {seed}"
        assert llm.create_completion(PROMPTS[0], **OPTIONS)["choices"][0]["text"] == alone[0]
    assert [r.getMessage() for r in caplog.records if r.name.startswith("uvicorn")] == []
