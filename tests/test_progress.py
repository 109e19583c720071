"""Progress: bars for people, lines for files, and the name of what does not answer."""

from __future__ import annotations

import io
import logging
import socket
import time
from collections.abc import Iterator

import pytest

from llama_cffi import progress
from llama_cffi.errors import LlamaError
from llama_cffi.libs_fetch import http


class Notebook(io.StringIO):
    """Stands for ipykernel's stream, which is not a terminal."""


Notebook.__module__ = "ipykernel.iostream"


@pytest.fixture
def silent_server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def test_a_download_shows_lines_where_stderr_is_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0)
    with progress.downloading("build.tgz", 20_000_000, 5_000_000) as advance:
        advance(5_000_000)
        advance(10_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "fetching build.tgz, 20.0 MB",
        "fetching build.tgz: 10.0 MB (50%)",
        "fetching build.tgz: 20.0 MB (100%)",
    ]


def test_a_download_shows_a_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Notebook()
    monkeypatch.setattr("sys.stderr", shown)
    with progress.downloading("build.tgz", 100) as advance:
        advance(100)
    assert "\rbuild.tgz:   0%" in shown.getvalue()


def test_a_registry_that_does_not_answer_is_named(
    silent_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", 0.05)
    monkeypatch.setattr(http, "TIMEOUT_S", 1)
    monkeypatch.delenv("LLAMA_CFFI_OFFLINE", raising=False)
    with caplog.at_level(logging.WARNING), pytest.raises(http.TransientError):
        http.Client().open(silent_server)
    assert "still waiting for an answer from 127.0.0.1" in caplog.messages


def test_offline_resolves_no_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_cffi import libs_fetch
    from llama_cffi.hub import resolve_model

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a host name was resolved")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("LLAMA_CFFI_OFFLINE", "1")
    for call in (
        lambda: resolve_model("hf:nobody/nothing"),
        lambda: libs_fetch.ensure("npm:0.0.1"),
        lambda: libs_fetch.fetch("github:b1"),
    ):
        with pytest.raises(LlamaError):
            call()


def test_the_note_about_slowness_is_not_written_when_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", 0.05)
    with progress.telling_if_slow("nothing"):
        pass
    time.sleep(0.1)
    assert not caplog.messages
