"""The command line: `llama-cffi`, also `python -m llama_cffi`.

A command is a function of its parsed arguments that returns an exit code. This module turns
exceptions into messages and exit codes: 0 success, 1 failure, 2 usage error, 130 Ctrl-C, 141 broken
pipe.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from .. import __version__
from ..errors import LlamaError
from . import interrupt, output
from .parser import Parser, parse, verbosity

__all__ = ["main"]

_EPILOG = """\
getting started:
  llama-cffi doctor                           check this machine
  llama-cffi generate "What is 12 + 30?"      try the included demo model
"""
_FAILED, _USAGE, _INTERRUPTED, _BROKEN_PIPE = 1, 2, 130, 141

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: Arguments without the program name; None: those of this process.

    Raises:
        SystemExit: After `--help`, `--version` and usage errors.
    """
    as_json = False
    if sys.stdout is None:  # closed by the shell, as in `llama-cffi ... >&-`
        print("error: cannot write the output: stdout is closed", file=sys.stderr)
        return _FAILED
    try:
        argv = sys.argv[1:] if argv is None else argv
        parser = _parser(argv)
        try:
            args = parse(parser, argv)
        except SystemExit:  # after --help and --version
            sys.stdout.flush()
            raise
        if not hasattr(args, "func"):
            parser.print_help(sys.stderr)
            return _USAGE
        as_json = getattr(args, "json", False)
        output.use_utf8(sys.stdout)
        with interrupt.watch(), _logging_to_stderr(verbosity(args)):
            try:
                code: int = args.func(args) or 0
            except LlamaError as e:
                _log.debug("the command failed", exc_info=True)
                code = _report(e, as_json)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        output.silence_stdout()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            output.say("\n" if sys.stdout.isatty() else "")
        return _INTERRUPTED
    except OSError as e:  # writing to stdout failed, for example because the disk is full
        output.silence_stdout()
        print(f"error: cannot write the output: {e.strerror or e}", file=sys.stderr)
        return _FAILED


# The commands in the order of the help; that of `stand-in` is in `stand_in`.
_COMMANDS = (
    "chat", "generate", "serve", "ps", "stop", "decide", "embed", "rerank", "score", "perplexity",
    "quantize", "inspect", "plan", "tokenize", "bench", "tune", "models", "doctor", "libs",
    "completion", "stand-in",
)  # fmt: skip


def _parser(argv: Sequence[str] = ()) -> Parser:
    """Return the parser of all commands, or only of the one that *argv* names: a start is quick."""
    parser = Parser(
        prog="llama-cffi",
        description="Run local language models through any prebuilt llama.cpp.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"llama-cffi {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    named = next((word for word in argv if not word.startswith("-")), None)
    for name in (named,) if named in _COMMANDS else _COMMANDS:
        module = importlib.import_module(f".{str(name).replace('-', '_')}", __name__)
        module.add_parser(commands)
    return parser


def _report(error: LlamaError, as_json: bool) -> int:
    if as_json:
        output.print_json({"error": {"type": type(error).__name__, "message": str(error)}})
    else:
        print(f"error: {error}", file=sys.stderr)
    return _FAILED


@contextlib.contextmanager
def _logging_to_stderr(verbose: int) -> Iterator[None]:
    logger, handler = logging.getLogger("llama_cffi"), logging.StreamHandler()
    before, shown = logger.level, warnings.showwarning
    if verbose:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logger.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)
    else:  # warnings of llama.cpp itself are for -v
        handler.setFormatter(logging.Formatter("warning: %(message)s"))
        handler.addFilter(lambda record: record.name != "llama_cffi.native")
        handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    warnings.showwarning = _show_warning
    try:
        yield
    finally:
        warnings.showwarning = shown
        logger.removeHandler(handler)
        logger.setLevel(before)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
