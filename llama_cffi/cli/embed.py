"""`llama-cffi embed`: the embeddings of texts."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError
from . import inputs, interrupt, options, output

if TYPE_CHECKING:
    from ..embeddings.embedder import Embedder, Embeddings

__all__ = ["PLACEMENT", "add_parser", "opened"]

_EXAMPLES = """
llama-cffi embed -m hf:owner/repo "a text" "another"
llama-cffi embed -m model.gguf -f lines.txt -o npy --out vectors.npy
sort -u lines.txt | llama-cffi embed -m model.gguf -o csv
"""
PLACEMENT = (
    "n_threads", "n_gpu_layers", "n_cpu_moe", "main_gpu", "split_mode", "tensor_split",
)  # fmt: skip
_FORMATS = ("json", "jsonl", "csv", "npy")


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "embed",
        help="print the embeddings of texts",
        description="Print the embedding of each text: of the arguments, or of the lines of a file "
        "or of stdin. Lines without text are left out.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS),
        formatter_class=options.HelpFormatter,
    )
    options.add_model(parser)
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text; without any, stdin is read"
    )
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="a file with a text in each line; -: stdin"
    )
    parser.add_argument(
        "-o", "--output-format", "--embd-output-format", choices=_FORMATS, default="json",
        dest="format",
        help="json (default): OpenAI's response; jsonl: an object per line; csv: the numbers of a "
        "text per line; npy: numpy's file of (texts, n_embd) float32",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="-o json, errors too")
    parser.add_argument("--out", metavar="FILE", help="write to a file in place of stdout")
    parser.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, default=True,
        help="scale each vector to length 1 (default: on)",
    )  # fmt: skip
    parser.add_argument(
        "--pooling", choices=("mean", "cls", "last"),
        help="how the vectors of the tokens become one (default: the model's, or mean)",
    )  # fmt: skip
    parser.add_argument(
        "--truncate", action="store_true", help="cut texts that are longer than the model supports"
    )
    options.add_running(parser, PLACEMENT)
    parser.set_defaults(func=_run, usage_error=parser.error)


def _run(args: argparse.Namespace) -> int:
    texts = inputs.items(args.texts, args.file, args, "text")
    args.format = "json" if args.json else args.format
    if args.format == "npy" and args.out is None and output.is_terminal(sys.stdout):
        args.usage_error("-o npy is not for a terminal; add --out FILE, or pipe it on")
    with opened(args, "embed", args.pooling) as embedder:
        vectors = embedder.embed(
            texts,
            normalize=args.normalize,
            truncate=args.truncate,
            progress=output.is_terminal(sys.stderr) and len(texts) > 1,
        )
        interrupt.check()
        name, n = embedder.model.path.name, sum(map(len, map(embedder.model.vocab.tokenize, texts)))
    data = _formatted(vectors, args.format, name, n)
    if args.out is not None:
        _write(args.out, data)
    elif args.format == "npy":
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        output.say(data.decode())
    return 0


@contextlib.contextmanager
def opened(args: argparse.Namespace, command: str, pooling: str | None) -> Iterator[Embedder]:
    """Provide the embedder of the model of *args*.

    Args:
        args: Arguments with the options of `add_model` and `add_running`.
        command: The name of the command.
        pooling: See `Embedder`; None: the model's, or `mean` if it has none, as in `Llama`.
    """
    from ..api.config import LlamaConfig, fit_config
    from ..embeddings.embedder import Embedder
    from ..generation.model_source import open_model

    # Its context is not that of a `Llama`, which the check is about.
    config = LlamaConfig(check_memory=False, **options.running_options(args))
    source, config = fit_config(options.model_source(args, command), config)
    n_threads = config.n_threads or 0
    with open_model(source, **config.model_options())[0] as model:
        embedder = Embedder(model, pooling=pooling, n_threads=n_threads)
        if pooling is None and embedder.pooling == "none":
            embedder.close()
            embedder = Embedder(model, pooling="mean", n_threads=n_threads)
        with embedder:
            yield embedder


def _formatted(vectors: Embeddings, form: str, model: str, n_tokens: int) -> bytes:
    import numpy as np

    if form == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(vectors))
        return buffer.getvalue()
    rows = [row.tolist() for row in vectors]
    if form == "csv":
        return "".join(",".join(map(repr, row)) + "\n" for row in rows).encode()
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    if form == "jsonl":
        return "".join(json.dumps(item) + "\n" for item in data).encode()
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    whole = {"object": "list", "model": model, "data": data, "usage": usage}
    return (output.json_text(whole) + "\n").encode()


def _write(path: str, data: bytes) -> None:
    from ..atomic_files import replacing

    try:
        with replacing(Path(path).expanduser()) as file:
            file.write(data)
    except OSError as e:
        raise ValidationError(
            f"cannot write {path}: {e.strerror or e}; give another path to --out"
        ) from None
