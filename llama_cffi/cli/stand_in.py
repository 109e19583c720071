"""`llama-cffi stand-in`: a wheel that stands in for llama-cpp-python."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import ValidationError
from . import output

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "stand-in",
        help="write a wheel that stands in for llama-cpp-python",
        description="Write a wheel named llama-cpp-python whose module llama_cpp is "
        "llama_cffi.llama_cpp, and print its path: "
        'pip install --no-deps "$(llama-cffi stand-in)"',
    )
    parser.add_argument("folder", nargs="?", default=".", help="where to write it (here)")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from ..llama_cpp.stand_in import write_wheel

    try:
        path = write_wheel(args.folder)
    except OSError as e:
        raise ValidationError(
            f"cannot write a wheel to {args.folder!r}: {e.strerror or e}; give another folder"
        ) from e
    output.say(f"{path}\n")
    return 0
