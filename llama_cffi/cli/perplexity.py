"""`llama-cffi perplexity`: how well a model predicts a text, and how far it is from another."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import inputs, interrupt, options, output
from .embed import PLACEMENT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..embeddings.perplexity import DivergenceStatistics
    from ..embeddings.scorer import Scorer

__all__ = ["add_parser", "opened_scorer"]

_EXAMPLES = """
llama-cffi perplexity -m model.gguf -f text.txt
llama-cffi perplexity -m f16.gguf -f text.txt --kl-divergence-base base.npz
llama-cffi perplexity -m q4.gguf --kl-divergence-base base.npz --kl-divergence
"""


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "perplexity",
        help="measure how well a model predicts a text",
        description="Print the perplexity of a text as llama-perplexity does: in chunks of -c "
        "tokens, of which the second half counts. With a file of the log-probabilities of a base "
        "model, the divergence from that model.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS),
        formatter_class=options.HelpFormatter,
    )
    options.add_model(parser)
    inputs.add_text(parser, "the text")
    parser.add_argument(
        "-c", "--ctx-size", "--ctx", type=options.at_least(4), dest="chunk", metavar="N",
        help="tokens of a chunk (default: 512, or the model's context if that is less)",
    )  # fmt: skip
    parser.add_argument(
        "--chunks", type=options.at_least(-1), default=-1, metavar="N",
        help="most chunks; -1 (default): all",
    )  # fmt: skip
    parser.add_argument(
        "--kl-divergence-base", "--save-all-logits", metavar="FILE", dest="base",
        help="write the log-probabilities of this model to a file; with --kl-divergence read it",
    )  # fmt: skip
    parser.add_argument(
        "--kl-divergence", action="store_true",
        help="compare with the base model of that file, on its text",
    )  # fmt: skip
    options.add_json(parser, "the result")
    options.add_running(parser, PLACEMENT)
    parser.set_defaults(func=_run, usage_error=parser.error)


def _run(args: argparse.Namespace) -> int:
    if args.chunks == 0:
        args.usage_error("--chunks must be at least 1, or -1 for all, got 0")
    if args.kl_divergence and args.base is None:
        args.usage_error("--kl-divergence compares with a file; add --kl-divergence-base FILE")
    if args.kl_divergence:
        if any(value is not None for value in (args.text, args.prompt, args.file, args.chunk)):
            args.usage_error("--kl-divergence takes text and -c from the base file; leave them out")
        return _compare(args)
    text = inputs.without_newline(inputs.text_of(args, "text"))
    return _measure(args, text)


@contextlib.contextmanager
def opened_scorer(args: argparse.Namespace, command: str, n_ctx: int) -> Iterator[Scorer]:
    """Provide a scorer of the model of *args*."""
    from ..api.config import LlamaConfig, fit_config
    from ..embeddings.scorer import Scorer

    # Its context is not that of a `Llama`, which the check is about.
    config = LlamaConfig(check_memory=False, **options.running_options(args))
    source, config = fit_config(options.model_source(args, command), config)
    with Scorer(
        source,
        n_ctx=n_ctx,
        n_threads=config.n_threads or 0,
        **config.model_options(),
    ) as scorer:
        yield scorer


def _measure(args: argparse.Namespace, text: str) -> int:
    import numpy as np

    from ..embeddings import perplexity

    with contextlib.ExitStack() as stack:
        scorer = stack.enter_context(opened_scorer(args, "perplexity", args.chunk or 0))
        if args.chunk is None:
            scorer.n_ctx = min(512, scorer.n_ctx)
        chunks = perplexity.chunks_of(scorer, text, None if args.chunks < 0 else args.chunks)
        writer = None
        if args.base is not None:
            path = Path(args.base).expanduser()
            writer = stack.enter_context(perplexity.writing_base(path, chunks))
        nll: list[NDArray[np.float64]] = []
        for chunk in chunks:
            logprobs = perplexity.chunk_logprobs(scorer, chunk)
            interrupt.check()
            nll.append(-_at(logprobs, perplexity.targets_of(chunk)))
            if writer is not None:
                writer.add(logprobs)
            _tell(len(nll), lambda: float(np.exp(np.mean(np.concatenate(nll)))))
        _end_of_line()
        found = perplexity.perplexity_of(np.concatenate(nll))
        n_ctx = scorer.n_ctx
    if args.json:
        output.print_json(
            {
                "perplexity": found.value,
                "error": found.error,
                "n_ctx": n_ctx,
                "n_chunks": len(chunks),
                "n_tokens": sum(map(len, nll)),
            }
        )
    else:
        output.say(f"Final estimate: PPL = {found.value:.4f} +/- {found.error:.5f}\n")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from ..embeddings import perplexity
    from ..errors import ValidationError

    base = perplexity.Base(Path(args.base).expanduser())
    chunks = base.chunks if args.chunks < 0 else base.chunks[: args.chunks]
    with (
        contextlib.closing(base),
        opened_scorer(args, "perplexity", len(chunks[0])) as scorer,
    ):
        n_vocab = len(scorer.model.vocab)
        if n_vocab != base.n_vocab:
            raise ValidationError(
                f"{scorer.model.path.name} has {n_vocab} tokens and the base model "
                f"{base.n_vocab}; only models with the same vocabulary can be compared"
            )
        divergence = perplexity.Divergence()
        for i, chunk in enumerate(chunks):
            logprobs = perplexity.chunk_logprobs(scorer, chunk)
            interrupt.check()
            divergence.add(logprobs, base.logprobs(i), perplexity.targets_of(chunk))
            _tell(i + 1, lambda: float(divergence.statistics().kld.mean()))
        _end_of_line()
    statistics = divergence.statistics()
    if args.json:
        output.print_json(_as_dict(statistics))
    else:
        output.say(_report(statistics))
    return 0


def _at(logprobs: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    import numpy as np

    return np.asarray(logprobs[np.arange(len(targets)), targets], np.float64)


def _tell(n: int, value: Callable[[], float]) -> None:
    """Show the result so far to a person."""
    if output.is_terminal(sys.stderr):
        print(f"[{n}]{value():.4f},", end="", file=sys.stderr, flush=True)


def _end_of_line() -> None:
    if output.is_terminal(sys.stderr):
        print(file=sys.stderr)


def _as_dict(statistics: DivergenceStatistics) -> dict[str, object]:
    from ..embeddings.perplexity import estimate, percentiles, perplexity_of

    own, base = perplexity_of(statistics.nll), perplexity_of(statistics.nll_base)
    ratio, kld, dp = (
        estimate(x) for x in (statistics.nll - statistics.nll_base, statistics.kld, statistics.dp)
    )
    squares, same = estimate(statistics.dp**2), estimate(statistics.same_top)
    return {
        "n_tokens": len(statistics.kld),
        "perplexity": {"value": own.value, "error": own.error},
        "perplexity_base": {"value": base.value, "error": base.error},
        "ln_perplexity_ratio": {"value": ratio.value, "error": ratio.error},
        "kld": {"mean": kld.value, "error": kld.error, **percentiles(statistics.kld)},
        "dp": {"mean": dp.value, "error": dp.error, **percentiles(statistics.dp)},
        "dp_rms": squares.value**0.5,
        "same_top": {"value": same.value, "error": same.error},
    }


def _report(statistics: DivergenceStatistics) -> str:
    """Return the statistics as llama-perplexity writes them."""
    found: Any = _as_dict(statistics)
    lines = ["====== Perplexity statistics ======"]
    for name, key in (
        ("Mean PPL(Q)", "perplexity"),
        ("Mean PPL(base)", "perplexity_base"),
        ("Mean ln(PPL(Q)/PPL(base))", "ln_perplexity_ratio"),
    ):
        value = found[key]
        lines.append(f"{name:30}: {value['value']:10.6f} ± {value['error']:10.6f}")
    lines += ["", "====== KL divergence statistics ======"]
    kld = found["kld"]
    lines.append(f"{'Mean':7} KLD: {kld.pop('mean'):10.6f} ± {kld.pop('error'):10.6f}")
    lines += [f"{name:7} KLD: {value:10.6f}" for name, value in kld.items()]
    lines += ["", "====== Token probability statistics ======"]
    dp = found["dp"]
    lines.append(f"{'Mean':7} Δp: {dp.pop('mean') * 100:6.3f} ± {dp.pop('error') * 100:5.3f} %")
    lines += [f"{name:7} Δp: {value * 100:6.3f}%" for name, value in dp.items()]
    same = found["same_top"]
    lines.append(f"RMS Δp    : {found['dp_rms'] * 100:6.3f} %")
    lines.append(f"Same top p: {same['value'] * 100:6.3f} ± {same['error'] * 100:5.3f} %")
    return "\n".join(lines) + "\n"
