"""Complete command lines in real shells, with the scripts of `llama-cffi completion`.

    python tools/shells.py [bash zsh fish]

bash and zsh run in a terminal, where the words and then Tab are typed; fish tells what it would
complete. Each must make the same of every line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# What is typed -> what it becomes.
LINES = {
    "tok": "tokenize",
    "libs fe": "libs fetch",
    "libs list --js": "libs list --json",
    "models list --so": "models list --sort",
    "models list --sort si": "models list --sort size",
    "completion fi": "completion fish",
    "chat --no-mm": "chat --no-mmap",
    "chat --reasoning-effort med": "chat --reasoning-effort medium",
    "generate -m mod": "generate -m model.gguf",
    "inspect mod": "inspect model.gguf",
    "tune --dry": "tune --dry-run",
    "-v tok": "-v tokenize",
    "serve --host 0.0.0.0 --api-p": "serve --host 0.0.0.0 --api-prefix",
    "plan -m model.gguf -fa of": "plan -m model.gguf -fa off",
    "embed --out mod": "embed --out model.gguf",
    "chat --no-such": "chat --no-such",
}
_PATIENCE_S = 30.0
_DONE = "@done@"


def main() -> None:
    """Check the shells of the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shells", nargs="*", metavar="SHELL", help="bash, zsh, fish")
    failed = []
    for shell in parser.parse_args().shells or _SHELLS:
        if shutil.which(shell) is None:
            sys.exit(f"{shell} is not installed")
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "script")
            script.write_bytes(
                subprocess.check_output([sys.executable, "-m", "llama_cffi", "completion", shell])
            )
            Path(folder, "model.gguf").touch()
            found = _SHELLS[shell](script)
        for line, expected in LINES.items():
            same = found[line].rstrip() == expected
            print(f"{'ok' if same else 'FAILED':6} {shell:5} {line!r} -> {found[line]!r}")
            if not same:
                failed.append((shell, line))
    if failed:
        sys.exit(f"{len(failed)} completions are wrong")


def _fish(script: Path) -> dict[str, str]:
    found = {}
    for line in LINES:
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source {script}; complete -C {_quoted(line)}"],
            capture_output=True, text=True, cwd=script.parent, check=True,
        )  # fmt: skip
        if done.stderr:
            sys.exit(f"fish: {done.stderr}")
        candidates = {text.split("\t")[0] for text in done.stdout.splitlines()}
        kept, _, last = line.rpartition(" ")
        only = candidates.pop() if len(candidates) == 1 else last
        found[line] = f"{kept} {only}".lstrip()
    return found


def _quoted(line: str) -> str:
    return f"'llama-cffi {line}'"


def _bash(script: Path) -> dict[str, str]:
    return _typed(
        ["bash", "--norc", "--noprofile", "-i"],
        [
            "PS1='> '",
            "bind 'set bell-style none'",
            "bind 'set enable-bracketed-paste off'",
            f"source {script}",
            f"show() {{ printf '%s\\n' \"$READLINE_LINE{_DONE}\"; READLINE_LINE=; }}",
            "bind -x '\"\\C-g\": show'",
        ],
        script.parent,
    )


def _zsh(script: Path) -> dict[str, str]:
    return _typed(
        ["zsh", "-f", "-i"],
        [
            "PS1='> '; unsetopt beep zle_bracketed_paste 2>/dev/null; unset zle_bracketed_paste",
            "autoload -Uz compinit; compinit -u -D",
            f"source {script}",
            f"show() {{ print -r -- \"$BUFFER{_DONE}\"; BUFFER=''; }}",
            "zle -N show; bindkey '^G' show",
        ],
        script.parent,
    )


def _typed(command: list[str], setup: list[str], folder: Path) -> dict[str, str]:
    """Type each line and Tab into a shell in a terminal; return what the line became."""
    main_end, its_end = pty.openpty()
    env = {**os.environ, "TERM": "dumb", "COLUMNS": "500", "LINES": "50"}
    shell = subprocess.Popen(
        command, stdin=its_end, stdout=its_end, stderr=its_end, cwd=folder, env=env,
        start_new_session=True,
    )  # fmt: skip
    found = {}
    try:
        for line in [*setup, f"echo {_DONE[:3]}''{_DONE[3:]}"]:
            os.write(main_end, line.encode() + b"\n")
        _until(main_end, rf"(?m)^{_DONE}")
        for line in LINES:
            os.write(main_end, f"llama-cffi {line}\t".encode())
            time.sleep(0.3)  # zsh drops a key that comes while it completes
            os.write(main_end, b"\x07")
            found[line] = _until(main_end, rf"llama-cffi ((?:(?!llama-cffi).)*?){_DONE}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            shell.kill()
        shell.wait()
        os.close(main_end)
        os.close(its_end)
    return found


def _until(terminal: int, pattern: str) -> str:
    """Read until *pattern* is there; return its first group."""
    shown, end_s = "", time.monotonic() + _PATIENCE_S
    while time.monotonic() < end_s:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536).decode("utf-8", "replace")
            plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", shown)
            if match := re.search(pattern, plain, re.S):
                return match[1] if match.groups() else ""
    sys.exit(f"the shell does not answer; it shows:\n{shown[-2000:]}")


_SHELLS: dict[str, Callable[[Path], dict[str, str]]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}

if __name__ == "__main__":
    main()
