"""A program on a pseudo-terminal."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Self

__all__ = ["Terminal"]

_PATIENCE_S = 90.0


class Terminal:
    """Runs a program whose stdin, stdout and stderr are one terminal.

    Args:
        command: The program and its arguments.
        **env: More variables of the environment.
    """

    def __init__(self, command: Sequence[str | Path], **env: str) -> None:
        import pty

        self._main_end, inside = pty.openpty()
        self._shown = b""
        self.process = subprocess.Popen(
            [*map(str, command)],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**os.environ, "TERM": "xterm", **env},
            start_new_session=True,
        )
        os.close(inside)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main_end)

    def send(self, text: str) -> None:
        """Type *text*."""
        os.write(self._main_end, text.encode())

    def ask(self, text: str) -> str:
        """Type a line; return what is shown up to the next prompt, without the echo."""
        self.send(text + "\n")
        shown = self.expect("\n> ")
        return shown.partition("\n")[2].removesuffix("> ").rstrip("\n")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def expect(self, text: str) -> str:
        """Wait until *text* is shown; return everything new up to its end."""
        end = time.monotonic() + _PATIENCE_S
        while text not in self._text():
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"{text!r} is not shown, but {self._text()!r}")
        before, _, after = self._text().partition(text)
        self._shown = after.encode()
        return before + text

    def expect_any(self) -> None:
        """Wait until anything is shown."""
        end = time.monotonic() + _PATIENCE_S
        while not re.sub(r"\x1b[\[?\dhl]*$", "", self._text()).strip():
            if not self._read(end - time.monotonic()):
                raise AssertionError("nothing is shown")

    def settle(self) -> None:
        """Wait until the program waits for input: before, CPython's readline may miss a signal."""
        while self._read(0.5):
            pass

    def end(self) -> tuple[int, str]:
        """Wait for the end of the program; return its exit code, and what else it showed."""
        end = time.monotonic() + _PATIENCE_S
        while self._read(end - time.monotonic()):
            pass
        return self.process.wait(_PATIENCE_S), self._text()

    def _text(self) -> str:
        text = self._shown.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "")
        for code in ("\x1b[?2004h", "\x1b[?2004l"):  # bracketed paste
            text = text.replace(code, "")
        return text

    def _read(self, timeout: float) -> bool:
        ready, _, _ = select.select([self._main_end], [], [], max(timeout, 0))
        if not ready:
            return False
        try:
            data = os.read(self._main_end, 65536)
        except OSError:  # Linux: the other side is closed
            return False
        self._shown += data
        return bool(data)
