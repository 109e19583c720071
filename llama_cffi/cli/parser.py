"""The argument parser of the commands: `-v` anywhere, and the nearest name of a misspelt one."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

__all__ = ["Parser", "parse", "verbosity"]

_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)
_NUMBER = re.compile(r"invalid (int|float) value: (.*)")


class Parser(argparse.ArgumentParser):
    """A parser of a command; `add_subparsers` makes the parsers of its subcommands."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.add_argument(
            "-v", "--verbose", action="count", default=0,
            dest=f"verbose_{len(self.prog.split())}",  # a subcommand would reset a common one
            help="log to stderr; -vv: debug messages too",
        )  # fmt: skip
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        """Print a usage error, with the nearest choice, and exit with 2."""
        found = _CHOICE.search(message)
        if found is not None:
            given, choices = found[1], [c.strip("' ") for c in found[2].split(",")]
            if f"--{given}" in self._names():
                choices.append(given := f"--{given}")
            if near := difflib.get_close_matches(given, choices, 1):
                message += f"; did you mean {near[0]}?"
            elif "COMMAND" in message and " " in given:
                message = f'{given!r} is not a command; to answer a prompt: generate "..."'
        elif found := _NUMBER.search(message):
            kind = "an integer" if found[1] == "int" else "a number"
            message = f"{message[: found.start()]}must be {kind}, got {found[2]}"
        elif "arguments are required" in message:
            message += f"; see {self.prog} --help"
        super().error(message)

    def refuse(self, extra: Sequence[str]) -> NoReturn:
        """Exit because of arguments that nothing takes."""
        message = f"unrecognized arguments: {' '.join(extra)}"
        names = self._names()
        options = [text.partition("=")[0] for text in extra if text.startswith("-")]
        if not options and self.prog.endswith(" generate"):
            message += "; put quotes around text with spaces"
        elif not options:
            message += f"; see {self.prog} --help"
        for option in options:
            if near := difflib.get_close_matches(option, names, 1):
                message += f"; did you mean {near[0]}?"
                break
        else:
            if options:
                message += f"; see {self.prog} --help"
        self.error(message)

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]  # its overloads
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse, but refuse `-temperature`, which argparse takes for `-t emperature`."""
        given = list(sys.argv[1:] if args is None else args)
        for text in given[: given.index("--") if "--" in given else None]:
            if len(text) > 2 and text[0] == "-" != text[1] and f"-{text}" in self._names():
                self.error(f"unrecognized arguments: {text}; did you mean -{text}?")
        return super().parse_known_args(given, namespace)

    def _names(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; errors are told by the parser of the command they belong to."""
    args: argparse.Namespace
    args, extra = parser.parse_known_args(argv)
    if extra:
        args.parser.refuse(extra)
    return args


def verbosity(args: argparse.Namespace) -> int:
    """Return how often -v was given, before and after the command."""
    return sum(n for name, n in vars(args).items() if name.startswith("verbose_"))
