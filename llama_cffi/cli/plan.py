"""`llama-cffi plan`: what a model takes in memory with given settings, before it is loaded."""

from __future__ import annotations

import argparse
from typing import Any, Literal

from ..errors import ValidationError
from . import output

__all__ = ["add_parser"]

_EXAMPLES = """\
examples:
  llama-cffi plan -m model.gguf -c 32768 -np 4
  llama-cffi plan -m hf:owner/repo:Q4_K_M -c auto -ctk q8_0 -ctv q8_0
  llama-cffi plan -m model.gguf -ngl auto --json
"""
_SWITCH = {"on": True, "off": False, "auto": None}
_CACHE_TYPES = "f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl"


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "plan",
        help="what a model takes in memory, and what fits",
        description="Print what a model takes on each device: weights, KV cache, compute and "
        "output buffers; whether that fits into the free memory, and the largest context, number "
        "of answers together and of layers on the GPU that do. Nothing is loaded. The exit code "
        "is 0 if it fits, else 1.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-m", "--model", help="a GGUF file, or hf:OWNER/REPO[@REVISION][:FILE or QUANT]; default: "
        "the included demo model",
    )  # fmt: skip
    parser.add_argument(
        "-c", "--ctx-size", type=_number, metavar="N",
        help="context size of each answer; 0: the model's, auto: the largest that fits (default: "
        "4096, or the model's if that is less)",
    )  # fmt: skip
    parser.add_argument(
        "-np", "--parallel", type=int, default=1, metavar="N",
        help="answers that are generated together (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--n-kv-tokens", type=int, metavar="N", help="tokens of one cache that all answers share"
    )
    parser.add_argument(
        "-b", "--batch-size", type=int, default=2048, metavar="N",
        help="most tokens per decode (default: 2048)",
    )  # fmt: skip
    parser.add_argument(
        "-ub", "--ubatch-size", type=int, default=512, metavar="N",
        help="most tokens computed together (default: 512)",
    )  # fmt: skip
    parser.add_argument(
        "-ctk", "--cache-type-k", metavar="TYPE",
        help=f"type of the keys in the KV cache: {_CACHE_TYPES} (default: f16)",
    )  # fmt: skip
    parser.add_argument(
        "-ctv", "--cache-type-v", metavar="TYPE", help="the same of the values (default: f16)"
    )
    parser.add_argument(
        "-fa", "--flash-attn", choices=[*_SWITCH], default="auto",
        help="flash attention (default: auto, the build's choice)",
    )  # fmt: skip
    parser.add_argument(
        "-ngl", "--n-gpu-layers", type=_number, default=-1, metavar="N",
        help="layers on the GPU; -1: all, auto: as many as fit (default: -1)",
    )  # fmt: skip
    parser.add_argument(
        "-ncmoe", "--n-cpu-moe", type=int, default=0, metavar="N",
        help="layers, from the first on, whose experts stay on the CPU",
    )  # fmt: skip
    parser.add_argument(
        "-dev", "--device", metavar="NAMES",
        help="devices beside the CPU, with commas; none: only the CPU (default: all)",
    )  # fmt: skip
    parser.add_argument("-mm", "--mmproj", metavar="FILE", help="projector for images and audio")
    parser.add_argument("-md", "--model-draft", metavar="MODEL", help="draft model")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE", help="a LoRA adapter; repeatable"
    )
    parser.add_argument(
        "--swa-full", action=argparse.BooleanOptionalAction, default=None,
        help="keep positions that left the sliding window",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the plan as JSON, in bytes")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from ..memory_plan import PlanOptions, plan

    if args.device is None:
        devices = None
    else:
        devices = [] if args.device == "none" else args.device.split(",")
    options: PlanOptions = {
        "n_ctx": args.ctx_size,
        "n_parallel": args.parallel,
        "n_kv_tokens": args.n_kv_tokens,
        "n_batch": args.batch_size,
        "n_ubatch": args.ubatch_size,
        "type_k": args.cache_type_k,
        "type_v": args.cache_type_v,
        "flash_attn": _SWITCH[args.flash_attn],
        "n_gpu_layers": args.n_gpu_layers,
        "n_cpu_moe": args.n_cpu_moe,
        "devices": devices,
        "mmproj": args.mmproj,
        "draft": args.model_draft,
        "adapters": args.lora,
        "swa_full": args.swa_full,
    }
    if args.model == "":
        raise ValidationError("--model is empty; give a GGUF file or hf:OWNER/REPO")
    found = plan(args.model or output.demo_path("plan"), **options)
    if args.json:
        output.print_json(found.to_dict())
    else:
        output.say(f"{output.printable(str(found))}\n")
    return 0 if found.fits else 1


def _number(text: str) -> int | Literal["auto"]:
    """Return the number of an option, or `auto`."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer or auto, got {text!r}") from None
