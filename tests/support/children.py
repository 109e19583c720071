"""Child processes, for code that could crash the interpreter."""

from __future__ import annotations

import subprocess
from typing import Protocol

__all__ = ["Child"]


class Child(Protocol):
    """The fixture `child`: runs Python code in a child process; fails if a signal killed it."""

    def __call__(
        self, code: str, *args: object, timeout: float = 120, **env: str
    ) -> subprocess.CompletedProcess[str]: ...
