"""`llama-cffi serve`: the command, its signals, its keys."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.http_requests import connect, get, post, request_bytes
from support.server_state import wait_for

from llama_cffi import ValidationError
from llama_cffi.api.config import LlamaConfig
from llama_cffi.cli import _parser, serve
from llama_cffi.cli.parser import parse

COMMAND = [sys.executable, "-m", "llama_cffi", "serve"]
ASK = {"prompt": "a", "max_tokens": 2, "ignore_eos": True}
SMALL = ["--port", "0", "-np", "2", "-c", "128", "-t", "1"]


@contextmanager
def served(*args: object, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command; provide it and its URL."""
    process = subprocess.Popen(
        [*COMMAND, *SMALL, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    assert process.stderr is not None
    with process:
        line = process.stderr.readline()
        try:
            found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", line)
            assert found is not None, line
            yield process, found[1]
        finally:
            process.kill()


def test_it_prints_one_line_and_sigterm_ends_it(tiny_model: Path, tmp_path: Path) -> None:
    args, env = (
        (
            "-m",
            tiny_model,
            "--alias",
            "mine,yours",
            "--metrics",
            "-fa",
            "off",
            "-ctk",
            "f32",
            "--cache-dir",
            tmp_path,
        ),
        {"LLAMA_CFFI_API_KEY": "secret"},
    )
    with served(*args, **env) as (process, url):
        (model,) = get(f"{url}/v1/models").json["data"]
        assert model["aliases"] == ["mine", "yours"]
        assert model["meta"]["n_ctx"] == 128
        assert get(f"{url}/props").status == 401
        key = {"x-api-key": "secret"}
        assert get(f"{url}/props", **key).json["total_slots"] == 2
        body = {"prompt": "a" * 90, "max_tokens": 2}
        assert post(f"{url}/v1/completions", body, **key).status == 200
        assert b'_prompt_tokens_count{model_name="mine"} 1\n' in get(f"{url}/metrics", **key).body
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == (0 if os.name == "posix" else 1)
        assert len([*tmp_path.glob("*/*.prompt")]) == (os.name == "posix")  # kept for the next one


@pytest.mark.behaviour(
    "robustness: SIGTERM lets running answers end and refuses new ones",
)
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_sigterm_lets_running_streams_end_and_refuses_new_ones() -> None:
    with served("--log-requests") as (process, url), connect(url) as connection:
        request = request_bytes("/v1/completions", {**ASK, "max_tokens": 20, "stream": True})
        connection.sendall(request[:-5])  # the request has begun
        wait_for(lambda: get(f"{url}/health").status == 200)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: get(f"{url}/health").status == 503)
        assert post(f"{url}/v1/completions", ASK).status == 503
        connection.sendall(request[-5:])
        received = b""
        while piece := connection.recv(65536):
            received += piece
        assert received.count(b'"text":') >= 20
        assert b"data: [DONE]\n\n" in received
        out, lines = process.communicate(timeout=60)
        assert (out, process.returncode) == ("", 0)
    logged = [json.loads(line) for line in lines.splitlines()]
    assert {line["status"] for line in logged} == {200, 503}
    (line,) = [line for line in logged if line.get("completion_tokens")]
    assert (line["end"], line["completion_tokens"]) == ("done", 20)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_second_sigterm_does_not_wait(tiny_model: Path) -> None:
    args = ("-m", tiny_model, "--drain-timeout", 3600)
    with served(*args) as (process, url), connect(url) as connection:
        connection.sendall(request_bytes("/v1/completions", ASK)[:-5])  # never complete
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: get(f"{url}/health").status == 503)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_ends_it_as_every_command(tiny_model: Path) -> None:
    with served("-m", tiny_model) as (process, _):
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        assert (out, error.strip(), process.returncode) == ("", "", 130)


def test_keys_come_from_the_options_or_else_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(*args: object) -> list[str]:
        found = serve._keys(parse(_parser(), ["serve", *map(str, args)]))
        return [key if isinstance(key, str) else key.key for key in found]

    file = tmp_path / "keys"
    file.write_text("three\n\n four \n", encoding="utf-8")
    assert keys() == []
    monkeypatch.setenv("LLAMA_CFFI_API_KEY", "five,six")
    assert keys() == ["five", "six"]
    assert keys("--api-key", "one, two") == ["one", "two"]
    assert keys("--api-key", "one", "--api-key-file", file) == ["one", "three", "four"]
    file.write_text("\n")
    with pytest.raises(ValidationError, match="has no key"):
        keys("--api-key-file", file)


def test_the_options_of_several_models_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(Exception):  # noqa: N818  # not an error
        pass

    found: dict[str, Any] = {}

    def start(models: list[str], config: LlamaConfig, **settings: Any) -> None:
        found.update(settings, models=models)
        raise Started

    monkeypatch.setattr("llama_cffi.server.serving.serve", start)

    def settings(*args: str) -> dict[str, Any]:
        with pytest.raises(Started):
            serve._run(parse(_parser(), ["serve", *args]))
        return found

    assert [Path(path).name for path in settings()["models"]] == ["demo.gguf"]
    assert (found["models_max"], found["preload"], found["sleep_idle_s"]) == (4, None, None)
    assert found["models_autoload"] is True
    assert settings("-m", "a", "-m", "b", "--preload")["models"] == ["a", "b"]
    assert found["preload"] is True
    assert settings("--models-dir", "x", "--models-memory", "2", "--tags", "p,q")["models"] == []
    assert (found["models_memory"], found["models_dir"]) == (2 * 2**20, "x")
    assert found["tags"] == ["p", "q"]
    settings("--models-preset", "y", "--no-models-autoload", "--sleep-idle-seconds", "9")
    assert (found["models_preset"], found["models_autoload"]) == ("y", False)
    assert (found["models"], found["sleep_idle_s"]) == ([], 9)


def test_adapters_have_scales() -> None:
    def adapters(*args: str) -> dict[str, float] | None:
        return serve._adapters(parse(_parser(), ["serve", *args]))

    assert adapters() is None
    assert adapters("--lora", "a, b", "--lora", "c") == {"a": 1.0, "b": 1.0, "c": 1.0}
    scaled = ("--lora-scaled", "C:/d.gguf:0.5,e:-2")
    assert adapters("--lora", "a", *scaled) == {"a": 1.0, "C:/d.gguf": 0.5, "e": -2.0}
    assert adapters(*scaled, "--lora-init-without-apply") == {"C:/d.gguf": 0.0, "e": 0.0}
    for wrong in ("e", "e:x", ":1"):
        with pytest.raises(ValidationError, match="FILE:SCALE"):
            adapters("--lora-scaled", wrong)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-m", "missing.gguf"], "missing.gguf"),
        (["--api-key-file", "missing.txt"], "cannot read --api-key-file missing.txt"),
        (["-np", "0"], "n_parallel"),
        (["--n-kv-tokens", "0"], "n_kv_tokens"),
        (["-ctk", "f33"], "type_k"),
        (["--context-shift"], "--context-shift needs -np 1, got -np 2"),
        (["--lora", "missing.gguf"], "missing.gguf"),
        (["--port", "99999"], "port"),
        (["--ssl-key-file", "x.pem", "--ssl-cert-file", "y.pem"], "--ssl-cert-file y.pem"),
    ],
)
def test_what_cannot_start_is_told_without_a_traceback(args: list[str], message: str) -> None:
    done = subprocess.run([*COMMAND, *SMALL, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
