"""Run `llama-cffi` in a test: the installed program, or in this process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llama_cffi.cli import main

__all__ = ["PROGRAM", "Done", "Runner", "cli", "error_of", "json_of", "text_of"]

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "llama-cffi")


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


class Runner:
    """Runs commands in this process, with an empty stdin by default."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *args: object, stdin: str | bytes = b"") -> Done:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
        try:
            code = main([*map(str, args)])
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        return Done(code, *self._capsys.readouterr())

    def text(self, *args: object, stdin: str | bytes = b"") -> str:
        """Return what a command that succeeds prints; it says nothing on stderr."""
        done = self(*args, stdin=stdin)
        assert (done.code, done.err) == (0, "")
        return done.out

    def json(self, *args: object, stdin: str | bytes = b"") -> Any:
        """Return the value that a command prints with --json."""
        return json.loads(self.text(*args, "--json", stdin=stdin))

    def error(self, *args: object, stdin: str | bytes = b"") -> str:
        """Return the one sentence of a command that fails; stdout stays empty."""
        done = self(*args, stdin=stdin)
        assert (done.code, done.out) == (1, ""), done
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        return done.err.removeprefix("error: ").rstrip()

    def usage(self, *args: object, stdin: str | bytes = b"") -> str:
        """Return the message of a usage error."""
        done = self(*args, stdin=stdin)
        assert (done.code, done.out) == (2, ""), done
        return done.err


def cli(
    *args: object,
    stdin: bytes | None = None,
    program: Sequence[str] = (PROGRAM,),
    **env: str,
) -> subprocess.CompletedProcess[bytes]:
    """Run the installed program, with an empty stdin by default."""
    return subprocess.run(
        [*program, *map(str, args)],
        input=stdin or b"",
        capture_output=True,
        timeout=120,
        env={**os.environ, **env},
    )


def text_of(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8").replace(os.linesep, "\n")


def json_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr.decode()
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def error_of(done: subprocess.CompletedProcess[bytes]) -> str:
    """Check that a command failed without a traceback, and return its message."""
    assert done.returncode == 1, done.stderr.decode()
    assert done.stdout == b""
    message = done.stderr.decode()
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message.removeprefix("error: ").rstrip()
