"""`llama-cffi generate`: answer a prompt, streaming."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ContextOverflowError, ValidationError
from . import inputs, interrupt, output

if TYPE_CHECKING:
    from ..engine.engine import Engine

__all__ = ["add_parser"]

_EXAMPLES = """\
examples:
  llama-cffi generate "What is 12 + 30?"
  llama-cffi generate -m hf:owner/repo:Q4_K_M -s "Be brief." "Why is the sky blue?"
  git diff | llama-cffi generate -m model.gguf "Review this change:"
"""

_CONTEXT_ADVICE = "Shorten the prompt, or give a larger context with -c N (0: the model's)."

# Sampling options whose defaults are the engine's: name, type, help.
_SAMPLING: tuple[tuple[str, Callable[[str], object], str], ...] = (
    ("top_k", int, "keep the K most probable tokens; 0: all (default: 40)"),
    ("top_p", float, "keep the most probable tokens up to this total probability (default: 0.9)"),
    ("min_p", float, "keep tokens with this fraction of the highest probability (default: 0.05)"),
    (
        "repeat_penalty",
        float,
        "penalize repeated tokens; 1.0: off (default: 1.1, or 1.0 when greedy)",
    ),
    ("seed", int, "the same seed gives the same text (default: random)"),
)


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "generate",
        help="answer a prompt",
        description="Answer a prompt with a local model. The first use fetches llama.cpp itself.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-m", "--model",
        help="a GGUF file, or hf:OWNER/REPO[@REVISION][:FILE or QUANT] from the Hugging Face hub; "
        "default: the included demo model",
    )  # fmt: skip
    parser.add_argument(
        "text", nargs="?", metavar="prompt",
        help="the prompt; what is piped in follows it, and is the whole prompt without it",
    )  # fmt: skip
    parser.add_argument("-p", "--prompt", help="the prompt too; `-` reads stdin")
    parser.add_argument("-s", "--system", default="", help="the system prompt")
    parser.add_argument(
        "-n", "--max-tokens", "--n-predict", "--predict", type=_at_least(-1), default=256,
        metavar="N",
        help="most tokens to generate (default: 256); -1: until the model ends the answer",
    )  # fmt: skip
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature", type=float, default=0.0, metavar="T",
        help="randomness; 0 (default): greedy, the same answer each time; 0.7: varied answers",
    )  # fmt: skip
    for name, kind, text in _SAMPLING:
        option = f"--{name.replace('_', '-')}"
        sampling.add_argument(option, type=kind, metavar=name[-1].upper(), help=text)
    sampling.add_argument(
        "--ignore-eos", action="store_true",
        help="go on to --max-tokens even where the model would end the answer",
    )  # fmt: skip
    thinking = parser.add_argument_group("reasoning models")
    thinking.add_argument(
        "--thinking", action=argparse.BooleanOptionalAction,
        help="reason before answering; default: the model's",
    )  # fmt: skip
    thinking.add_argument(
        "--reasoning-effort", choices=("none", "minimal", "low", "medium", "high"),
        help="how much to reason, for models with such a setting",
    )  # fmt: skip
    running = parser.add_argument_group("running")
    running.add_argument(
        "-c", "--ctx", type=_at_least(0), metavar="N",
        help="context size: tokens of prompt and answer together; 0: the model's (default: 4096, "
        "or the model's if that is less)",
    )  # fmt: skip
    running.add_argument(
        "-t", "--threads", type=_at_least(0), default=0, metavar="N",
        help="number of threads (default: LLAMA_CFFI_N_THREADS, or physical cores)",
    )  # fmt: skip
    running.add_argument(
        "--gpu-layers", type=_at_least(-1), default=-1, metavar="N",
        help="layers on the GPU; -1 (default): all, 0: none",
    )  # fmt: skip
    running.add_argument("--raw", action="store_true", help="do not apply the chat template")
    running.add_argument(
        "--json", action="store_true", help="print text, token ids, build and timings as JSON"
    )
    parser.set_defaults(func=_run, usage_error=parser.error)


def _at_least(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        return value

    return parse


def _run(args: argparse.Namespace) -> int:
    if args.raw and args.system:
        args.usage_error("--raw uses the prompt verbatim; leave out --system")
    prompt = _prompt(args)
    # Check the options before loading a model.
    from ..generation.options import parse_options

    names = ["temperature", *(name for name, _, _ in _SAMPLING)]
    sampling = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    sampling["ignore_eos"] = args.ignore_eos
    chat = {n: getattr(args, n) for n in ("thinking", "reasoning_effort")}
    chat = {name: value for name, value in chat.items() if value is not None}
    if args.raw and chat:
        args.usage_error(
            f"--raw uses the prompt verbatim; leave out --{next(iter(chat)).replace('_', '-')}"
        )
    if args.max_tokens == 0:
        args.usage_error("--max-tokens must be at least 1, or -1, got 0")
    args.max_tokens = None if args.max_tokens == -1 else args.max_tokens
    parse_options(args.max_tokens, sampling, 1)

    from ..engine import environment, preset
    from ..engine.engine import Engine

    text = {**preset.text_defaults("error"), "special": environment.flag("SPECIAL", None, False)}
    sampling = {**text, **sampling}
    started = time.perf_counter()
    with Engine(
        _model_path(args.model),
        n_ctx=args.ctx,
        # ggml's threads spin while waiting; on a busy machine, two slow the demo model down.
        n_threads=args.threads or (0 if args.model else 1),
        n_gpu_layers=args.gpu_layers,
        context_policy="error",
    ) as engine:
        interrupt.check()
        try:
            if args.json:
                _print_result(engine, args, prompt, sampling, chat, started)
            else:
                _stream(engine, args, prompt, {**sampling, **chat})
        except ContextOverflowError as error:
            facts = str(error).partition(". ")[0]
            raise ContextOverflowError(f"{facts}. {_CONTEXT_ADVICE}") from error
    return 0


def _prompt(args: argparse.Namespace) -> str:
    if args.text is not None and args.prompt is not None:
        args.usage_error("give the prompt once: as an argument or with -p")
    text = args.prompt if args.text is None else args.text
    piped = sys.stdin is not None and not sys.stdin.isatty()
    if text is None and not piped:
        args.usage_error("give a prompt with -p, or pipe one in")
    if text in (None, "-"):
        text = inputs.read_stdin()
    elif piped and (more := inputs.read_beside()).strip():
        text = f"{text}\n\n{more}"
    if not text.strip():
        raise ValidationError("the prompt is empty: give text with -p, or pipe it in")
    inputs.check_utf8(args.system, "system prompt")
    return inputs.check_utf8(text, "prompt")


def _model_path(spec: str | None) -> Any:
    if spec is None:
        return output.demo_path("generate")
    from ..hub import resolve_model

    return resolve_model(spec)


def _stream(
    engine: Engine, args: argparse.Namespace, prompt: str, sampling: dict[str, Any]
) -> None:
    clean = output.printable if sys.stdout.isatty() else str
    last = ""
    for piece in engine.stream(prompt, args.system, args.max_tokens, raw=args.raw, **sampling):
        output.say(clean(piece))
        interrupt.check()
        last = piece
    if not last.endswith("\n"):
        output.say("\n")
    if output.is_terminal(sys.stderr):
        print(f"[{_summary(engine, args.max_tokens)}]", file=sys.stderr)


def _summary(engine: Engine, max_tokens: int | None) -> str:
    stats = engine.stats
    text = f"{stats.n_generated} tokens, {stats.decode_tokens_per_s:.1f} tokens/s"
    if stats.finish_reason == "length":
        text += f"; cut at -n {max_tokens}"
    elif stats.finish_reason == "context":
        text += f"; cut because the context (-c) is full, {engine.n_ctx} tokens"
    return text


def _print_result(
    engine: Engine,
    args: argparse.Namespace,
    prompt: str,
    sampling: dict[str, Any],
    chat: dict[str, Any],
    started: float,
) -> None:
    from ..generation.chat_renderer import as_messages
    from ..generation.prompt import tokenize_prompt

    loaded = time.perf_counter()
    if args.raw:
        given = tokenize_prompt(engine.model.vocab, prompt)
    else:
        given = engine.tokenize_chat(as_messages(prompt, args.system), **chat)
        sampling = engine.renderer.with_stops(sampling)
    steps = [*engine.steps(given, args.max_tokens, **sampling)]
    tokens = [step.token for step in steps if step.token is not None]
    interrupt.check()
    done = time.perf_counter()
    library = engine.model.library
    build = library.build
    stats = engine.stats
    output.print_json(
        {
            "text": "".join(step.text for step in steps),
            "tokens": tokens,
            "prompt_tokens": len(given),
            "finish_reason": "length" if stats.finish_reason in ("length", "context") else "stop",
            "model": str(engine.model.path),
            "build": {
                "tag": build.tag,
                "source": build.source,
                "version": build.version,
                "variant": build.variant,
                "library": str(build.library),
            },
            "abi": library.abi.as_dict(),
            "devices": [device.name for device in library.devices],
            "timings": {
                "load_s": round(loaded - started, 4),
                "generate_s": round(done - loaded, 4),
                "time_to_first_token_s": round(stats.time_to_first_token_s, 4),
                "total_s": round(done - started, 4),
                "tokens_per_s": round(len(tokens) / max(done - loaded, 1e-9), 2),
            },
        }
    )
