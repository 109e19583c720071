"""A server process for clients that CI does not install; `nox -s clients` runs these tests."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from llama_cffi.demo import model_path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--model", help="a GGUF to serve beside the demo model")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "url" in metafunc.fixturenames:
        models = [str(model_path())]
        if given := metafunc.config.getoption("--model"):
            models.append(given)
        ids = [model.rpartition("/")[2] for model in models]
        metafunc.parametrize("url", models, ids=ids, scope="session", indirect=True)


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server with one model; clients call it `local`."""
    command = [sys.executable, "-m", "llama_cffi", "serve", "-m", request.param, "--alias", "local"]
    command += ["--port", "0", "-np", "2", "-c", "2048", "-t", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        found = (re.fullmatch(r"listening on (http://\S+)\n", line) for line in lines)
        yield next(match[1] for match in found if match)
        process.terminate()


@pytest.fixture
def weather() -> dict[str, Any]:
    """A tool, as OpenAI's API defines it."""
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    function = {"name": "get_weather", "description": "Get the weather", "parameters": parameters}
    return {"type": "function", "function": function}
