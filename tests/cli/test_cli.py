"""`llama-cffi` itself and `generate`: arguments, output, bad input, broken pipes, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.command_line import PROGRAM, cli, error_of, json_of, text_of

import llama_cffi
from llama_cffi.cli import _parser, inputs, main, output
from llama_cffi.cli.parser import parse, verbosity

# One thread, because tests run in parallel.
GENERATE = ("generate", "-t", "1", "-c", "128", "-m")
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX pipes and signals")


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
        (["generate", "--quux"], "unrecognized arguments: --quux; see llama-cffi generate --help"),
        (["generate", "x", "--temprature", "1"], "--temprature 1; did you mean --temperature?"),
        (["generate", "What", "is", "1"], "unrecognized arguments: is 1; put quotes around"),
        (["generate", "x", "-p", "y"], "give the prompt once"),
        (["generat"], "did you mean generate?"),
        (["libs", "lst"], "did you mean list?"),
        (["What is 1 + 1?"], 'to answer a prompt: generate "..."'),
        (["generate", "-p", "x", "-n", "0"], "--max-tokens must be at least 1"),
        (
            ["generate", "-p", "x", "-n", "-5"],
            "-n/--max-tokens/--n-predict/--predict: must be at least -1, got -5",
        ),
        (["generate", "-p", "x", "-n", "many"], "must be an integer, got 'many'"),
        (["generate", "-p", "x", "-c", "-1"], "-c/--ctx-size/--ctx: must be at least 0, got -1"),
        (["generate", "-p", "x", "--gpu-layers", "-2"], "must be at least -1, got -2"),
        (["generate", "-p", "x", "--temperature", "hot"], "must be a number, got 'hot'"),
        (["generate", "-p", "x", "--raw", "-s", "Be brief."], "leave out --system"),
        (["doctor", "now"], "unrecognized arguments: now; see llama-cffi doctor --help"),
    ],
)
def test_usage_errors_exit_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_no_prompt_and_no_stdin_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SystemExit) as exit_:
        main(["generate"])
    assert exit_.value.code == 2
    assert "give a prompt with -p, or pipe one in" in capsys.readouterr().err


def test_help_imports_no_slow_module() -> None:
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
    assert (
        failure(capsys, "-p", "x", "-m", str(missing))
        == f"error: no model file at {missing}; check the path\n"
    )
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
        "message": f"no model file at {Path('/nope.gguf')}; check the path",
    }


def test_stdin_that_is_not_utf8() -> None:
    done = cli("generate", stdin=b"caf\xe9")
    assert error_of(done) == "stdin is not UTF-8 text: byte 0xe9 at offset 3"
    assert "the prompt is empty" in error_of(cli("generate"))


# --- how things are written --------------------------------------------------------------------


def test_json_has_lists_of_numbers_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_generate_is_reproducible(tiny_model: Path) -> None:
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
    # One token per byte: 6 for the 5 letters, and more for the chat template.
    assert facts["prompt_tokens"] > 6


def test_json_has_the_tokens_of_the_engine(tiny_model: Path, child: Any) -> None:
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


def test_what_is_piped_in_follows_the_prompt(tiny_model: Path) -> None:
    arguments = (*GENERATE, tiny_model, "-n", 8)
    wanted = text_of(cli(*arguments, "say\n\ngrüße"))
    assert text_of(cli(*arguments, "say", stdin="grüße\n".encode())) == wanted
    assert text_of(cli(*arguments, "-p", "say", stdin="grüße\n".encode())) == wanted
    assert text_of(cli(*arguments, "say\n\ngrüße", stdin=b"  \n")) == wanted
    assert "byte 0xff at offset 4" in error_of(cli(*arguments, "say", stdin=b"not \xff"))


def test_a_prompt_beside_a_silent_pipe_says_that_it_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(inputs, "STDIN_S", 0.05)
    with open(reader, encoding="utf-8") as stdin, open(writer, "wb") as silent:
        monkeypatch.setattr("sys.stdin", stdin)
        threading.Timer(0.5, silent.close).start()
        assert main([*GENERATE, str(tiny_model), "-n", "2", "say"]) == 0
    assert "waiting for the end of stdin" in capsys.readouterr().err


@POSIX
def test_a_terminal_is_told_the_speed_the_cut_and_what_the_demo_model_is(tiny_model: Path) -> None:
    def seen(*arguments: object) -> str:
        import pty

        main_end, terminal = pty.openpty()
        with open(terminal, "wb", buffering=0) as stderr:
            command = [PROGRAM, "generate", *map(str, arguments), "What is 12 + 30?"]
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=stderr, timeout=120, check=True)  # fmt: skip
            with open(main_end, "rb", buffering=0) as shown:
                return shown.read(4096).decode()

    text = seen("-n", 1)
    assert "demo model, 2 MB" in text
    assert "-m hf:" in text
    assert "1 tokens" in text
    assert "tokens/s; cut at -n 1]" in text
    text = seen("-m", tiny_model, "-n", 300, "-c", 256, "-t", 1, "--ignore-eos")
    assert "demo" not in text
    assert "cut because the context (-c) is full, 256 tokens]" in text


def test_a_context_beyond_the_training_is_a_warning(tiny_model: Path) -> None:
    def warning(*arguments: object) -> str:
        done = cli("generate", "-m", tiny_model, "-n", 1, "x", *arguments)
        text_of(done)
        return done.stderr.decode()

    assert warning("-c", 300).startswith("warning: n_ctx=300 is more than the 256 tokens")
    assert warning("-c", 300).count("\n") == 1
    assert warning("-c", 256) == warning("-c", 0) == warning() == ""


def test_verbose_counts_wherever_it_stands() -> None:
    def level(*argv: str) -> int:
        return verbosity(parse(_parser(), argv))

    assert level("doctor") == 0
    assert level("-v", "doctor") == level("doctor", "-v") == level("libs", "-v", "list") == 1
    assert level("-v", "libs", "list", "-v") == level("generate", "x", "-vv") == 2


def test_prompt_from_stdin(tiny_model: Path) -> None:
    arguments = (*GENERATE, tiny_model, "-n", 8)
    wanted = text_of(cli(*arguments, "-p", "grüße"))
    assert text_of(cli(*arguments, stdin="grüße\n".encode())) == wanted
    with_mark = "\N{BYTE ORDER MARK}grüße\r\n".encode()
    assert text_of(cli(*arguments, "-p", "-", stdin=with_mark)) == wanted
    assert text_of(cli(*arguments, "-p", "grüße", stdin=b"")) == wanted


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
def test_closed_pipe_ends_the_generation(tiny_model: Path) -> None:
    command = [PROGRAM, *GENERATE, str(tiny_model), *LONG]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(1)
        running.stdout.close()
        assert running.wait(60) == 141
        assert re.fullmatch(rb"(warning: n_ctx=.*\n)?", running.stderr.read())


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
def test_help_that_cannot_be_written_is_an_error() -> None:
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [PROGRAM, "--help"], stdout=full, stderr=subprocess.PIPE, env=env, timeout=60
        )
    assert (done.returncode, done.stderr) == (
        1,
        b"error: cannot write the output: No space left on device\n",
    )


def test_a_closed_stdout_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["libs", "list"]) == 1
    assert capsys.readouterr().err == "error: cannot write the output: stdout is closed\n"


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
            except OSError:  # Linux raises this when the other side is closed
                break
            if not data:
                break
            shown += data
        assert running.wait(60) == 0
    os.close(terminal)
    facts = json_of(cli(*GENERATE, tiny_model, "-p", "hi", "-n", "64", "--json"))
    assert output.printable(facts["text"]) != facts["text"], "the test needs control characters"
    expected = output.printable(facts["text"]).rstrip("\n") + "\n"
    told, _, summary = shown.decode().replace("\r\n", "\n").rpartition("[")
    assert told == expected
    assert summary.endswith("tokens/s; cut at -n 64]\n")


def test_main_can_be_called_from_a_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["llama-cffi", "generate", "-m", "/nope.gguf", "-p", "x"])
    before = signal.getsignal(signal.SIGINT)
    assert main() == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert "no model file" in capsys.readouterr().err
