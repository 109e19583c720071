"""Child processes of the doctor: started, listened to, and told apart when they die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .inside import MARK

__all__ = ["Outcome", "run_child"]

# The parent's search path, so that the child runs this very package and nothing from the folder
# it happens to be started in.
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from llama_cffi.doctor.inside import main; main()"
_STDERR_LINES = 12


@dataclass(frozen=True)
class Outcome:
    """What a child told, and how it ended.

    Attributes:
        told: Facts by step, those that came before it ended.
        death: Empty when it ended by itself; else what killed it, such as `SIGSEGV`.
        stderr: Its last lines there, the stack of a crash among them.
    """

    told: Mapping[str, dict[str, Any]]
    death: str
    stderr: list[str]


def run_child(run: str, *, timeout_s: float, **arguments: Any) -> Outcome:
    """Run a function of `inside` in a new process."""
    command = [sys.executable, "-X", "faulthandler", "-c", _BOOT, *(p for p in sys.path if p)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps({"run": run, **arguments}).encode(),
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        out, err, code = done.stdout, done.stderr, done.returncode
        death = _death(code)
    except subprocess.TimeoutExpired as e:
        out, err = error.stdout or b"", error.stderr or b""
        death = f"no answer within {timeout_s:g} s"
    except OSError as e:
        return Outcome({}, f"no child process could be started: {error}", [])
    told = {}
    for line in out.decode("utf-8", "replace").splitlines():
        if line.startswith(MARK):
            facts = json.loads(line.removeprefix(MARK))
            told[facts.pop("what")] = facts
    return Outcome(told, death, err.decode("utf-8", "replace").splitlines()[-_STDERR_LINES:])


def _death(code: int) -> str:
    if code == 0:
        return ""
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}" if code < 0x80000000 else f"exception 0x{code:08X}"
