"""`llama-cffi rerank`: documents sorted by how well they answer a query."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from . import inputs, interrupt, options, output
from .embed import PLACEMENT, opened

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi rerank -m reranker.gguf "who wrote it?" "a document" "another"
grep -h . notes/*.txt | llama-cffi rerank -m reranker.gguf "who wrote it?" --top-n 3
"""


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "rerank",
        help="sort documents by how well they answer a query",
        description="Print documents, the best answer to the query first, each after its score and "
        "its place in the input. They are arguments, or the lines of a file or of stdin. The scale "
        "of the scores is the model's.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS),
        formatter_class=options.HelpFormatter,
    )
    options.add_model(parser, default="")
    parser.add_argument("query", metavar="QUERY", help="the query")
    parser.add_argument(
        "documents", nargs="*", metavar="DOCUMENT", help="a document; without any, stdin is read"
    )
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="a file with a document in each line; -: stdin"
    )
    parser.add_argument(
        "--top-n", type=options.at_least(1), metavar="N", help="print only the best N"
    )
    parser.add_argument(
        "--truncate", action="store_true",
        help="cut documents that are longer than the model supports",
    )  # fmt: skip
    options.add_json(parser, "index, score and text of the documents")
    options.add_running(parser, PLACEMENT)
    parser.set_defaults(func=_run, usage_error=parser.error)


def _run(args: argparse.Namespace) -> int:
    if args.model is None:
        args.usage_error("give a reranker with -m, such as hf:gpustack/bge-reranker-v2-m3-GGUF")
    inputs.check_utf8(args.query, "query")
    documents = inputs.items(args.documents, args.file, args, "document")
    with opened(args, "rerank", "rank") as embedder:
        shows_bar = output.is_terminal(sys.stderr) and len(documents) > 1
        found = embedder.rerank(
            args.query, documents, top_n=args.top_n, truncate=args.truncate, progress=shows_bar
        )
        interrupt.check()
    if args.json:
        rows = [
            {"index": r.index, "relevance_score": r.score, "document": {"text": r.document}}
            for r in found
        ]
        output.print_json({"results": rows})
        return 0
    for result in found:
        output.say(f"{result.score:.4f}\t{result.index}\t{_one_line(result.document)}\n")
    return 0


def _one_line(text: str) -> str:
    text = text.replace("\n", " ")
    return output.printable(text) if output.is_terminal(sys.stdout) else text
