"""Record the transcripts in docs/command-line.md: run its commands, and write what they print.

    python tools/transcripts.py

A block of the language `console` has commands after `$`, and after `>` what is typed into one that
talks; everything else in it is output, and is replaced.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "command-line.md"
_BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.S | re.M)


def recorded(block: str) -> str:
    """Return a block with the output of its commands."""
    parts = []
    for command in re.split(r"^(?=\$ )", block, flags=re.M)[1:]:
        line, *rest = command.splitlines()
        typed = [text.removeprefix("> ") for text in rest if text.startswith("> ")]
        shown = talk(line[2:], typed) if typed else output(line[2:])
        parts.append(f"{line}\n{shown.rstrip()}\n")
    return "\n".join(parts)


def output(command: str) -> str:
    """Return what a command prints."""
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment(), check=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout.replace(f"{ROOT}/", "")


def talk(command: str, typed: list[str]) -> str:
    """Type lines into a program on a terminal; return what is shown."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.terminal import Terminal

    shown = ""
    with Terminal(["bash", "-c", command], **environment(), NO_COLOR="1") as terminal:
        for line in typed:
            shown += terminal.expect("> ")
            terminal.send(line + "\n")
        _, last = terminal.end()
    return re.sub(r".*demo model.*\n.*\n", "", shown + last)


def environment() -> dict[str, str]:
    """Return the variables of the commands."""
    return {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"}


def main() -> None:
    """Write the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        _BLOCK.sub(lambda found: recorded(found[0]), text), encoding="utf-8", newline="\n"
    )


if __name__ == "__main__":
    main()
