"""How the commands write: UTF-8 text, JSON, errors, and a reader that went away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from typing import Any, TextIO

__all__ = ["print_json", "printable", "say", "silence_stdout", "use_utf8"]

# Everything but tab and newline that a terminal might take as a command.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Lists of numbers stay on one line; no JSON string holds a newline, so none is touched.
_NUMBERS = re.compile(r"(?<=\[)\n[\d\s,.+e-]+\n\s*(?=\])")


def use_utf8(stream: TextIO) -> None:
    """Let *stream* take any character: UTF-8 into files and pipes, `?` where a terminal cannot.

    An encoding that the user asked for (PYTHONIOENCODING) is kept.
    """
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is None:  # a notebook's or a test's stream
        return
    if stream.isatty() or os.environ.get("PYTHONIOENCODING"):
        reconfigure(errors="replace")
    else:
        reconfigure(encoding="utf-8", errors="replace")


def say(text: str) -> None:
    """Write *text* to stdout and flush it."""
    sys.stdout.write(text)
    sys.stdout.flush()


def printable(text: str) -> str:
    """Replace what could steer a terminal: a model may write any bytes."""
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n"))


def print_json(value: Any) -> None:
    """Write *value* as JSON, readable where stdout is UTF-8 and in ASCII elsewhere."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    text = json.dumps(value, indent=2, ensure_ascii=encoding != "utf8")
    say(_NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n")


def silence_stdout() -> None:
    """Send what is still buffered for stdout nowhere, so that exiting does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
