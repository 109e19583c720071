"""Make docs/commands.md: a page in the style of a manual for each command, from the parser.

python tools/command_pages.py            # write the page
python tools/command_pages.py --check    # exit with 1 if it is not current
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from llama_cffi.cli import _parser
from llama_cffi.cli.syntax import Argument, Syntax, syntax_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
HEAD = """\
# Command reference

Every command and option, as `llama-cffi COMMAND --help` shows them. The guide is
[The command line](command-line.md). `tools/command_pages.py` makes this page.
"""


def page() -> str:
    """Return the page."""
    program = syntax_of(_parser())
    parts = [HEAD, "## llama-cffi", _body(program)]
    for command in program.commands:
        parts += [f"## {command.path[0]}", _body(command)]
        for sub in command.commands:
            parts += [f"### {' '.join(sub.path)}", _body(sub)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _body(command: Syntax) -> str:
    parts = [_plain(command.description), f"```text\n{_synopsis(command)}\n```"]
    if command.commands:
        rows = (f"- `{' '.join(sub.path)}`: {_plain(sub.text)}" for sub in command.commands)
        parts.append("\n".join(rows))
    groups = list(dict.fromkeys(argument.group for argument in command.arguments))
    for group in groups:
        arguments = [a for a in command.arguments if a.group == group and "-h" not in a.flags]
        if not arguments:
            continue
        title = {"positional arguments": "Arguments", "optional arguments": "Options"}.get(
            group, group[:1].upper() + group[1:]
        )
        rows = [f"| `{_cell(_shown(a))}` | {_cell(_plain(a.text))} |" for a in arguments]
        parts.append("\n".join([f"| {title} | |", "|---|---|", *rows]))
    if command.epilog.strip():
        parts.append(f"```text\n{command.epilog.strip()}\n```")
    return "\n\n".join(part for part in parts if part)


def _synopsis(command: Syntax) -> str:
    words = ["llama-cffi", *command.path]
    if command.commands:
        words.append("COMMAND")
    words.append("[OPTIONS]")
    for argument in command.arguments:
        if not argument.flags:
            words.append(argument.value if argument.required else f"[{argument.value}]")
    return " ".join(words)


def _shown(argument: Argument) -> str:
    names = ", ".join(argument.flags)
    return f"{names} {argument.value}".strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(text: str) -> str:
    """Keep Markdown from reading brackets and stars."""
    return re.sub(r"([<*\[])", r"\\\1", text)


def main() -> None:
    """Write or check the page."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8", newline="\n")
    elif PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/commands.md is not current; run python tools/command_pages.py")


if __name__ == "__main__":
    main()
