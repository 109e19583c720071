"""`llama-cffi generate`: answer a prompt, streaming."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from ..errors import ContextOverflowError, ValidationError
from . import engine, inputs, interrupt, media, options, output

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..generation.sequence import Step

__all__ = ["add_parser"]

_EXAMPLES = """
llama-cffi generate "What is 12 + 30?"
llama-cffi generate -m hf:owner/repo:Q4_K_M -s "Be brief." "Why is the sky blue?"
git diff | llama-cffi generate -m model.gguf "Review this change:"
llama-cffi generate -m model.gguf -f page.txt --json-schema '{"type": "object"}'
llama-cffi generate -m model.gguf --mmproj mmproj.gguf --image cat.png "What is this?"
"""

_CONTEXT_ADVICE = "Shorten the prompt, or give a larger context with -c N (0: the model's)."

# Sampling options whose defaults are the engine's.
_DEFAULTS = {
    "top_k": "keep the K most probable tokens; 0: all (default: 40)",
    "top_p": "keep the most probable tokens up to this total probability (default: 0.9)",
    "min_p": "keep tokens with this fraction of the highest probability (default: 0.05)",
    "repeat_penalty": "penalize repeated tokens; 1.0: off (default: 1.1, or 1.0 when greedy)",
}
_STRUCTURES = ("grammar", "grammar_file", "json_schema", "json_schema_file", "regex")


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "generate",
        help="answer a prompt",
        description="Answer a prompt with a local model. The first use fetches llama.cpp itself.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS, *options.ENGINE),
        formatter_class=options.HelpFormatter,
    )
    options.add_model(parser)
    parser.add_argument(
        "text", nargs="?", metavar="prompt",
        help="the prompt; what is piped in follows it, and is the whole prompt without it",
    )  # fmt: skip
    parser.add_argument("-p", "--prompt", help="the prompt too; `-` reads stdin")
    parser.add_argument(
        "-f", "--file", metavar="FILE",
        help="a file with the prompt; after a prompt, what it is about; -: stdin",
    )  # fmt: skip
    parser.add_argument("-s", "--system", default="", help="the system prompt")
    media.add_media(parser, "the prompt")
    parser.add_argument(
        "-n", "--max-tokens", "--n-predict", "--predict", type=options.at_least(-1), default=256,
        metavar="N",
        help="most tokens to generate (default: 256); -1: until the model ends the answer",
    )  # fmt: skip
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT",
        help="end the answer before this text; several times for several",
    )  # fmt: skip
    options.add_sampling(parser, 0.0, **_DEFAULTS)
    structure = parser.add_argument_group("structure of the answer, at most one")
    structure.add_argument(
        "-j", "--json-schema", metavar="SCHEMA", help="JSON that matches this JSON Schema; {}: any"
    )
    structure.add_argument(
        "-jf", "--json-schema-file", metavar="FILE", help="the same with the schema in a file"
    )
    structure.add_argument("--grammar", metavar="GBNF", help="text that matches this grammar")
    structure.add_argument("--grammar-file", metavar="FILE", help="the same with a file")
    structure.add_argument("--regex", metavar="REGEX", help="text that matches this pattern")
    options.add_thinking(parser)
    options.add_running(parser)
    parser.add_argument("--raw", action="store_true", help="do not apply the chat template")
    parser.add_argument(
        "--json", action="store_true", help="print text, token ids, build and timings as JSON"
    )
    parser.add_argument(
        "--jsonl", action="store_true",
        help="print a line of JSON for each token as it comes, and a last one with the timings",
    )  # fmt: skip
    parser.add_argument(
        "--logprobs", type=options.at_least(0), metavar="N",
        help="with --jsonl: log-probabilities, also of the N most probable tokens",
    )  # fmt: skip
    parser.set_defaults(func=_run, usage_error=parser.error)


def _run(args: argparse.Namespace) -> int:
    if args.raw and args.system:
        args.usage_error("--raw uses the prompt verbatim; leave out --system")
    if args.raw and (args.images or args.sounds):
        args.usage_error("--raw uses the prompt verbatim; leave out --image and --audio")
    prompt = _prompt(args)
    # Check the options before loading a model.
    from ..generation.options import parse_options

    sampling = {**options.sampling_options(args), **_structure(args)}
    if args.stop:
        sampling["stop"] = args.stop
    chat = options.thinking_options(args)
    if args.raw and chat:
        args.usage_error(
            f"--raw uses the prompt verbatim; leave out --{next(iter(chat)).replace('_', '-')}"
        )
    if args.json and args.jsonl:
        args.usage_error("--json prints one object, --jsonl a line for each token; give one")
    if args.logprobs is not None:
        if not args.jsonl:
            args.usage_error("--logprobs is for --jsonl")
        sampling["logprobs"] = args.logprobs
    if args.max_tokens == 0:
        args.usage_error("--max-tokens must be at least 1, or -1, got 0")
    args.max_tokens = None if args.max_tokens == -1 else args.max_tokens
    parse_options(args.max_tokens, sampling, 1)
    attached = media.attached(args)

    sampling = {**engine.text_defaults(), **sampling}
    started = time.perf_counter()
    with engine.opened(args) as opened:
        interrupt.check()
        for kind in {one.kind for one in attached}:
            media.check_media(opened.media, args.mmproj, kind)
        try:
            messages = _messages(prompt, args.system, attached)
            if args.json or args.jsonl:
                _print_result(opened, args, messages, sampling, chat, started)
            else:
                _stream(opened, args, messages, {**sampling, **chat})
        except ContextOverflowError as error:
            facts = str(error).partition(". ")[0]
            raise ContextOverflowError(f"{facts}. {_CONTEXT_ADVICE}") from error
    return 0


def _structure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the option of a generation that constrains the answer."""
    given = [name for name in _STRUCTURES if getattr(args, name) is not None]
    if not given:
        return {}
    if len(given) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        args.usage_error(f"{flags} exclude each other; give one")
    (name,) = given
    text = getattr(args, name)
    if name.endswith("_file"):
        text = inputs.read_file(text)
    if name.startswith("grammar"):
        return {"grammar": text}
    from ..grammars import LlamaGrammar

    make = LlamaGrammar.from_regex if name == "regex" else LlamaGrammar.from_json_schema
    return {"grammar": make(text)}


def _prompt(args: argparse.Namespace) -> str:
    if args.text is not None and args.prompt is not None:
        args.usage_error("give the prompt once: as an argument or with -p")
    text = args.prompt if args.text is None else args.text
    piped = inputs.is_piped()
    if args.file not in (None, "-"):
        about = inputs.without_newline(inputs.read_file(args.file))
        text = about if text is None else f"{text}\n\n{about}"
    elif text is None and args.file is None and not piped:
        args.usage_error("give a prompt with -p, or pipe one in")
    elif text in (None, "-"):
        text = inputs.read_stdin()
    elif piped and (more := inputs.read_beside()).strip():
        text = f"{text}\n\n{more}"
    text = str(text)
    if not text.strip():
        raise ValidationError("the prompt is empty: give text with -p, or pipe it in")
    inputs.check_utf8(args.system, "system prompt")
    return inputs.check_utf8(text, "prompt")


def _messages(prompt: str, system: str, attached: list[media.Attachment]) -> list[dict[str, Any]]:
    """Return the conversation; that of --raw is the prompt alone."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": media.content_of(prompt, attached)}]


def _stream(
    engine: Engine,
    args: argparse.Namespace,
    messages: list[dict[str, Any]],
    sampling: dict[str, Any],
) -> None:
    clean = output.printable if sys.stdout.isatty() else str
    last = ""
    if args.raw:
        pieces = engine.stream(messages[0]["content"], "", args.max_tokens, raw=True, **sampling)
    else:
        pieces = engine.stream_chat(messages, args.max_tokens, **sampling)
    for piece in pieces:
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
    messages: list[dict[str, Any]],
    sampling: dict[str, Any],
    chat: dict[str, Any],
    started: float,
) -> None:
    from ..generation.prompt import tokenize_prompt

    loaded = time.perf_counter()
    if args.raw:
        given = tokenize_prompt(engine.model.vocab, messages[0]["content"])
    else:
        given = engine.tokenize_chat(messages, **chat)
        sampling = engine.renderer.with_stops(sampling)
    steps = []
    for step in engine.steps(given, args.max_tokens, **sampling):
        steps.append(step)
        interrupt.check()
        if args.jsonl and (step.token is not None or step.text):
            output.print_json_line(_line(step))
    tokens = [step.token for step in steps if step.token is not None]
    interrupt.check()
    done = time.perf_counter()
    library = engine.model.library
    build = library.build
    stats = engine.stats
    print_json = output.print_json_line if args.jsonl else output.print_json
    print_json(
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


def _line(step: Step) -> dict[str, Any]:
    """Return the line of a token."""
    line: dict[str, Any] = {"token": step.token, "piece": step.text}
    if step.logprob is not None:
        line["logprob"] = step.logprob.logprob
        line["top_logprobs"] = [{"token": t, "logprob": p} for t, p in step.logprob.top]
    return line
