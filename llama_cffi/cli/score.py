"""`llama-cffi score`: the probability of given continuations of a prompt."""

from __future__ import annotations

import argparse
import math
from typing import Any

from . import inputs, interrupt, options, output
from .embed import PLACEMENT
from .perplexity import opened_scorer

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi score -m model.gguf "The capital of France is" " Paris" " London"
llama-cffi score -m model.gguf "The capital of France is" -f choices.txt --json
"""


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "score",
        help="print the probability of given continuations",
        description="Print, for each continuation of a prompt, its probability among those given, "
        "its log-probability, its number of tokens, and its text. Nothing is generated, and no "
        "chat template applied.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS),
        formatter_class=options.HelpFormatter,
    )
    options.add_model(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the text before")
    parser.add_argument(
        "continuations", nargs="*", metavar="TEXT",
        help="a continuation, with its leading space; without any, stdin is read",
    )  # fmt: skip
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="a file with a continuation in each line; -: stdin"
    )
    options.add_json(parser, "continuations, with the log-probability of each token")
    options.add_running(parser, PLACEMENT)
    parser.set_defaults(func=_run, usage_error=parser.error)


def _run(args: argparse.Namespace) -> int:
    prompt = inputs.check_utf8(args.prompt, "prompt")
    texts = inputs.items(args.continuations, args.file, args, "continuation")
    with opened_scorer(args, "score", 0) as scorer:
        scores = scorer.score_continuations(prompt, texts)
        interrupt.check()
    most = max(score.logprob for score in scores)
    weights = [math.exp(score.logprob - most) for score in scores]
    rows = [
        (weight / sum(weights), score, text)
        for weight, score, text in zip(weights, scores, texts, strict=True)
    ]
    if args.json:
        output.print_json(
            {
                "prompt": prompt,
                "continuations": [
                    {
                        "text": text,
                        "probability": share,
                        "logprob": score.logprob,
                        "n_tokens": score.n_tokens,
                        "logprobs": score.per_token.tolist(),
                    }
                    for share, score, text in rows
                ],
            }
        )
        return 0
    for share, score, text in rows:
        shown = text.replace("\n", "\\n")
        output.say(f"{share:.4f}\t{score.logprob:.4f}\t{score.n_tokens}\t{shown}\n")
    return 0
