"""The commands and options as data, read from the parser: for completion scripts and pages."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Argument", "Syntax", "syntax_of"]

_FILES = ("FILE", "FOLDER", "DIR", "IN", "OUT")
_DEFAULT = " (default: %(default)s)"  # which Python up to 3.12 appends to options with --no-


class Argument(NamedTuple):
    """An option or a positional argument.

    Attributes:
        flags: The names of an option; empty for a positional argument.
        value: Its value, such as `N`; empty for a switch.
        choices: All values that it takes; empty: not a fixed set.
        text: What it does.
        takes_file: Whether its value is a file.
        required: Whether it must be given.
        group: The heading under which it is listed.
    """

    flags: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    text: str
    takes_file: bool
    required: bool
    group: str


class Syntax(NamedTuple):
    """A command.

    Attributes:
        path: Its words, such as `("libs", "list")`; empty for the program itself.
        text: What it does, in a line.
        description: What it does, in sentences.
        arguments: Its options and arguments.
        commands: The commands below it.
        epilog: Examples and variables of the environment.
    """

    path: tuple[str, ...]
    text: str
    description: str
    arguments: tuple[Argument, ...]
    commands: tuple[Syntax, ...]
    epilog: str

    def walk(self) -> Iterator[Syntax]:
        """Yield the command and all below it."""
        yield self
        for command in self.commands:
            yield from command.walk()


def syntax_of(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = (), text: str = ""
) -> Syntax:
    """Return what a parser takes."""
    arguments: list[Argument] = []
    commands: list[Syntax] = []
    for group in parser._action_groups:
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
                commands += [
                    syntax_of(sub, (*path, name), texts.get(name, ""))
                    for name, sub in action.choices.items()
                ]
            else:
                arguments.append(_argument(action, group.title or ""))
    return Syntax(
        path, text, parser.description or "", tuple(arguments), tuple(commands), parser.epilog or ""
    )


def _argument(action: argparse.Action, group: str) -> Argument:
    value = ""
    if action.nargs != 0:
        shown = action.metavar
        if isinstance(shown, tuple):
            value = " ".join(shown)
        elif shown is not None:
            value = shown
        elif action.choices is not None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        else:
            value = action.dest.upper().replace("_", "-")
        if action.nargs in ("*", "+") and not isinstance(shown, tuple):
            value += " ..."
    text = (action.help or "").replace(_DEFAULT, "")
    text = text % {"default": action.default, "prog": ""} if "%" in text else text
    is_file = value in _FILES or action.dest == "model"
    return Argument(
        tuple(action.option_strings),
        value,
        tuple(map(str, action.choices or _listed(value))),
        " ".join(text.split()),
        is_file,
        action.required,
        group,
    )


def _listed(value: str) -> list[str]:
    """Return the values that the name of a value lists, as `on|off|auto` does."""
    words = value.split("|")
    return words if len(words) > 1 and all(word.isalpha() for word in words) else []
