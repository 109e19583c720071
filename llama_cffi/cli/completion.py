"""`llama-cffi completion`: scripts that complete commands and options in a shell."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from . import options, output
from .syntax import Syntax, syntax_of

__all__ = ["add_parser", "script"]

_EXAMPLES = """
source <(llama-cffi completion bash)
llama-cffi completion zsh > "${fpath[1]}/_llama-cffi"
llama-cffi completion fish > ~/.config/fish/completions/llama-cffi.fish
"""


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers *commands*."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands in a shell",
        description="Print a script that completes commands, options, their values and files.",
        epilog=options.epilog(_EXAMPLES),
        formatter_class=options.HelpFormatter,
    )
    parser.add_argument("shell", choices=tuple(_SHELLS), help="the shell")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from . import _parser

    output.say(script(args.shell, syntax_of(_parser())))
    return 0


def script(shell: str, program: Syntax) -> str:
    """Return the script for *shell*: bash, zsh or fish."""
    return _SHELLS[shell](program)


def _words(command: Syntax) -> list[str]:
    """Return what may follow a command: commands below it, fixed values, options."""
    below = [sub.path[-1] for sub in command.commands]
    values = [c for a in command.arguments if not a.flags for c in a.choices]
    return below + values + [flag for a in command.arguments for flag in a.flags]


def _values(command: Syntax) -> Iterator[tuple[str, str]]:
    """Yield patterns of options that take a value, and their values; empty: files."""
    for argument in command.arguments:
        if argument.flags and argument.value:
            yield "|".join(argument.flags), " ".join(argument.choices)


def _cases(program: Syntax, indent: str, emit: Callable[[str], str], files: str) -> str:
    """Return the branches of a `case` over the command's words: what to complete there."""
    lines = []
    for command in program.walk():
        inner = [
            f"{pattern}) {emit(values) if values else files} ;;"
            for pattern, values in _values(command)
        ]
        lines.append(f"{indent}{shlex.quote(' '.join(command.path))})")
        if inner:
            lines.append(f'{indent}  case "$previous" in')
            lines += [f"{indent}    {line}" for line in inner]
            lines.append(f"{indent}    *) {emit(' '.join(_words(command)))} ;;")
            lines.append(f"{indent}  esac ;;")
        else:
            lines.append(f"{indent}  {emit(' '.join(_words(command)))} ;;")
    return "\n".join(lines)


def _path_cases(program: Syntax) -> str:
    """Return the branches that follow the words of a command line to a command."""
    paths = [" ".join(c.path) for c in program.walk() if c.path]
    return "|".join(shlex.quote(path) for path in paths)


_BASH = """\
# bash completion of llama-cffi
_llama_cffi() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="" command="" word i
  (( COMP_CWORD > 0 )) && previous="${{COMP_WORDS[COMP_CWORD-1]}}"
  for (( i = 1; i < COMP_CWORD; i++ )); do
    word="${{COMP_WORDS[i]}}"
    case "${{command:+$command }}$word" in
      {paths}) command="${{command:+$command }}$word" ;;
    esac
  done
  COMPREPLY=()
  case "$command" in
{cases}
  esac
  if (( ${{#COMPREPLY[@]}} == 0 )) && [[ "$current" != -* ]]; then
    COMPREPLY=( $(compgen -f -- "$current") )
  fi
}}
complete -o filenames -F _llama_cffi llama-cffi
"""
_ZSH = """\
#compdef llama-cffi
# zsh completion of llama-cffi
_llama_cffi() {{
  local previous="" command="" word i
  (( CURRENT > 1 )) && previous="${{words[CURRENT-1]}}"
  for (( i = 2; i < CURRENT; i++ )); do
    word="${{words[i]}}"
    case "${{command:+$command }}$word" in
      {paths}) command="${{command:+$command }}$word" ;;
    esac
  done
  case "$command" in
{cases}
  esac
  [[ "$PREFIX" == -* ]] || _files
}}
if [[ "$funcstack[1]" == "_llama-cffi" ]]; then
  _llama_cffi "$@"
else
  compdef _llama_cffi llama-cffi
fi
"""


def _bash(program: Syntax) -> str:
    def emit(words: str) -> str:
        return f'COMPREPLY=( $(compgen -W {shlex.quote(words)} -- "$current") )'

    return _BASH.format(
        paths=_path_cases(program), cases=_cases(program, "    ", emit, "COMPREPLY=()")
    )


def _zsh(program: Syntax) -> str:
    def emit(words: str) -> str:
        return f"compadd -- {' '.join(map(shlex.quote, words.split()))}" if words else ":"

    return _ZSH.format(paths=_path_cases(program), cases=_cases(program, "    ", emit, ":"))


def _fish(program: Syntax) -> str:
    lines = ["# fish completion of llama-cffi"]
    for command in program.walk():
        seen = [f"__fish_seen_subcommand_from {word}" for word in command.path]
        below = [sub.path[-1] for sub in command.commands]
        if below:
            seen.append(f"not __fish_seen_subcommand_from {' '.join(below)}")
        condition = f" -n {shlex.quote('; and '.join(seen))}" if seen else ""
        start = f"complete -c llama-cffi{condition}"
        lines += [
            f"{start} -f -a {sub.path[-1]} -d {_quoted(sub.text)}" for sub in command.commands
        ]
        for argument in command.arguments:
            values = f" -x -a {shlex.quote(' '.join(argument.choices))}" if argument.choices else ""
            if not argument.flags:
                if argument.choices:
                    lines.append(f"{start}{values.replace(' -x', ' -f')}")
                continue
            names = " ".join(map(_fish_name, argument.flags))
            takes = "" if not argument.value else values or " -r"
            lines.append(f"{start} {names}{takes} -d {_quoted(argument.text)}")
    return "\n".join(lines) + "\n"


def _fish_name(flag: str) -> str:
    if flag.startswith("--"):
        return f"-l {flag[2:]}"
    return f"-s {flag[1:]}" if len(flag) == 2 else f"-o {flag[1:]}"


def _quoted(text: str) -> str:
    """Quote a description for fish, which knows only two escapes in single quotes."""
    first = text.split(";")[0].split(" (default")[0]
    return "'" + first.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SHELLS: dict[str, Callable[[Syntax], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
