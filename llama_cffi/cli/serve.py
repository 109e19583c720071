"""`llama-cffi serve`: an HTTP server with OpenAI's API."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import ValidationError

__all__ = ["add_parser"]

_EXAMPLES = """\
examples:
  llama-cffi serve -m model.gguf
  llama-cffi serve -m hf:owner/repo:Q4_K_M --host 0.0.0.0 --api-key SECRET -np 8 -c 8192
"""
_KEY = "LLAMA_CFFI_API_KEY"
_LOCAL = ("127.0.0.1", "::1", "localhost")


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "serve",
        help="serve models over HTTP, in OpenAI's API",
        description="Serve models over HTTP: OpenAI's API and llama-server's routes. SIGTERM and "
        "Ctrl-C let running answers end first; the second Ctrl-C does not.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-m", "--model", action="append",
        help="a GGUF file, or hf:OWNER/REPO[@REVISION][:FILE or QUANT]; several times for several "
        "models; default: the included demo model",
    )  # fmt: skip
    parser.add_argument("-a", "--alias", default="", help="names of the model, with commas")
    listening = parser.add_argument_group("listening")
    listening.add_argument(
        "--host",
        default="127.0.0.1",
        help="address, or the path of a Unix socket that ends with .sock (default: 127.0.0.1)",
    )
    listening.add_argument(
        "--port", type=int, default=8080, metavar="N", help="port; 0: a free one (default: 8080)"
    )
    listening.add_argument(
        "--api-key", default="", metavar="KEY",
        help=f"key that clients must send, or several with commas (default: {_KEY})",
    )  # fmt: skip
    listening.add_argument("--api-key-file", metavar="FILE", help="a file with one key per line")
    listening.add_argument(
        "--cors-origins", default="", metavar="ORIGINS",
        help="let web pages of these origins call the server, with commas; localhost: those of "
        "this machine, *: all (default: none)",
    )  # fmt: skip
    listening.add_argument(
        "--max-waiting", type=int, default=256, metavar="N",
        help="most waiting requests; others get status 429 (default: 256)",
    )  # fmt: skip
    listening.add_argument(
        "--sse-ping-interval", type=float, default=15.0, metavar="S",
        help="seconds between comments that keep a silent stream alive (default: 15)",
    )  # fmt: skip
    listening.add_argument(
        "--drain-timeout", type=float, default=30.0, metavar="S",
        help="seconds in which running answers may end after SIGTERM (default: 30)",
    )  # fmt: skip
    listening.add_argument("--metrics", action="store_true", help="serve /metrics, for Prometheus")
    running = parser.add_argument_group("running")
    running.add_argument(
        "-np", "--parallel", type=int, default=4, metavar="N",
        help="answers that are generated together; others wait (default: 4)",
    )  # fmt: skip
    running.add_argument(
        "-c", "--ctx-size", "--ctx", type=int, metavar="N",
        help="context size of each answer: tokens of prompt and answer; 0: the model's (default: "
        "4096, or the model's if that is less)",
    )  # fmt: skip
    running.add_argument(
        "-t", "--threads", type=int, default=0, metavar="N",
        help="number of threads (default: LLAMA_CFFI_N_THREADS, or physical cores)",
    )  # fmt: skip
    running.add_argument(
        "-ngl", "--gpu-layers", "--n-gpu-layers", type=int, default=-1, metavar="N",
        help="layers on the GPU; -1 (default): all, 0: none",
    )  # fmt: skip
    running.add_argument(
        "-cram", "--cache-ram", type=int, metavar="MIB",
        help="RAM for prompts that leave the KV cache; 0: none, -1: no limit (default: 1024, or a "
        "sixteenth of the memory if that is less)",
    )  # fmt: skip
    running.add_argument(
        "--cache-dir", metavar="DIR", help="a folder that keeps these prompts, also after a restart"
    )
    running.add_argument(
        "--cache-disk", type=int, default=8192, metavar="MIB",
        help="most of the disk that --cache-dir takes; -1: no limit (default: 8192)",
    )  # fmt: skip
    running.add_argument(
        "--pooling", choices=("none", "mean", "cls", "last", "rank"),
        help="how embeddings are pooled; rank: for rerankers (default: the model's)",
    )  # fmt: skip
    running.add_argument(
        "--chat-template", metavar="NAME", help="a built-in chat template, or Jinja's source"
    )
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from ..api.config import LlamaConfig
    from ..server.serving import serve

    config = LlamaConfig(
        n_parallel=args.parallel,
        n_ctx=args.ctx_size,
        n_threads=args.threads,
        n_gpu_layers=args.gpu_layers,
        pooling=args.pooling,
        chat_format=args.chat_template,
        cache_ram=args.cache_ram,
        cache_dir=args.cache_dir,
        cache_disk=args.cache_disk,
    )
    keys = _keys(args)
    if not keys and args.host not in _LOCAL and not args.host.endswith(".sock"):
        print(
            f"warning: everybody who reaches {args.host} can use the server; set --api-key",
            file=sys.stderr,
        )
    with (
        serve(
            args.model or [_demo_path()],
            config,
            host=args.host,
            port=args.port,
            aliases=_parts(args.alias),
            api_keys=keys,
            cors_origins=_parts(args.cors_origins),
            max_waiting=args.max_waiting,
            ping_s=args.sse_ping_interval,
            metrics=args.metrics,
        ) as server,
        _terminated() as stop,
    ):
        print(f"listening on {server.url}", file=sys.stderr, flush=True)
        try:
            while server.is_running and not stop.wait(1):
                pass
        finally:
            server.close(args.drain_timeout)
    return 0


@contextmanager
def _terminated() -> Iterator[threading.Event]:
    """Provide an event that SIGTERM sets."""
    event = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def _demo_path() -> Path:
    from .. import demo

    return Path(demo.model_path())


def _keys(args: argparse.Namespace) -> list[str]:
    """Return the keys of the options, or else of the environment."""
    keys = _parts(args.api_key)
    if args.api_key_file is not None:
        try:
            text = Path(args.api_key_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ValidationError(f"cannot read --api-key-file {args.api_key_file}: {e}") from e
        found = [line.strip() for line in text.splitlines() if line.strip()]
        if not found:
            raise ValidationError(
                f"--api-key-file {args.api_key_file} has no key; write one a line"
            )
        keys += found
    return keys or _parts(os.environ.get(_KEY, ""))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
