"""What the commands read: text from arguments, files and stdin."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path
from typing import Any

from ..errors import ValidationError

__all__ = [
    "add_text",
    "check_utf8",
    "decoded",
    "is_piped",
    "items",
    "read_beside",
    "read_file",
    "read_stdin",
    "text_of",
    "without_newline",
]

STDIN_S = 3.0


def add_text(parser: Any, what: str) -> None:
    """Add the ways to give one text: an argument, -p, -f, stdin."""
    parser.add_argument(
        "text", nargs="?", metavar="TEXT", help=f"{what}; without it, stdin is read"
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the text too; `-` reads stdin")
    parser.add_argument("-f", "--file", metavar="FILE", help="read the text from a file, verbatim")
    parser.set_defaults(usage_error=parser.error)


def text_of(args: argparse.Namespace, what: str) -> str:
    """Return the text of `add_text`; a file and stdin are taken verbatim."""
    given = [name for name in ("text", "prompt", "file") if getattr(args, name) is not None]
    if len(given) > 1:
        args.usage_error(f"give the {what} once: as an argument, with -p, or with -f FILE")
    if args.file not in (None, "-"):
        return read_file(args.file)
    text = args.text if args.text is not None else args.prompt
    if text is None or text == "-":
        if text is None and args.file is None and not is_piped():
            args.usage_error(f"give a {what} as an argument or with -f FILE, or pipe one in")
        return decoded(_stdin_bytes(), "stdin")
    return check_utf8(text, what)


def items(texts: list[str], file: str | None, args: argparse.Namespace, what: str) -> list[str]:
    """Return *texts*, or the lines of *file* or stdin that are not empty."""
    if texts and file is not None:
        args.usage_error(f"give {what}s as arguments or with -f FILE, not both")
    if texts:
        return [check_utf8(text, what) for text in texts]
    if file is None and not is_piped():
        args.usage_error(f"give {what}s as arguments, with -f FILE, or pipe them in, one per line")
    whole = decoded(_stdin_bytes(), "stdin") if file in (None, "-") else read_file(str(file))
    lines = [line.rstrip("\r") for line in whole.split("\n") if line.strip()]
    if not lines:
        raise ValidationError(f"there is no {what}: the input has no line with text")
    return lines


def is_piped() -> bool:
    """Whether stdin is a file or pipe."""
    return sys.stdin is not None and not sys.stdin.isatty()


def read_file(path: str) -> str:
    """Return the text of a file in UTF-8, verbatim but for a byte order mark."""
    try:
        data = Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise ValidationError(f"cannot read {path}: {reason}; check the path") from None
    return decoded(data, path)


def read_stdin() -> str:
    """Return stdin without the newline that `echo` appends."""
    return without_newline(decoded(_stdin_bytes(), "stdin"))


def read_beside() -> str:
    """Read what is piped in beside a prompt; a program that pipes nothing may not close stdin."""

    def tell() -> None:
        print("waiting for the end of stdin; without text there, add </dev/null", file=sys.stderr)

    timer = threading.Timer(STDIN_S, tell)
    timer.daemon = True
    timer.start()
    try:
        return read_stdin()
    except OSError:  # a closed or unreadable stdin
        return ""
    finally:
        timer.cancel()


def without_newline(text: str) -> str:
    """Return *text* without one newline at its end."""
    return text.removesuffix("\n").removesuffix("\r")


def check_utf8(text: str, what: str) -> str:
    """Return an argument that is UTF-8.

    Raises:
        ValidationError: It is not.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValidationError(f"the {what} is not UTF-8 text") from None
    return text


def decoded(data: bytes, where: str) -> str:
    """Return *data* as text.

    Raises:
        ValidationError: It is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ValidationError(
            f"{where} is not UTF-8 text: byte 0x{data[e.start]:02x} at offset {e.start}"
        ) from None


def _stdin_bytes() -> bytes:
    if sys.stdin is None:
        raise ValidationError("stdin is closed; give the text as an argument or with -f FILE")
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:  # a stream of a test or a notebook
        return str(sys.stdin.read()).encode()
    data: bytes = buffer.read()
    return data
