"""Start Python in a child process, for calls of C that may crash or cannot be interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import errors

__all__ = [
    "LineChild",
    "can_start",
    "child_command",
    "child_environment",
    "cpu_seconds",
    "death",
    "error_of",
]

# The child imports this same package, wherever the parent found it, and the rest from the parent's
# search path without the current folder.
_BOOT = (
    "import sys, importlib; sys.path[:] = sys.argv.pop(1).split('\\n'); import llama_cffi; "
    "del sys.path[0]; importlib.import_module(sys.argv.pop(1)).main()"
)
_HOME = str(Path(__file__).parents[1])
_PYTHON = re.compile(r"(python|pypy)[\w.]*", re.IGNORECASE)


def can_start() -> bool:
    """Whether `sys.executable` is a Python: in frozen or embedding programs it is the program."""
    name = Path(sys.executable or "").name
    return not getattr(sys, "frozen", False) and _PYTHON.fullmatch(name) is not None


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `main()` of *module* in a new interpreter.

    Args:
        module: Full name of a module of this package.
        arguments: Its `sys.argv[1:]`.
    """
    path = "\n".join([_HOME, *(p for p in sys.path if p)])
    return [sys.executable, "-c", _BOOT, path, module, *arguments]


def child_environment() -> dict[str, str]:
    """Return this process's environment for a child whose output is read."""
    # GGML_ABORT would look for a debugger to print a backtrace.
    own = {"GGML_NO_BACKTRACE": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **own}


def cpu_seconds() -> float | None:
    """Return the processor time of all children that have ended; None if it is not known."""
    if sys.platform == "win32":
        return None
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def death(code: int) -> str:
    """Return why a process ended early, such as `SIGSEGV`; empty if it ended normally."""
    if code == 0:
        return ""
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}" if code < 0x80000000 else f"exception 0x{code:08X}"


class LineChild:
    """A child process that answers each line of JSON on its stdin with one on its stdout.

    Args:
        module: See `child_command`.
        job: What it gets as `sys.argv[1]`, as JSON.
        environment: Its environment.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self, module: str, job: Mapping[str, object], environment: Mapping[str, str]
    ) -> None:
        self._process = subprocess.Popen(
            child_command(module, json.dumps(job)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def ask(self, question: Mapping[str, object]) -> dict[str, Any] | None:
        """Return the answer to a question; None: the process has ended."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended, which the answer tells
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any] | None:
        """Return the next answer; None: the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> str:
        """Wait for a process that does not answer; return why it ended."""
        code = self._process.wait()
        self._process.communicate()
        return death(code) or "no answer"

    def kill(self) -> None:
        """End the process, from any thread."""
        self._process.kill()

    def close(self) -> None:
        """End the process, and free its pipes."""
        self._process.kill()
        self._process.communicate()


def error_of(answer: Mapping[str, Any]) -> errors.LlamaError | None:
    """Return the error in an answer: `error` is its class, `message` its text; None: none."""
    if not (name := answer.get("error")):
        return None
    kind: type[errors.LlamaError] = getattr(errors, str(name), errors.LlamaError)
    return kind(answer["message"])
