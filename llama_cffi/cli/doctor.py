"""`llama-cffi doctor`: check whether generation works on this machine, and how to fix it if not."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from . import options, output

if TYPE_CHECKING:
    from ..doctor import Check

__all__ = ["add_parser"]

_MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
_ASCII_MARKS = {"ok": "+", "warn": "!", "fail": "x"}
_COLOURS = {"ok": "32", "warn": "33", "fail": "31"}
_NAME_WIDTH = 15


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "doctor",
        help="check this machine and the library",
        description="Check this machine, Python, the library, its ABI, devices and backends, and "
        "continue a recorded prompt with the demo model. The exit code is 0 only if that gives the "
        "recorded tokens.",
        epilog=options.epilog("", *options.MODELS),
        formatter_class=options.HelpFormatter,
    )
    parser.add_argument(
        "--json", action="store_true", help="print all findings as JSON, for a bug report"
    )
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from ..doctor import examine, works

    checks = []
    for check in examine():
        checks.append(check)
        if not args.json:
            output.say(_line(check))
    ok = works(checks)
    if args.json:
        output.print_json({"ok": ok, "checks": [check.as_dict() for check in checks]})
    else:
        output.say("\n" + _summary(checks, ok) + "\n")
    return 0 if ok else 1


def _line(check: Check) -> str:
    mark = (_MARKS if _can_print("".join(_MARKS.values())) else _ASCII_MARKS)[check.status]
    if output.has_colours(sys.stdout):
        mark = f"\033[{_COLOURS[check.status]}m{mark}\033[0m"
    indent = " " * (_NAME_WIDTH + 3)
    text = f"{mark} {check.name:<{_NAME_WIDTH}} {_wrapped(check.detail, indent)}\n"
    if check.advice:
        text += f"{indent}{_arrow()} {_wrapped(check.advice, indent + '  ')}\n"
    return text


def _summary(checks: list[Check], ok: bool) -> str:
    warnings = sum(check.status == "warn" for check in checks)
    if not ok:
        return "Generation does not work here; the failed checks above say why."
    if warnings:
        return f"Generation works, with {warnings} warning{'s' * (warnings > 1)}."
    return "Generation works."


def _wrapped(text: str, indent: str) -> str:
    """Wrap long lines on a terminal; a file gets one line per finding."""
    text = output.printable(text).replace("\n", " ")
    if not sys.stdout.isatty():
        return text
    width = max(60, shutil.get_terminal_size().columns)
    return textwrap.fill(
        text, width - 1, initial_indent=indent, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    )[len(indent) :]  # fmt: skip


def _arrow() -> str:
    return "→" if _can_print("→") else "->"


def _can_print(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
