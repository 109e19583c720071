"""`llama-cffi doctor`: does everything work here, and if not, what to do."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import LlamaError

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser("doctor", help="check this machine and the library")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    raise LlamaError("doctor is not there yet")
