"""Lines typed in a terminal: editing, history, messages of several lines."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LineEditor"]

_FENCE = '"""'
_MOST_LINES = 1000


class LineEditor:
    """Reads messages; a context manager that keeps the lines in a file.

    Args:
        history: The file; None: in the user's folder for state.
        keeps: Whether lines are kept at all.
    """

    def __init__(self, history: str | None, *, keeps: bool) -> None:
        self._readline = _readline() if output_is_terminal() else None
        self._path: Path | None = None
        if keeps and self._readline is not None:
            self._path = Path(history).expanduser() if history else _default_path()

    def __enter__(self) -> Self:
        if self._readline is not None:
            self._readline.clear_history()
            if self._path is not None:
                with contextlib.suppress(OSError):
                    self._readline.read_history_file(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is None or self._readline is None:
            return
        with contextlib.suppress(OSError):  # no folder for it, or a full disk
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(0o600)
            self._path.chmod(0o600)
            self._readline.set_history_length(_MOST_LINES)
            self._readline.write_history_file(self._path)
            self._path.chmod(0o600)

    def read(self) -> str | None:
        r"""Return a message, several lines between three quotes or after `\`; None: the end."""
        line = self._line("> ")
        if line is None:
            return None
        if line.lstrip().startswith(_FENCE):
            return self._fenced(line.lstrip().removeprefix(_FENCE))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            more = self._line(". ")
            if more is None:
                break
            lines.append(more)
        return "\n".join(lines)

    def _fenced(self, line: str | None) -> str:
        lines = []
        while line is not None:
            if line.rstrip().endswith(_FENCE):
                lines.append(line.rstrip().removesuffix(_FENCE))
                break
            lines.append(line)
            line = self._line(". ")
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str | None:
        """Return a line; the prompt goes to stderr where stdout is not a terminal."""
        try:
            if output_is_terminal():
                return input(prompt)
            print(prompt, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        except EOFError:
            print(file=sys.stderr)
            return None
        except UnicodeDecodeError:
            print("error: that was not UTF-8 text", file=sys.stderr)
            return ""
        return line.removesuffix("\n") if line else None


def output_is_terminal() -> bool:
    """Whether a prompt may be written to stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def _readline() -> Any:
    try:
        import readline
    except ImportError:  # Windows
        return None
    with contextlib.suppress(Exception):  # libedit knows no such setting
        readline.parse_and_bind("set enable-bracketed-paste on")
    return readline


def _default_path() -> Path:
    import platformdirs

    return Path(platformdirs.user_state_dir("llama_cffi")) / "chat_history"
