"""`llama-cffi quantize`: write a smaller copy of a model, or tell how large it would be."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LlamaError, ValidationError
from . import interrupt, options, output

if TYPE_CHECKING:
    from ..binding.model.quantize import QuantizePlan

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi quantize model-f16.gguf Q4_K_M --dry-run
llama-cffi quantize model-f16.gguf model-q4.gguf Q4_K_M
llama-cffi quantize --list
"""
_MIB = 2**20
_COPY = "COPY"


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "quantize",
        help="write a quantized copy of a model",
        description="Write a quantized copy of a GGUF file, in another process. On a terminal the "
        "resulting size is told first. --dry-run writes nothing.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS),
        formatter_class=options.HelpFormatter,
    )
    parser.add_argument(
        "source", nargs="?", metavar="IN", help="a GGUF file; of a split model the first part"
    )
    parser.add_argument(
        "target", nargs="?", metavar="OUT", help="the new file; not needed with --dry-run"
    )
    parser.add_argument(
        "ftype", nargs="?", metavar="TYPE",
        help="a type such as Q4_K_M, in any case, or COPY to join the parts of a model",
    )  # fmt: skip
    parser.add_argument(
        "threads", nargs="?", type=options.at_least(1), metavar="THREADS",
        help="number of threads (default: LLAMA_CFFI_N_THREADS, or physical cores)",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="print types and sizes, and write nothing"
    )
    parser.add_argument("--list", action="store_true", help="print the types of this build")
    parser.add_argument(
        "--allow-requantize", action="store_true",
        help="accept a file that is quantized already; the quality suffers",
    )  # fmt: skip
    parser.add_argument(
        "--pure", action="store_true", help="the same type for all matrices, not a mixture"
    )
    parser.add_argument(
        "--output-tensor-type", metavar="TYPE", help="another type for output.weight"
    )
    parser.add_argument(
        "--token-embedding-type", metavar="TYPE", help="another type for token_embd.weight"
    )
    parser.add_argument(
        "--keep-split", action="store_true", help="write as many parts as the source has"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    options.add_json(parser, "sizes and types")
    parser.set_defaults(func=_run, usage_error=parser.error)


def _run(args: argparse.Namespace) -> int:
    if args.list:
        return _list(args)
    _arrange(args)
    if args.ftype is None:
        args.usage_error("give IN, OUT and TYPE; --list prints the types")
    from ..binding.model import quantize as binding
    from ..hub import resolve_model

    source, ftype = resolve_model(args.source), str(args.ftype)
    how: dict[str, Any] = {
        "allow_requantize": args.allow_requantize,
        "pure": args.pure,
        "output_tensor_type": args.output_tensor_type,
        "token_embedding_type": args.token_embedding_type,
    }
    try:
        if args.dry_run:
            plan = binding.plan_quantize(source, ftype, **how)
            _print(plan, args, None)
            return 0
        target = _target(args, source)
        copies = ftype.upper() == _COPY
        if output.is_terminal(sys.stderr) and not copies:
            with contextlib.suppress(ValidationError):  # an old build has no dry run
                print(_summary(binding.plan_quantize(source, ftype, **how)), file=sys.stderr)
        written = binding.quantize(
            source,
            target,
            "Q8_0" if copies else ftype,
            n_threads=args.threads or 0,
            only_copy=copies,
            keep_split=args.keep_split,
            overwrite=args.overwrite,
            progress=output.is_terminal(sys.stderr),
            **how,
        )
    except LlamaError as e:
        if "requantizing" in str(e):
            raise LlamaError(
                f"{source.name} is quantized already, which costs quality twice; quantize its F16 "
                "or F32 version, or add --allow-requantize"
            ) from e
        raise
    interrupt.check()
    _print(_written(source, written, ftype), args, written)
    return 0


def _arrange(args: argparse.Namespace) -> None:
    """Tell `IN TYPE --dry-run` from `IN OUT TYPE`."""
    if args.dry_run and args.ftype is None:
        args.ftype, args.target = args.target, None


def _target(args: argparse.Namespace, source: Path) -> Path:
    target = Path(args.target).expanduser()
    if target.is_dir():
        raise ValidationError(f"{target} is a folder; name the new file in it")
    if target.exists() and target.samefile(source):
        raise ValidationError(f"{target} is the source; choose another target")
    if target.exists() and not args.overwrite:
        raise ValidationError(f"{target} exists; add --overwrite to replace it")
    return target


def _written(source: Path, target: Path, ftype: str) -> QuantizePlan:
    """Return the types and sizes of a file that was written."""
    from ..binding.model.files import open_files
    from ..binding.model.quantize import QuantizedTensor, QuantizePlan

    before = {tensor.name: tensor for tensor in open_files(source).summary.tensors}
    return QuantizePlan(
        ftype.upper(),
        tuple(
            QuantizedTensor(
                t.name,
                t.shape,
                before[t.name].type_name,
                t.type_name,
                before[t.name].size_bytes or 0,
                t.size_bytes or 0,
            )
            for t in open_files(target).summary.tensors
        ),
    )


def _summary(plan: QuantizePlan) -> str:
    return (
        f"{plan.size_bytes / _MIB:,.2f} MiB -> {plan.new_size_bytes / _MIB:,.2f} MiB as "
        f"{plan.ftype}, {plan.bits_per_weight:.2f} bits per weight"
    )


def _print(plan: QuantizePlan, args: argparse.Namespace, written: Path | None) -> None:
    if args.json:
        output.print_json(
            {
                "type": plan.ftype,
                "file": None if written is None else str(written),
                "size_bytes": plan.size_bytes,
                "new_size_bytes": plan.new_size_bytes,
                "bits_per_weight": round(plan.bits_per_weight, 4),
                "tensors": [
                    {"name": t.name, "shape": list(t.shape), "type": t.type_name,
                     "new_type": t.new_type_name, "new_size_bytes": t.new_size_bytes}
                    for t in plan.tensors
                ],
            }
        )  # fmt: skip
        return
    if written is None:
        rows = [
            (
                t.name,
                "x".join(map(str, t.shape)),
                t.type_name,
                t.new_type_name,
                f"{t.new_size_bytes / _MIB:.3f}",
            )
            for t in plan.tensors
        ]
        output.print_table(("TENSOR", "SHAPE", "TYPE", "NEW", "MIB"), rows)
        output.say("\n")
    else:
        output.say(f"{written}\n")
    output.say(_summary(plan) + "\n")


def _list(args: argparse.Namespace) -> int:
    from ..binding.model.quantize import file_types

    names = file_types()
    if args.json:
        output.print_json({"types": list(names)})
    else:
        output.say("".join(f"{name}\n" for name in names))
    return 0
