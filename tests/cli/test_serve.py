"""`llama-cffi serve`: the command, its signals, its keys."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.http_requests import get, post

from llama_cffi import ValidationError
from llama_cffi.cli import _parser, serve
from llama_cffi.cli.parser import parse

COMMAND = [sys.executable, "-m", "llama_cffi", "serve"]
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
            assert found is not None, line + process.stderr.read()
            yield process, found[1]
        finally:
            process.kill()


def test_it_prints_one_line_and_sigterm_ends_it(tiny_model: Path, tmp_path: Path) -> None:
    args, env = (
        ("-m", tiny_model, "--alias", "mine,yours", "--metrics", "--cache-dir", tmp_path),
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
        return serve._keys(parse(_parser(), ["serve", *map(str, args)]))

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


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-m", "missing.gguf"], "missing.gguf"),
        (["--api-key-file", "missing.txt"], "cannot read --api-key-file missing.txt"),
        (["-np", "0"], "n_parallel"),
        (["--port", "99999"], "port"),
    ],
)
def test_what_cannot_start_is_told_without_a_traceback(args: list[str], message: str) -> None:
    done = subprocess.run([*COMMAND, *SMALL, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
