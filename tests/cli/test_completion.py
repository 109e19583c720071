"""Completion scripts and the command reference: generated from the parser, and current."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import Runner

from llama_cffi.cli import _parser, options
from llama_cffi.cli.parser import parse
from llama_cffi.cli.syntax import Syntax, syntax_of
from llama_cffi.variables import NAMES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program() -> Syntax:
    return syntax_of(_parser())


@pytest.mark.skipif(os.name != "posix", reason="needs bash")
def test_bash_completes_commands_options_values_and_files(run: Runner, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(run.text("completion", "bash"), "utf-8")
    (tmp_path / "model.gguf").touch()

    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("llama-cffi", *words))
        code = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _llama_cffi; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        assert done.stderr == ""
        return done.stdout.split()

    assert completed("tok") == ["tokenize"]
    assert completed("libs", "fe") == ["fetch"]
    assert completed("models", "list", "--so") == ["--sort"]
    assert completed("models", "list", "--sort", "s") == ["size"]
    assert completed("chat", "--temp") == ["--temperature", "--temp"]
    assert completed("completion", "f") == ["fish"]
    assert completed("chat", "-fa", "o") == ["on", "off"]
    assert completed("chat", "-m", "mod") == ["model.gguf"]
    assert "generate" in completed("")
    assert completed("chat", "--no-such") == []


def test_every_option_is_in_every_script(run: Runner, program: Syntax) -> None:
    scripts = {shell: run.text("completion", shell) for shell in ("bash", "zsh", "fish")}
    for command in program.walk():
        for argument in command.arguments:
            for flag in argument.flags:
                assert flag in scripts["bash"]
                assert flag in scripts["zsh"]
                assert f" {flag.lstrip('-')} " in scripts["fish"]


def test_unknown_shells_are_a_usage_error(run: Runner) -> None:
    assert "invalid choice: 'csh'" in run.usage("completion", "csh")
    assert "arguments are required: shell" in run.usage("completion")


def test_the_command_reference_is_current() -> None:
    script = ROOT / "tools" / "command_pages.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_variable_is_in_the_help_of_a_command(program: Syntax) -> None:
    assert options.VARIABLES.keys() == NAMES
    shown = "\n".join(command.epilog for command in program.walk())
    assert {name for name in NAMES if f"  {name} " not in shown} == set()


def test_every_option_has_a_help(program: Syntax) -> None:
    for command in program.walk():
        assert command.description or not command.path
        for argument in command.arguments:
            assert argument.text, (command.path, argument.flags, argument.value)


def test_completion_imports_nothing_heavy() -> None:
    code = (
        "import sys, llama_cffi.cli; llama_cffi.cli.main(['completion', 'bash'])\n"
        "slow = {'cffi', 'numpy', 'huggingface_hub', 'jinja2', 'llama_cffi.binding'}\n"
        "sys.exit(sorted(slow & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    assert done.returncode == 0


def documented_commands() -> list[str]:
    """Return the command lines of the pages about the command line."""
    found = []
    for name in ("command-line.md", "environment.md", "how-to.md"):
        text = (ROOT / "docs" / name).read_text("utf-8")
        for block in re.findall(r"^```(?:console|sh|bash)\n(.*?)^```", text, re.S | re.M):
            lines = (line.removeprefix("$ ") for line in block.splitlines())
            found += [c for line in lines for c in re.findall(r"^llama-cffi [^|>]*", line)]
    return found


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_parse(line: str) -> None:
    parse(_parser(), shlex.split(line, comments=True)[1:])
