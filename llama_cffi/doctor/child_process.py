"""Run functions of `child_main` in child processes and collect their reports."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..child_process import child_command, child_environment, death
from .child_main import MARK

__all__ = ["Outcome", "run_child"]

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
    try:
        done = subprocess.run(
            child_command("llama_cffi.doctor.child_main"),
            input=json.dumps({"run": run, **arguments}).encode(),
            capture_output=True,
            timeout=timeout_s,
            env=child_environment(),
        )
        out, err, ended = done.stdout, done.stderr, death(done.returncode)
    except subprocess.TimeoutExpired as e:
        out, err = e.stdout or b"", e.stderr or b""
        ended = f"no answer within {timeout_s:g} s"
    except OSError as e:
        return Outcome({}, f"no child process could be started: {e}", [])
    reports = {}
    for line in out.decode("utf-8", "replace").splitlines():
        if line.startswith(MARK):
            facts = json.loads(line.removeprefix(MARK))
            reports[facts.pop("step")] = facts
    return Outcome(reports, ended, err.decode("utf-8", "replace").splitlines()[-_STDERR_LINES:])
