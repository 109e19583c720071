"""`llama-cffi ps` and `stop` with a running server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import Runner

COMMAND = [sys.executable, "-m", "llama_cffi", "serve", "--port", "0", "-np", "2", "-c", "128"]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_server_is_listed_freed_and_stopped(
    run: Runner, tiny_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "server.pid"
    command = [*COMMAND, "-t", "1", "-m", tiny_model, "--alias", "mine", "--pid-file", file]
    env = {**os.environ, "LLAMA_CFFI_API_KEY": "secret"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as server:
        try:
            assert server.stderr is not None
            found = re.search(r"http://\S+", server.stderr.readline())
            assert found is not None
            url = ("--url", found[0])
            lines = run.text("ps", *url).splitlines()
            assert lines[0].split() == ["NAME", "SIZE", "CONTEXT", "STATUS"]
            assert lines[1].split() == ["mine", "0", "MB", "128", "loaded"]
            assert lines[-1] == f"{found[0]}: ok"
            listed = run.json("ps", *url)
            assert (listed["health"], listed["models"][0]["aliases"]) == ("ok", ["mine"])
            assert "answered 401" in run.error("stop", "mine", *url)
            key = ("--api-key", "secret")
            assert "answered 404" in run.error("stop", "other", *url, *key)
            assert run.text("stop", "mine", *url, *key) == "freed mine\n"
            stopped = run.json("stop", "--pid-file", file)["stopped"]
            assert stopped == {"pid": server.pid}
            assert server.wait(60) == 0
        finally:
            server.kill()
    assert not file.exists()


def test_what_does_not_run_is_one_sentence(run: Runner, tmp_path: Path) -> None:
    nobody = ("--url", "http://127.0.0.1:9")
    assert "start one with `llama-cffi serve`" in run.error("ps", *nobody)
    assert "start one with `llama-cffi serve`" in run.error("stop", "x", *nobody)
    assert "must begin with http://" in run.error("ps", "--url", "localhost:1")
    file = tmp_path / "server.pid"
    assert "cannot read" in run.error("stop", "--pid-file", file)
    for text in ("", "me", "0", "-1"):
        file.write_text(text, "utf-8")
        assert "is not the file of a server" in run.error("stop", "--pid-file", file)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    file.write_text(str(ended.pid), "utf-8")
    assert "no server runs" in run.error("stop", "--pid-file", file)
    assert not file.exists()


def test_stop_needs_a_model_or_a_file(run: Runner) -> None:
    assert "give a model to free, or --pid-file" in run.usage("stop")
    assert "give a model to free, or --pid-file" in run.usage("stop", "a", "--pid-file", "b")
