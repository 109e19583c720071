"""`llama-cffi stop`: end a server, or let it free a model."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

from ..errors import LlamaError, ValidationError
from . import options, output
from .server_client import ServerClient, add_server

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi stop --pid-file server.pid
llama-cffi stop qwen3 --url http://127.0.0.1:8080
"""
_STEP_S = 0.1


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "stop",
        help="end a running server, or free one of its models",
        description="End the server that `llama-cffi serve --pid-file FILE` started: running "
        "answers end first. With the name of a model, let the server free that model; its next "
        "request loads it again.",
        epilog=options.epilog(_EXAMPLES, "API_KEY"),
        formatter_class=options.HelpFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a name that `ps` shows")
    parser.add_argument("--pid-file", metavar="FILE", help="the file of the server to end")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="S",
        help="seconds to wait for the end of the server (default: 60)",
    )  # fmt: skip
    add_server(parser)
    options.add_json(parser, "what was stopped")
    parser.set_defaults(func=_run, usage_error=parser.error)


def _run(args: argparse.Namespace) -> int:
    if (args.model is None) == (args.pid_file is None):
        args.usage_error("give a model to free, or --pid-file FILE to end a server")
    if args.model is not None:
        client = ServerClient(args.url, args.api_key)
        client.post("/models/unload", {"model": args.model})
        _tell(args, {"model": args.model, "url": client.url}, f"freed {args.model}\n")
        return 0
    pid = _end(Path(args.pid_file).expanduser(), args.timeout)
    _tell(args, {"pid": pid}, f"stopped the server with the process id {pid}\n")
    return 0


def _tell(args: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    if args.json:
        output.print_json({"stopped": facts})
    else:
        output.say(text)


def _end(path: Path, timeout: float) -> int:
    """Send SIGTERM to the server of a file, and wait for its end."""
    try:
        text = path.read_text(encoding="utf-8").split()
        pid = int(text[0])
    except OSError as e:
        raise ValidationError(
            f"cannot read {path}: {e.strerror or e}; `llama-cffi serve --pid-file {path}` writes it"
        ) from None
    except (ValueError, IndexError):
        raise ValidationError(f"{path} is not the file of a server: it has no process id") from None
    if pid < 2:
        raise ValidationError(f"{path} is not the file of a server: it has the process id {pid}")
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        path.unlink(missing_ok=True)
        raise LlamaError(f"no server runs with the process id {pid}; removed {path}") from None
    except PermissionError:
        raise LlamaError(f"the process {pid} of {path} belongs to another user") from None
    if os.name == "nt":  # ended without a word
        path.unlink(missing_ok=True)
    end = time.monotonic() + timeout
    while path.exists():  # the server removes it last
        if time.monotonic() > end:
            raise LlamaError(f"the server {pid} still runs after {timeout:g} s; give it more time "
                             "with --timeout, or end it with another signal")  # fmt: skip
        time.sleep(_STEP_S)
    return pid
