"""A server with the demo model, for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.rounding import EXACT

from llama_cffi import LlamaPool
from llama_cffi.server.http_server import HttpServer


@pytest.fixture(scope="session")
def pool(demo_f32: Path) -> Iterator[LlamaPool]:
    """The model that the server serves; its texts do not depend on what shares a batch."""
    options: Any = {"n_ctx": 512, "n_threads": 1, "embeddings": True, **EXACT}
    with LlamaPool(demo_f32, n_parallel=4, **options) as pool:
        yield pool


@pytest.fixture(scope="session")
def server(pool: LlamaPool) -> Iterator[HttpServer]:
    """A server on loopback."""
    with pool.serve(aliases=["demo", "other-name"]) as server:
        yield server


@pytest.fixture(scope="session")
def url(server: HttpServer) -> str:
    """Its URL with /v1."""
    return f"{server.url}/v1"


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client for it."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client
