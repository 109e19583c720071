"""Start Python in a child process, for calls of C that may crash or cannot be interrupted."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

__all__ = ["can_start", "child_command", "child_environment", "cpu_seconds", "death"]

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
