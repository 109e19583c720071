"""Output of the commands: UTF-8 text, JSON, tables, broken pipes, a word on the demo model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

__all__ = [
    "demo_path",
    "has_colours",
    "is_terminal",
    "json_text",
    "piece_text",
    "print_json",
    "print_json_line",
    "print_table",
    "printable",
    "say",
    "silence_stdout",
    "use_utf8",
]

# All control characters but tab and newline: a terminal may interpret them.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# A list of numbers, to be put on one line. JSON strings contain no newlines, so none matches.
_NUMBERS = re.compile(r"(?<=\[)\n[\d\s,.+e-]+\n\s*(?=\])")

_DEMO = (
    "This is the included demo model, {:.0f} MB: {} only. For a real one:\n"
    "  llama-cffi {} -m hf:Qwen/Qwen3-0.6B-GGUF:Q8_0 ...   (640 MB; more in docs/models.md)"
)
_SUMS, _SHAPES = "sums and small talk", "pictures of coloured shapes"


def use_utf8(stream: TextIO) -> None:
    """Make *stream* accept any character: UTF-8 in files and pipes, `?` if a terminal lacks it.

    The user's own choice of encoding, PYTHONIOENCODING, is kept.
    """
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is None:  # the stream of a notebook or a test
        return
    if stream.isatty() or os.environ.get("PYTHONIOENCODING"):
        reconfigure(errors="replace")
    else:
        reconfigure(encoding="utf-8", errors="replace")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person reads *stream*: a terminal, not a file or pipe."""
    return stream is not None and stream.isatty()


def has_colours(stream: TextIO | None) -> bool:
    """Whether *stream* is a terminal with colours, which NO_COLOR and TERM=dumb forbid."""
    return (
        is_terminal(stream)
        and os.name != "nt"
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )


def demo_path(command: str, *, pictures: bool = False) -> Path:
    """Return the file of a demo model; a person is told how to give *command* a real one.

    Args:
        command: The command.
        pictures: The demo model that takes pictures.
    """
    from .. import demo

    path, what = demo.model_path(), _SUMS
    if pictures:
        path, what = demo.picture_model_path(), _SHAPES
    if is_terminal(sys.stderr):
        print(_DEMO.format(path.stat().st_size / 1e6, what, command), file=sys.stderr)
    return path


def say(text: str) -> None:
    """Write *text* to stdout and flush it."""
    sys.stdout.write(text)
    sys.stdout.flush()


def printable(text: str) -> str:
    """Replace the control characters in a model's output that a terminal may interpret."""
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n"))


def print_json(value: Any) -> None:
    """Write *value* as JSON, in UTF-8 if stdout has that encoding and in ASCII otherwise."""
    say(json_text(value, ascii_only=not _has_utf8()) + "\n")


def print_json_line(value: Any) -> None:
    """Write *value* as one line of JSON."""
    say(json.dumps(value, ensure_ascii=not _has_utf8()) + "\n")


def json_text(value: Any, *, ascii_only: bool = True) -> str:
    """Return *value* as JSON, with lists of numbers on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=ascii_only)
    return _NUMBERS.sub(lambda found: " ".join(found[0].split()), text)


def _has_utf8() -> bool:
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    return encoding == "utf8"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout, with columns as wide as they need."""
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    for row in (head, *rows):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def piece_text(piece: bytes) -> str | list[int]:
    """Return the text of a token, or its bytes if it is part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return [*piece]


def silence_stdout() -> None:
    """Discard what is still buffered for stdout, so that exiting does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
