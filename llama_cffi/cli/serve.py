"""`llama-cffi serve`: an HTTP server with OpenAI's API."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError
from . import options, output

if TYPE_CHECKING:
    from ..server.api_keys import ApiKey

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi serve -m model.gguf
llama-cffi serve -m hf:owner/repo:Q4_K_M --host 0.0.0.0 --api-key SECRET -np 8 -c 8192
llama-cffi serve --models-dir models --models-max 2 --sleep-idle-seconds 600
"""
_KEY = "LLAMA_CFFI_API_KEY"
_MIB = 2**20
# All but one adapter: here there may be several.
_FIELDS = tuple(option.field for option in options.RUNNING if option.field != "lora_path")
_LOCAL = ("127.0.0.1", "::1", "localhost")


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "serve",
        help="serve models over HTTP, in OpenAI's API",
        description="Serve models over HTTP: OpenAI's API and llama-server's routes. SIGTERM and "
        "Ctrl-C let running answers end first; the second one does not.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS, "API_KEY"),
        formatter_class=options.HelpFormatter,
    )
    parser.add_argument(
        "-m", "--model", action="append",
        help="a GGUF file, or hf:OWNER/REPO[@REVISION][:FILE or QUANT]; several times for several "
        "models; default: the included demo model",
    )  # fmt: skip
    parser.add_argument("-a", "--alias", default="", help="names of the first model, with commas")
    parser.add_argument(
        "--tags", default="", help="words about the first model for clients, with commas"
    )
    several = parser.add_argument_group("several models")
    several.add_argument(
        "--models-dir", metavar="FOLDER", help="serve the GGUF files in this folder, too"
    )
    several.add_argument(
        "--models-preset", metavar="FILE",
        help="serve the models of this file, too, with settings for each; INI or TOML",
    )  # fmt: skip
    several.add_argument(
        "--models-max", type=int, default=4, metavar="N",
        help="most models in memory; the least recently used makes way; 0: no limit (default: 4)",
    )  # fmt: skip
    several.add_argument(
        "--models-memory", type=int, default=0, metavar="MIB",
        help="most memory of all models in MiB, at least; 0 (default): this machine's",
    )  # fmt: skip
    several.add_argument(
        "--models-autoload", action=argparse.BooleanOptionalAction, default=True,
        help="load a model when it is asked for; else POST /models/load does (default: on)",
    )  # fmt: skip
    several.add_argument(
        "--preload", action=argparse.BooleanOptionalAction, default=None,
        help="load all models at the start (default: only if -m gives a single one)",
    )  # fmt: skip
    several.add_argument(
        "--allow-delete", action="store_true",
        help="let clients delete models of --models-dir, with their files (default: off)",
    )  # fmt: skip
    several.add_argument(
        "--sleep-idle-seconds", type=float, default=-1.0, metavar="S",
        help="free a model after so long without a request, until the next one; -1 (default): "
        "never",
    )  # fmt: skip
    listening = parser.add_argument_group("listening")
    listening.add_argument(
        "--host", action="append",
        help="address, or the path of a Unix socket that ends with .sock; several with commas, or "
        "several times (default: 127.0.0.1)",
    )  # fmt: skip
    listening.add_argument(
        "--port", type=int, default=8080, metavar="N", help="port; 0: a free one (default: 8080)"
    )
    listening.add_argument(
        "--api-key", default="", metavar="KEY",
        help=f"key that clients must send, or several with commas (default: {_KEY})",
    )  # fmt: skip
    listening.add_argument(
        "--api-key-file", metavar="FILE",
        help="a file with a key per line: KEY, KEY NAME or KEY NAME PRIORITY",
    )  # fmt: skip
    listening.add_argument("--ssl-key-file", metavar="FILE", help="private key for HTTPS, PEM")
    listening.add_argument("--ssl-cert-file", metavar="FILE", help="certificate for HTTPS, PEM")
    listening.add_argument(
        "--api-prefix", default="", metavar="PATH", help="prefix of all paths, such as /llm"
    )
    listening.add_argument(
        "--forwarded-allow-ips", default="", metavar="IPS",
        help="proxies whose X-Forwarded-For and X-Forwarded-Proto count, with commas; *: all "
        "(default: none)",
    )  # fmt: skip
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
        "--max-per-client", type=int, metavar="N",
        help="most answers of a key (without keys: of an address) that run or wait at the same "
        "time; others get status 429 (default: no limit)",
    )  # fmt: skip
    listening.add_argument(
        "--max-request-time", type=float, metavar="S",
        help="seconds after which generating ends with status 504 (default: no limit)",
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
    listening.add_argument(
        "--no-page", action="store_false", dest="page", help="serve no page at /"
    )
    listening.add_argument(
        "--log-requests", action="store_true",
        help="write a line of JSON to stderr for each request, without prompts and answers",
    )  # fmt: skip
    listening.add_argument(
        "--slots", action=argparse.BooleanOptionalAction, default=False,
        help="serve /slots: what runs, without prompts (default: off)",
    )  # fmt: skip
    listening.add_argument(
        "--slot-save-path", metavar="DIR",
        help="a folder in which clients may save the prompts of slots, to restore them later",
    )  # fmt: skip
    listening.add_argument(
        "--media-urls", default="", metavar="HOSTS",
        help="fetch pictures and sounds from these hosts by https, with commas; all: from every "
        "public host (default: none, clients send the data itself)",
    )  # fmt: skip
    listening.add_argument(
        "--media-path", metavar="DIR",
        help="a folder from which clients may name pictures and sounds (default: none)",
    )  # fmt: skip
    listening.add_argument(
        "--pid-file", metavar="FILE",
        help="a file for the process id while the server runs, for `llama-cffi stop`",
    )  # fmt: skip
    running = options.add_running(
        parser,
        (*_FIELDS, "use_mmap"),
        n_ctx="context size of each answer: tokens of prompt and answer; 0: the model's, auto: the "
        "largest that fits into the memory (default: 4096, or the model's if that is less)",
    )
    running.add_argument(
        "-np", "--parallel", type=int, default=4, metavar="N",
        help="answers that are generated together; others wait (default: 4)",
    )  # fmt: skip
    running.add_argument(
        "--n-kv-tokens", type=int, metavar="N",
        help="tokens of a KV cache that all answers share (default: --ctx-size for each)",
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
        "--context-shift", action=argparse.BooleanOptionalAction, default=False,
        help="drop the oldest tokens of an answer that fills the context, and go on; only with "
        "-np 1 (default: off, the answer ends)",
    )  # fmt: skip
    running.add_argument(
        "--lora", action="append", default=[], metavar="FILE",
        help="a LoRA adapter, or several with commas; several times for several",
    )  # fmt: skip
    running.add_argument(
        "--lora-scaled", action="append", default=[], metavar="FILE:SCALE",
        help="the same with a scale",
    )  # fmt: skip
    running.add_argument(
        "--lora-init-without-apply", action="store_true",
        help="load the adapters with the scale 0, for requests that ask for them",
    )  # fmt: skip
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from ..api.config import LlamaConfig
    from ..server.serving import serve

    if args.context_shift and args.parallel > 1:
        raise ValidationError(f"--context-shift needs -np 1, got -np {args.parallel}")
    config = LlamaConfig(
        n_parallel=args.parallel,
        n_kv_tokens=args.n_kv_tokens,
        pooling=args.pooling,
        context_policy="shift" if args.context_shift else "error",
        adapters=_adapters(args),
        cache_ram=args.cache_ram,
        cache_dir=args.cache_dir,
        cache_disk=args.cache_disk,
        **options.given_options(args),
    )
    keys = _keys(args)
    hosts = _parts(",".join(args.host or ["127.0.0.1"]))
    for host in hosts if not keys else ():
        if host not in _LOCAL and not host.endswith(".sock"):
            print(
                f"warning: everybody who reaches {host} can use the server; set --api-key",
                file=sys.stderr,
            )
    if args.log_requests:
        _log_to_stderr()
    with (
        suppress(_Terminated),
        serve(
            _models(args),
            config,
            host=hosts,
            port=args.port,
            aliases=_parts(args.alias),
            api_keys=keys,
            cors_origins=_parts(args.cors_origins),
            max_waiting=args.max_waiting,
            max_per_client=args.max_per_client,
            max_request_s=args.max_request_time,
            ping_s=args.sse_ping_interval,
            metrics=args.metrics,
            page=args.page,
            tags=_parts(args.tags),
            models_dir=args.models_dir,
            models_preset=args.models_preset,
            models_max=args.models_max,
            models_memory=args.models_memory * _MIB,
            models_autoload=args.models_autoload,
            preload=args.preload,
            sleep_idle_s=None if args.sleep_idle_seconds < 0 else args.sleep_idle_seconds,
            log_requests=args.log_requests,
            api_prefix=args.api_prefix,
            trusted_proxies=_parts(args.forwarded_allow_ips),
            ssl_key_file=args.ssl_key_file,
            ssl_cert_file=args.ssl_cert_file,
            allow_delete=args.allow_delete,
            slots=args.slots,
            slot_save_path=args.slot_save_path,
            media_urls=args.media_urls == "all" or _parts(args.media_urls),
            media_path=args.media_path,
        ) as server,
        _terminable(),
        _pid_file(args.pid_file),
    ):
        try:
            print(f"listening on {' and '.join(server.urls)}", file=sys.stderr, flush=True)
            while server.is_running:
                time.sleep(1)
        finally:
            server.close(args.drain_timeout)
    return 0


class _Terminated(BaseException):
    """SIGTERM has arrived."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise `_Terminated` in this block, as Ctrl-C raises KeyboardInterrupt."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _pid_file(name: str | None) -> Iterator[None]:
    """Keep the process id in a file during this block."""
    if name is None:
        yield
        return
    from ..atomic_files import replacing

    path = Path(name).expanduser()
    try:
        with replacing(path) as file:
            file.write(f"{os.getpid()}\n".encode())
    except OSError as e:
        raise ValidationError(f"cannot write {path}: {e.strerror or e}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _log_to_stderr() -> None:
    from ..server.request_log import LOGGER

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def _models(args: argparse.Namespace) -> list[str]:
    """Return the files to serve, besides those of a folder and of presets."""
    if args.model or args.models_dir is not None or args.models_preset is not None:
        return args.model or []
    return [str(output.demo_path("serve"))]


def _keys(args: argparse.Namespace) -> list[str | ApiKey]:
    """Return the keys of the options, or else of the environment."""
    keys: list[str | ApiKey] = [*_parts(args.api_key)]
    if args.api_key_file is not None:
        from ..server.api_keys import read_key_file

        keys += read_key_file(args.api_key_file)
    return keys or [*_parts(os.environ.get(_KEY, ""))]


def _adapters(args: argparse.Namespace) -> dict[str, float] | None:
    """Return the LoRA adapters and their scales; None: there are none."""
    found = dict.fromkeys(_parts(",".join(args.lora)), 1.0)
    for part in _parts(",".join(args.lora_scaled)):
        path, _, scale = part.rpartition(":")
        try:
            found[path] = float(scale)
        except ValueError:
            path = ""
        if not path:
            raise ValidationError(f"--lora-scaled must be FILE:SCALE, got {part!r}")
    if args.lora_init_without_apply:
        found = dict.fromkeys(found, 0.0)
    return found or None


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
