"""`llama-cffi` itself and `generate`: arguments, output, bad input, broken pipes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import llama_cffi
from llama_cffi.cli import main, output

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "llama-cffi")
# One thread: the tests share their cores with each other.
GENERATE = ("generate", "-t", "1", "-c", "128", "-m")
POSIX = pytest.mark.skipif(os.name != "posix", reason="pipes and signals as POSIX has them")


def cli(
    *args: object,
    stdin: bytes | None = None,
    program: Sequence[str] = (PROGRAM,),
    **env: str,
) -> subprocess.CompletedProcess[bytes]:
    """Run the installed program, with an empty stdin by default."""
    return subprocess.run(
        [*program, *map(str, args)],
        input=stdin or b"",
        capture_output=True,
        timeout=120,
        env={**os.environ, **env},
    )


def text_of(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8").replace(os.linesep, "\n")


def json_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr.decode()
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def error_of(done: subprocess.CompletedProcess[bytes]) -> str:
    """Check that a command failed without a traceback, and return its message."""
    assert done.returncode == 1, done.stderr.decode()
    assert done.stdout == b""
    message = done.stderr.decode()
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message.removeprefix("error: ").rstrip()


# --- arguments -------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"llama-cffi {llama_cffi.__version__}\n"


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    for word in ("generate", "doctor", "libs"):
        assert word in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "invalid choice"),
        (["generate", "--fly"], "unrecognized arguments: --fly"),
        (["generate", "-p", "x", "-n", "0"], "--max-tokens: 0 is no answer"),
        (["generate", "-p", "x", "-n", "-5"], "-n/--max-tokens/--n-predict/--predict: -5 is less than -1"),
        (["generate", "-p", "x", "-n", "many"], "'many' is not a whole number"),
        (["generate", "-p", "x", "-c", "-1"], "-c/--ctx: -1 is less than 0"),
        (["generate", "-p", "x", "--gpu-layers", "-2"], "-2 is less than -1"),
        (["generate", "-p", "x", "--temperature", "hot"], "invalid float value: 'hot'"),
        (["generate", "-p", "x", "--raw", "-s", "Be brief."], "--system has no place"),
        (["doctor", "now"], "unrecognized arguments: now"),
    ],
)
def test_wrong_usage_is_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_prompt_or_stdin_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SystemExit) as exit_:
        main(["generate"])
    assert exit_.value.code == 2
    assert "give a prompt with -p, or pipe one in" in capsys.readouterr().err


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys, llama_cffi.cli\n"
        "try: llama_cffi.cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "slow = {'cffi', 'numpy', 'huggingface_hub', 'jinja2', 'tqdm', 'llama_cffi.binding'}\n"
        "print(sorted(slow & sys.modules.keys()), file=sys.stderr)"
    )
    for command in ([], ["generate"], ["doctor"], ["libs"]):
        done = cli(*command, "--help", program=(sys.executable, "-c", code))
        assert "usage: llama-cffi" in text_of(done)
        assert done.stderr.decode().strip() == "[]"


# --- bad input, before any library is needed ---------------------------------------------------


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["generate", *arguments]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def test_bad_models(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path) -> None:
    missing = tmp_path / "missing.gguf"
    assert failure(capsys, "-p", "x", "-m", str(missing)) == f"error: no model file at {missing}\n"
    assert "is a folder" in failure(capsys, "-p", "x", "-m", str(tmp_path))
    assert "write hf:OWNER/REPO" in failure(capsys, "-p", "x", "-m", "hf:nothing")

    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 this is a zip file")
    assert "is not a GGUF file" in failure(capsys, "-p", "x", "-m", str(other))
    other.write_bytes(tiny_model.read_bytes()[:-1000])
    assert str(other) in failure(capsys, "-p", "x", "-m", str(other))
    other.write_bytes(b"")
    assert "is empty" in failure(capsys, "-p", "x", "-m", str(other))


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt(prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the prompt is empty" in failure(capsys, "-p", prompt)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"), ("--temperature", "nan"), ("--top-p", "0"), ("--top-p", "1.5"),
        ("--min-p", "2"), ("--repeat-penalty", "0"), ("--seed", "-2"),
    ],
)  # fmt: skip
def test_bad_sampling(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(capsys, "-p", "x", "-m", "/no/model/is/needed", option, value)
    assert message.startswith(f"error: {option[2:].replace('-', '_')}=")


def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-p", "x", "-m", "/nope.gguf", "--json"]) == 1
    shown = capsys.readouterr()
    assert shown.err == ""
    error = json.loads(shown.out)["error"]
    assert error == {
        "type": "ModelLoadError",
        "message": f"no model file at {Path('/nope.gguf')}",
    }


def test_stdin_that_is_not_utf8() -> None:
    done = cli("generate", stdin=b"caf\xe9")
    assert error_of(done) == "stdin is not UTF-8 text: byte 0xe9 at offset 3"
    assert "the prompt is empty" in error_of(cli("generate"))


# --- how things are written --------------------------------------------------------------------


def test_json_keeps_lists_of_numbers_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"ids": [1, 2, -3], "empty": [], "s": "[\n 1,\n 2\n]", "f": [1.5e-9], "l": ["a", 1]}
    output.print_json(value)
    shown = capsys.readouterr().out
    assert json.loads(shown) == value
    assert '"ids": [1, 2, -3],' in shown
    assert '"f": [1.5e-09],' in shown


def test_model_output_cannot_control_the_terminal() -> None:
    assert output.printable("a\tb\nc\r\nd é\N{GRINNING FACE}") == "a\tb\nc\nd é\N{GRINNING FACE}"
    assert output.printable("\x1b[2J\x07\x9b\x7f") == "\ufffd[2J\ufffd\ufffd\ufffd"


# --- with the library --------------------------------------------------------------------------


def test_generate_streams_the_same_text_each_time(tiny_model: Path) -> None:
    arguments = (*GENERATE, tiny_model, "-p", "Héllo", "-n", 24)
    first = cli(*arguments)
    text = text_of(first)
    assert text.endswith("\n")
    assert first.stderr == b""
    assert text_of(cli(*arguments)) == text
    assert text_of(cli(*arguments, program=(sys.executable, "-m", "llama_cffi"))) == text

    facts = json_of(cli(*arguments, "--json"))
    assert facts["text"].rstrip("\n") == text.rstrip("\n")
    assert len(facts["tokens"]) == 24
    assert facts["finish_reason"] == "length"
    assert facts["model"] == str(tiny_model)
    assert facts["build"]["tag"]
    assert facts["abi"]["verdict"] == "exact"
    assert facts["timings"]["total_s"] >= facts["timings"]["generate_s"] > 0
    # 5 letters are 6 bytes, one token each, and the chat template adds more.
    assert facts["prompt_tokens"] > 6


def test_json_has_exactly_the_engines_tokens(tiny_model: Path, child: Any) -> None:
    facts = json_of(cli(*GENERATE, tiny_model, "-p", "abc", "--raw", "-n", 16, "--json"))
    done = child(
        """
        import sys, llama_cffi
        with llama_cffi.Engine(sys.argv[1], n_ctx=128, n_threads=1) as engine:
            print(engine.generate_tokens(engine.tokenize("abc"), 16, temperature=0))
        """,
        tiny_model,
    )
    assert json.loads(done.stdout) == facts["tokens"]
    assert facts["prompt_tokens"] == 3


def test_template_system_and_raw(tiny_model: Path) -> None:
    def prompt_tokens(*arguments: str) -> int:
        common = (*GENERATE, tiny_model, "-p", "hi", "-n", "1", "--json")
        return int(json_of(cli(*common, *arguments))["prompt_tokens"])

    raw, chat, system = prompt_tokens("--raw"), prompt_tokens(), prompt_tokens("-s", "Be brief.")
    assert raw == 2
    assert raw < chat < system


def test_seed(tiny_model: Path) -> None:
    arguments = (*GENERATE, tiny_model, "-p", "hi", "-n", 32, "--temperature", 2)
    one, again, other = (text_of(cli(*arguments, "--seed", seed)) for seed in (7, 7, 8))
    assert one == again != other


def test_finish_reason(tiny_model: Path) -> None:
    facts = json_of(cli(*GENERATE, tiny_model, "-p", "hi", "-c", 256, "-n", 5000, "--json"))
    assert facts["finish_reason"] in ("stop", "length")
    used = facts["prompt_tokens"] + len(facts["tokens"])
    assert (used >= 240) == (facts["finish_reason"] == "length")


def test_prompt_from_stdin(tiny_model: Path) -> None:
    arguments = (*GENERATE, tiny_model, "-n", 8)
    wanted = text_of(cli(*arguments, "-p", "grüße"))
    assert text_of(cli(*arguments, stdin="grüße\n".encode())) == wanted
    with_mark = "\N{BYTE ORDER MARK}grüße\r\n".encode()
    assert text_of(cli(*arguments, "-p", "-", stdin=with_mark)) == wanted
    assert text_of(cli(*arguments, "-p", "grüße", stdin=b"not read \xff")) == wanted


def test_prompt_too_long(tiny_model: Path) -> None:
    message = error_of(cli(*GENERATE, tiny_model, "-p", "a" * 5000, "-c", 256))
    assert "tokens, the context holds 256" in message
    assert "-c" in message


@POSIX
def test_argument_that_is_not_utf8(tiny_model: Path) -> None:
    broken = os.fsdecode(b"caf\xe9")
    assert error_of(cli(*GENERATE, tiny_model, "-p", broken)) == "the prompt is not UTF-8 text"


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_any_encoding_of_stdout(env: dict[str, str], tiny_model: Path) -> None:
    arguments = (*GENERATE, tiny_model, "-p", "hi", "-n", "32")
    wanted = json_of(cli(*arguments, "--json"))
    assert not wanted["text"].isascii()
    assert json_of(cli(*arguments, "--json", **env))["text"] == wanted["text"]
    said = cli(*arguments, **env)
    assert said.returncode == 0, said.stderr
    encoding = env.get("PYTHONIOENCODING", "utf-8")
    expected = wanted["text"].encode(encoding, "replace").decode(encoding)
    assert said.stdout.decode(encoding).splitlines() == expected.splitlines()


def test_verbose_logs_to_stderr(tiny_model: Path) -> None:
    arguments = (*GENERATE, tiny_model, "-p", "hi", "-n", 8)
    quiet, loud = cli(*arguments), cli("-v", *arguments)
    assert text_of(loud) == text_of(quiet)
    assert quiet.stderr == b""
    assert b"llama_cffi.native" in loud.stderr


# --- pipes, terminals, signals -----------------------------------------------------------------


LONG = ("-p", "hi", "-c", "100000", "-n", "90000", "--temperature", "0")


@POSIX
def test_a_closed_pipe_ends_generation(tiny_model: Path) -> None:
    command = [PROGRAM, *GENERATE, str(tiny_model), *LONG]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(1)
        running.stdout.close()
        assert running.wait(60) == 141
        assert running.stderr.read() == b""


@POSIX
def test_full_disk(tiny_model: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [PROGRAM, *GENERATE, str(tiny_model), "-p", "hi", "-n", "4"],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: cannot write the output: No space left")


@POSIX
@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_ctrl_c(extra: tuple[str, ...], tiny_model: Path) -> None:
    command = [PROGRAM, "-v", *GENERATE, str(tiny_model), *LONG, *extra]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        if extra:  # nothing is printed before the end: wait for the first log line
            running.stderr.readline()
        else:
            assert running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
        assert running.returncode == 130
        assert b"Traceback" not in err
        assert b"{" not in out if extra else True


@POSIX
def test_on_a_terminal(tiny_model: Path) -> None:
    import pty

    terminal, inside = pty.openpty()
    command = [PROGRAM, *GENERATE, str(tiny_model), "-p", "hi", "-n", "64"]
    with subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside) as running:
        os.close(inside)
        shown = b""
        while True:
            try:
                data = os.read(terminal, 4096)
            except OSError:  # Linux: the other side is closed
                break
            if not data:
                break
            shown += data
        assert running.wait(60) == 0
    os.close(terminal)
    facts = json_of(cli(*GENERATE, tiny_model, "-p", "hi", "-n", "64", "--json"))
    assert output.printable(facts["text"]) != facts["text"], "the test needs control characters"
    expected = output.printable(facts["text"]).rstrip("\n") + "\n"
    assert shown.decode().replace("\r\n", "\n") == expected


def test_main_can_be_called_from_a_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["llama-cffi", "generate", "-m", "/nope.gguf", "-p", "x"])
    before = signal.getsignal(signal.SIGINT)
    assert main() == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert "no model file" in capsys.readouterr().err
