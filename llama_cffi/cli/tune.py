"""`llama-cffi tune`: find the fastest settings of a model on this machine."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from . import interrupt, options, output

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi tune -m model.gguf
llama-cffi tune -m model.gguf -p 2048 -n 256 --seconds 300
llama-cffi tune -m model.gguf --dry-run
"""


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "tune",
        help="find the fastest settings of a model here",
        description="Measure CPU variants of the build, flash attention, numbers of threads and "
        "n_ubatch on this machine, each beside the best so far, and keep what is faster than the "
        "defaults: for models of this shape, this build and this processor. All commands and "
        "classes use it where nothing else is set. What an environment variable sets is not "
        "varied. Repeat it after a new build or on another machine.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS),
        formatter_class=options.HelpFormatter,
    )
    options.add_model(parser)
    parser.add_argument(
        "-p", "--n-prompt", type=options.at_least(1), default=512, metavar="N",
        help="tokens of the prompt of a typical request (default: 512)",
    )  # fmt: skip
    parser.add_argument(
        "-n", "--n-gen", type=options.at_least(1), default=128, metavar="N",
        help="tokens of its answer (default: 128)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S",
        help="about how long to measure; requests of large models become shorter for it "
        "(default: 60)",
    )  # fmt: skip
    parser.add_argument(
        "-ngl", "--gpu-layers", "--n-gpu-layers", type=options.at_least(-1), default=-1,
        metavar="N", help="layers on the GPU; -1 (default): all, 0: none",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="only tell what would be measured, and about how long it would take",
    )  # fmt: skip
    options.add_json(parser, "the result")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from ..tuning import tune

    result = tune(
        options.model_source(args, "tune"),
        seconds=args.seconds,
        n_prompt=args.n_prompt,
        n_gen=args.n_gen,
        n_gpu_layers=args.gpu_layers,
        dry_run=args.dry_run,
        progress=output.is_terminal(sys.stderr),
    )
    interrupt.check()
    if args.json:
        output.print_json(result.to_dict())
    else:
        output.say(f"{output.printable(str(result))}\n")
    return 0
