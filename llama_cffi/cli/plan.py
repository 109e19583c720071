"""`llama-cffi plan`: what a model takes in memory with given settings, before it is loaded."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import ValidationError
from . import options, output

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi plan -m model.gguf -c 32768 -np 4
llama-cffi plan -m hf:owner/repo:Q4_K_M -c auto -ctk q8_0 -ctv q8_0
llama-cffi plan -m model.gguf -ngl auto --json
"""
_FIELDS = (
    "n_ctx", "n_gpu_layers", "n_batch", "n_ubatch", "flash_attn", "type_k", "type_v", "n_cpu_moe",
    "mmproj",
)  # fmt: skip


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "plan",
        help="what a model takes in memory, and what fits",
        description="Print what a model takes on each device: weights, KV cache, compute and "
        "output buffers; whether that fits into the free memory, and the largest context, number "
        "of answers together and of layers on the GPU that do. Nothing is loaded, and of a file "
        "on the hub only the header is read. The exit code is 0 if it fits, else 1.",
        epilog=options.epilog(_EXAMPLES, *options.BUILDS),
        formatter_class=options.HelpFormatter,
    )
    options.add_model(parser)
    parser.add_argument(
        "-np", "--parallel", type=int, default=1, metavar="N",
        help="answers that are generated together (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--n-kv-tokens", type=int, metavar="N", help="tokens of one cache that all answers share"
    )
    parser.add_argument(
        "-dev", "--device", metavar="NAMES",
        help="devices beside the CPU, with commas; none: only the CPU (default: all)",
    )  # fmt: skip
    parser.add_argument("-md", "--model-draft", metavar="MODEL", help="draft model")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE", help="a LoRA adapter; repeatable"
    )
    parser.add_argument(
        "--swa-full", action=argparse.BooleanOptionalAction, default=None,
        help="keep positions that left the sliding window",
    )  # fmt: skip
    options.add_running(parser, _FIELDS, mmproj="the projector for pictures and sounds")
    options.add_json(parser, "the plan, in bytes,")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from ..memory_plan import plan

    if args.device is None:
        devices = None
    else:
        devices = [] if args.device == "none" else args.device.split(",")
    if args.model == "":
        raise ValidationError("--model is empty; give a GGUF file or hf:OWNER/REPO")
    given = {name: getattr(args, name) for name in _FIELDS if getattr(args, name) is not None}
    found = plan(
        args.model or output.demo_path("plan"),
        n_parallel=args.parallel,
        n_kv_tokens=args.n_kv_tokens,
        devices=devices,
        draft=args.model_draft,
        adapters=args.lora,
        swa_full=args.swa_full,
        **given,
    )
    if args.json:
        output.print_json(found.to_dict())
    else:
        output.say(f"{output.printable(str(found))}\n")
    return 0 if found.fits else 1
