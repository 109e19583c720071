"""Run functions of `child_main` in child processes and collect their reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .child_main import MARK

__all__ = ["Outcome", "run_child"]

# The child imports this same package, wherever the parent found it, and the rest from the parent's
# search path without the current folder.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[1:]; import llama_cffi; del sys.path[0]; "
    "from llama_cffi.doctor.child_main import main; main()"
)
_HOME = str(Path(__file__).parents[2])
_STDERR_LINES = 12


@dataclass(frozen=True)
class Outcome:
    """The result of a child process.

    Attributes:
        reports: Facts by step, for every step that was reached.
        death: Why it ended early, such as `SIGSEGV`; empty if it ended normally.
        stderr: Its last lines on stderr, with the stack trace of a crash.
    """

    reports: Mapping[str, dict[str, Any]]
    death: str
    stderr: list[str]


def run_child(run: str, *, timeout_s: float, **arguments: Any) -> Outcome:
    """Run a function of `child_main` in a new process.

    Args:
        run: `generate`, `dlopen` or `scores`.
        timeout_s: Timeout in seconds.
        arguments: The function's arguments, as JSON types.
    """
    search = (_HOME, *(p for p in sys.path if p))
    command = [sys.executable, "-X", "faulthandler", "-c", _BOOT, *search]
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
        out, err = e.stdout or b"", e.stderr or b""
        death = f"no answer within {timeout_s:g} s"
    except OSError as e:
        return Outcome({}, f"no child process could be started: {e}", [])
    reports = {}
    for line in out.decode("utf-8", "replace").splitlines():
        if line.startswith(MARK):
            facts = json.loads(line.removeprefix(MARK))
            reports[facts.pop("step")] = facts
    return Outcome(reports, death, err.decode("utf-8", "replace").splitlines()[-_STDERR_LINES:])


def _death(code: int) -> str:
    if code == 0:
        return ""
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}" if code < 0x80000000 else f"exception 0x{code:08X}"
