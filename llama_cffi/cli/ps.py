"""`llama-cffi ps`: the models of a running server."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import LlamaError
from . import options, output
from .server_client import ServerClient, add_server

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi ps
llama-cffi ps --url http://gpu-box:8080 --json
"""


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "ps",
        help="list the models of a running server",
        description="List the models of a running server, and whether they are in memory.",
        epilog=options.epilog(_EXAMPLES, "API_KEY"),
        formatter_class=options.HelpFormatter,
    )
    add_server(parser)
    options.add_json(parser, "the models")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    client = ServerClient(args.url, args.api_key)
    models = client.get("/models")["data"]
    try:
        health = str(client.get("/health")["status"])
    except LlamaError as e:
        health = str(e)
    if args.json:
        output.print_json({"url": client.url, "health": health, "models": models})
        return 0
    rows = [_row(model) for model in models]
    output.print_table(("NAME", "SIZE", "CONTEXT", "STATUS"), rows)
    output.say(f"\n{client.url}: {health}\n")
    return 0


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    meta = model.get("meta") or {}
    status = model.get("status") or {}
    shown = str(status.get("value", "loaded"))
    if "progress" in status:
        shown += f" {status['progress']:.0%}"
    if status.get("failed"):
        shown = f"failed: {status.get('error', '')}"
    size = f"{meta['size'] / 1e6:,.0f} MB" if "size" in meta else ""
    name = output.printable(str(model["id"]))
    return name, size, str(meta.get("n_ctx", "")), output.printable(shown)
