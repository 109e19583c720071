"""`llama-cffi bench`: how fast a model evaluates and generates tokens, in llama-bench's shapes."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import LlamaError
from . import interrupt, options, output

__all__ = ["add_parser", "numbers"]

_EXAMPLES = """
llama-cffi bench -m model.gguf
llama-cffi bench -m model.gguf -p 512,2048 -n 0 -t 1-8*2 -o csv
llama-cffi bench -m model.gguf --build npm:3.20.0,npm:3.22.1 -r 10
"""
_RANGE = re.compile(r"(-1|\d+)(?:-(\d+)(?:([+*])(\d+))?)?")
_MOST = 1000
_GIB, _MIB = 2**30, 2**20
_DEFAULTS = {"n_batch": 2048, "n_ubatch": 512, "type_k": "f16", "type_v": "f16",
             "flash_attn": "auto"}  # fmt: skip


def numbers(text: str) -> list[int]:
    """Parse `a,b`, `first-last`, `first-last+step` and `first-last*mult`.

    Raises:
        ArgumentTypeError: It has another form, or gives more than 1,000 values.
    """
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        step = int(match[4] or 1) if match else 0
        if match is None or step < 1 or (match[3] == "*" and step < 2):
            raise argparse.ArgumentTypeError(
                f"must be numbers such as 512, 128,256, 1-4, 0-8192+1024 or 1-64*2, got {text!r}"
            )
        value, last = int(match[1]), int(match[2] or match[1])
        if last < value:
            raise argparse.ArgumentTypeError(f"{part} ends before it begins")
        if match[3] == "*" and value < 1:
            raise argparse.ArgumentTypeError(f"{part} never grows; begin at 1")
        while value <= last and len(found) <= _MOST:
            found.append(value)
            value = value * step if match[3] == "*" else value + step
        if len(found) > _MOST:
            raise argparse.ArgumentTypeError(f"{text} gives more than {_MOST} values")
    return found


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _switches(text: str) -> list[bool | None]:
    known = {"on": True, "1": True, "off": False, "0": False, "auto": None}
    try:
        return [known[part.lower()] for part in _names(text)]
    except KeyError as e:
        raise argparse.ArgumentTypeError(f"must be on, off or auto, got {e.args[0]!r}") from None


def _pair(text: str) -> tuple[int, int]:
    try:
        prompt, answer = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be PP,TG, such as 512,128, got {text!r}") from None
    if min(prompt, answer) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1,1, got {text}")
    return prompt, answer


# Parameters of a test: name, flags, parser, default, help.
_LISTS: tuple[tuple[str, tuple[str, ...], Callable[[str], Any], list[Any], str], ...] = (
    ("n_depth", ("-d", "--n-depth"), numbers, [0], "tokens in the KV cache before a test"),
    ("n_batch", ("-b", "--batch-size"), numbers, [2048], "most prompt tokens per decode"),
    ("n_ubatch", ("-ub", "--ubatch-size"), numbers, [512], "most tokens computed together"),
    ("type_k", ("-ctk", "--cache-type-k"), _names, [None], "types of the keys in the KV cache"),
    ("type_v", ("-ctv", "--cache-type-v"), _names, [None], "types of the values in the KV cache"),
    ("n_threads", ("-t", "--threads"), numbers, [0], "numbers of threads"),
    ("n_gpu_layers", ("-ngl", "--n-gpu-layers"), numbers, [-1], "layers on the GPU; -1: all"),
    ("flash_attn", ("-fa", "--flash-attn"), _switches, [None], "flash attention: on, off, auto"),
)  # fmt: skip


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "bench",
        help="measure how fast a model is here",
        description="Measure tokens per second of prompts (pp) and of generating (tg), without "
        "tokenizing and sampling, as llama-bench does. Options take lists and ranges: a,b, "
        "first-last, first-last+step, first-last*mult; all combinations are run.",
        epilog=options.epilog(_EXAMPLES, *options.MODELS),
        formatter_class=options.HelpFormatter,
    )
    parser.add_argument(
        "-m", "--model", action="append",
        help="a GGUF file, or hf:OWNER/REPO[:FILE or QUANT]; several times for several; default: "
        "the included demo model",
    )  # fmt: skip
    parser.add_argument(
        "-p", "--n-prompt", type=numbers, metavar="N", help="prompt tokens; 0: none (default: 512)"
    )
    parser.add_argument(
        "-n", "--n-gen", type=numbers, metavar="N",
        help="generated tokens; 0: none (default: 128)",
    )  # fmt: skip
    parser.add_argument(
        "-pg", type=_pair, action="append", default=[], metavar="PP,TG",
        help="a prompt and generating after it, timed together",
    )  # fmt: skip
    for name, flags, parse, default, text in _LISTS:
        parser.add_argument(*flags, dest=name, type=parse, default=default, metavar="N", help=text)
    parser.add_argument(
        "-r", "--repetitions", type=options.at_least(1), default=5, metavar="N",
        help="how often a test is run (default: 5)",
    )  # fmt: skip
    parser.add_argument("--no-warmup", action="store_true", help="do not run before the timing")
    parser.add_argument(
        "--build", type=_names, default=[], metavar="A,B",
        help="builds of llama.cpp to compare, such as npm:3.20.0,v0.5.0, each in its own process",
    )  # fmt: skip
    parser.add_argument(
        "--cpu-variant", type=_names, default=[], metavar="A,B",
        help="CPU variants of the build to compare, such as haswell,zen4",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", choices=("md", "csv", "json", "jsonl"), default="md", dest="form",
        help="form of the output (default: md)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="-o json, errors too")
    parser.add_argument("--progress", action="store_true", help="name each test on stderr")
    parser.set_defaults(func=_run, usage_error=parser.error)


def _run(args: argparse.Namespace) -> int:
    args.form = "json" if args.json else args.form
    jobs = _jobs(args)
    if not jobs:
        args.usage_error("nothing to run: -p and -n are 0, and there is no -pg")
    results = []
    for result in _results(jobs, args):
        interrupt.check()
        if args.form == "jsonl":
            output.print_json_line(_public(result))
        results.append(result)
    _warn_if_busy(results)
    if args.form == "json":
        output.print_json([_public(result) for result in results])
    elif args.form == "csv":
        output.say(_csv(results))
    elif args.form == "md":
        output.say(_markdown(results))
    return 0


def _jobs(args: argparse.Namespace) -> list[dict[str, Any]]:
    from .bench_run import model_file

    shapes: list[tuple[int, int]] = []
    only_pairs = args.pg and args.n_prompt is None and args.n_gen is None
    prompts = args.n_prompt if args.n_prompt is not None else [] if only_pairs else [512]
    answers = args.n_gen if args.n_gen is not None else [] if only_pairs else [128]
    shapes += [(n, 0) for n in prompts if n > 0] + [(0, n) for n in answers if n > 0] + args.pg
    if not shapes:
        return []
    sources = args.model or [None]
    models = [model_file(options.resolve(source, "bench")) for source in sources]
    lists = [getattr(args, name) for name, *_ in _LISTS]
    jobs = []
    for model, values in itertools.product(models, itertools.product(*lists)):
        found = dict(zip((name for name, *_ in _LISTS), values, strict=True))
        n_gpu_layers = found.pop("n_gpu_layers")
        if sources == [None] and not found["n_threads"]:
            found["n_threads"] = 1  # see options.running_options
        for n_prompt, n_gen in shapes:
            jobs.append(
                {
                    **found,
                    "model": model,
                    "model_options": {"n_gpu_layers": n_gpu_layers},
                    "n_prompt": n_prompt,
                    "n_gen": n_gen,
                    "repetitions": args.repetitions,
                    "warmup": not args.no_warmup,
                }
            )
    return jobs


def _results(jobs: list[dict[str, Any]], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the results, in this process, or of each build in a process of its own."""
    tells = args.progress or output.is_terminal(sys.stderr)

    def tell(message: str) -> None:
        if tells:
            print(message, file=sys.stderr, flush=True)

    if not (args.build or args.cpu_variant):
        from .bench_run import measure

        yield from measure(jobs, tell)
        return
    for build, variant in itertools.product(args.build or [None], args.cpu_variant or [None]):
        variables = {}
        if build is not None:
            is_path = build.startswith("path:")
            variables["LLAMA_CFFI_LIB" if is_path else "LLAMA_CFFI_BUILD"] = build.removeprefix(
                "path:"
            )
        if variant is not None:
            variables["LLAMA_CFFI_CPU_VARIANT"] = variant
        shown = " ".join(filter(None, (build, variant)))
        for result in _child_results(jobs, variables, shown, tell):
            yield {**result, "compared": shown}


def _child_results(
    jobs: list[dict[str, Any]], variables: Mapping[str, str], shown: str, tell: Any
) -> Iterator[dict[str, Any]]:
    import subprocess

    from ..child_process import child_command, child_environment, death

    env = child_environment()
    if "LLAMA_CFFI_BUILD" in variables:
        env.pop("LLAMA_CFFI_LIB", None)  # it would win
    child = subprocess.Popen(
        child_command("llama_cffi.cli.bench_run", json.dumps(jobs)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**env, **variables},
    )
    assert child.stdout is not None
    n = 0
    try:
        for line in child.stdout:
            message = json.loads(line)
            if "error" in message:
                raise LlamaError(f"with {shown}: {message['error']}")
            if "told" in message:
                tell(f"{shown}: {message['told']}")
            else:
                n += 1
                yield message["result"]
        code = child.wait()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    if n < len(jobs):
        raise LlamaError(
            f"with {shown}, the process ended early ({death(code) or 'exit code 0'}) after {n} of "
            f"{len(jobs)} tests; try fewer threads, or another build"
        )


def _public(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("waited", "compared")}


def _warn_if_busy(results: Sequence[Mapping[str, Any]]) -> None:
    from .bench_run import warns_of_wait

    worst = max((r for r in results if warns_of_wait(r)), key=lambda r: r["waited"], default=None)
    if worst is not None:
        print(
            f"warning: the machine is busy: threads waited for a processor {worst['waited']:.0%} "
            f"of the time. End other programs, or use fewer threads than {worst['n_threads']} (of "
            f"{os.cpu_count()} processors); the numbers are too low",
            file=sys.stderr,
        )


def _csv(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as llama-bench's CSV, without the samples."""
    import csv
    import io

    buffer = io.StringIO()
    rows = [
        {key: value for key, value in _public(r).items() if not key.startswith("samples_")}
        for r in results
    ]
    writer = csv.DictWriter(buffer, rows[0], quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as llama-bench's table."""
    from .bench_run import test_name

    columns: list[tuple[str, Callable[[Mapping[str, Any]], str], bool]] = [
        ("model", lambda r: r["model_type"], False),
        ("size", lambda r: _size(r["model_size"]), True),
        ("params", lambda r: _count(r["model_n_params"]), True),
        ("backend", lambda r: r["backends"], False),
    ]
    if any("compared" in r for r in results):
        columns.insert(0, ("build", lambda r: r["compared"], False))
    on_gpu = any(r["backends"] != "CPU" for r in results)
    shown = ["n_gpu_layers"] if on_gpu else ["n_threads"]
    varying = ("n_threads", "n_batch", "n_ubatch", "type_k", "type_v", "flash_attn")
    shown += [
        name
        for name in varying
        if name not in shown
        and {r[name] for r in results} != {_DEFAULTS.get(name)}
        and (name != "n_threads" or len({r[name] for r in results}) > 1)
    ]
    short = {"n_gpu_layers": "ngl", "n_threads": "threads", "flash_attn": "fa"}
    for name in shown:
        columns.append((short.get(name, name), lambda r, name=name: str(r[name]), True))  # type: ignore[misc]
    columns.append(("test", test_name, True))
    columns.append(("t/s", lambda r: f"{r['avg_ts']:.2f} ± {r['stddev_ts']:.2f}", True))
    rows = [[cell(r) for _, cell, _ in columns] for r in results]
    widths = [
        max(len(head), *(len(row[i]) for row in rows)) for i, (head, _, _) in enumerate(columns)
    ]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, (_, _, right) in zip(cells, widths, columns, strict=True)
        )
        return f"| {' | '.join(padded)} |\n"

    ruler = "".join(
        f"| {'-' * (width - 1) + ':' if right else '-' * width} "
        for width, (_, _, right) in zip(widths, columns, strict=True)
    )
    builds = dict.fromkeys(f"{r['build_commit']} ({r['build']})" for r in results)
    return (
        line([head for head, _, _ in columns])
        + ruler
        + "|\n"
        + "".join(map(line, rows))
        + f"\nbuild: {', '.join(builds)}\n"
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.2f} GiB" if n_bytes >= _GIB else f"{n_bytes / _MIB:.2f} MiB"


def _count(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.2f} M"
