"""`llama-cffi chat`: through pipes one answer, on a pseudo-terminal a conversation."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import PROGRAM, Runner

from llama_cffi import demo
from llama_cffi.cli.line_editor import LineEditor

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
if os.name == "posix":
    from support.terminal import Terminal

CHAT = (PROGRAM, "chat", "--temp", "0", "-c", "512")
ASK = "What is 12 + 30?"
# A PNG of one pixel.
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


# --- no terminal on stdin ------------------------------------------------------------------------


def test_stdin_is_one_message_and_stdout_the_answer(run: Runner) -> None:
    def answer(*args: object, stdin: str = "") -> str:
        return run.text("chat", "--temp", 0, *args, stdin=stdin)

    assert answer(stdin=ASK + "\n") == "42\n"
    assert answer(ASK) == "42\n"
    assert answer("-p", ASK) == "42\n"
    assert answer("-f", "-", stdin=ASK) == "42\n"
    assert answer("What is", stdin="12 + 30?") == answer(stdin="What is\n\n12 + 30?\n")
    assert len(answer("-n", 1, ASK)) <= 3


def test_a_pipe_gets_the_answer_alone() -> None:
    done = subprocess.run([*CHAT], input=ASK.encode(), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"42\n", b"")
    done = subprocess.run([*CHAT, "--show-timings"], input=ASK.encode(), capture_output=True)
    assert done.stdout == b"42\n"
    form = (
        r"\[prompt \d+ tok \(cached 0\), \S+ tok/s; answer \d+ tok, \S+ tok/s; "
        r"first token \d+ ms\]\n"
    )
    assert re.fullmatch(form, done.stderr.decode())


def test_a_session_is_kept_for_its_owner_and_continued(run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    run.text("chat", "--temp", 0, "--session", file, "-s", "Be brief.", "hello")
    run.text("chat", "--temp", 0, "--session", file, ASK)
    whole = json.loads(file.read_text("utf-8"))
    assert [m["role"] for m in whole["messages"]] == ["user", "assistant"] * 2
    assert whole["system"] == "Be brief."
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        ([], "", "the message is empty"),
        ([" "], "", "the message is empty"),
        ([], b"\xff", "stdin is not UTF-8 text"),
        (["a", "--temp", "-1"], "", "temperature=-1"),
        (["a", "-sysf", "nowhere"], "", "cannot read nowhere"),
        (["a", "-m", "nowhere.gguf"], "", "no model file at nowhere.gguf"),
        (["a " * 3000, "-c", "64"], "", "tokens"),
    ],
)
def test_wrong_input_is_one_sentence(
    args: list[str], stdin: str | bytes, message: str, run: Runner
) -> None:
    assert message in run.error("chat", *args, stdin=stdin)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a", "-p", "b"], "give the message once"),
        (["a", "-s", "x", "-sysf", "y"], "give the system prompt once"),
        (["a", "-n", "0"], "at least 1, or -1"),
        (["a", "--reasoning-effort", "hard"], "invalid choice: 'hard'"),
        (["a", "--temprature", "1"], "did you mean --temperature?"),
    ],
)
def test_wrong_arguments_are_usage_errors(args: list[str], message: str, run: Runner) -> None:
    assert message in run.usage("chat", *args)


def test_a_wrong_session_file_is_one_sentence(run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    for text in ("", "[]", '{"messages": 3}'):
        file.write_text(text, "utf-8")
        assert "is not a session of" in run.error("chat", "--session", file, "a")
    assert "cannot write" in run.error("chat", "--session", tmp_path / "no" / "file", "hello")


def test_a_build_without_libmtmd_says_where_pictures_work(run: Runner, tmp_path: Path) -> None:
    picture, model = tmp_path / "dot.png", demo.model_path()
    picture.write_bytes(base64.b64decode(DOT))
    for command in ("chat", "generate"):
        error = run.error(command, "-m", model, "--image", picture, "-p", "what?")
        assert error.startswith("pictures and sounds do not work: this build of llama.cpp has no")
        assert "llama-cffi libs fetch" in error
    assert "--raw uses the prompt verbatim" in run.usage("generate", "--raw", "--image", picture)


# --- on a terminal -------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path), "NO_COLOR": "1"}


@POSIX
def test_a_conversation_with_commands(state: dict[str, str], tmp_path: Path) -> None:
    file, note = tmp_path / "talk.json", tmp_path / "note.txt"
    note.write_text("What is\n", "utf-8")
    history = tmp_path / "history" / "lines"
    with Terminal([*CHAT, "--history", history], **state) as terminal:
        terminal.expect("> ")
        assert terminal.ask(ASK) == "42"
        assert "/regen" in terminal.ask("/help")
        assert terminal.ask("/regen") == "42"
        assert "settings: {" in terminal.ask("/set")
        assert terminal.ask("/set max_tokens 1") == ""
        assert "temperature=-1" in terminal.ask("/set temperature -1")
        assert "did you mean" in terminal.ask("/set temprature 1")
        assert "needs a name and a value" in terminal.ask("/set top_k")
        assert terminal.ask("/set max_tokens -1") == ""
        assert terminal.ask(f"/save {file}") == ""
        assert terminal.ask("/clear") == ""
        assert "no message to answer again" in terminal.ask("/regen")
        assert "2 messages" in terminal.ask(f"/load {file}")
        assert "cannot read" in terminal.ask("/load nowhere")
        assert "goes with the next message" in terminal.ask(f"/read {note}")
        assert terminal.ask("/clear") == ""
        assert "there is no command /fly" in terminal.ask("/fly")
        assert terminal.ask("/system Be brief.") == ""
        terminal.send('"""What is\n')
        terminal.expect(". ")
        terminal.send('12 + 30?"""\n')
        terminal.expect("\n> ")
        terminal.send("What is 1 \\\n")
        terminal.expect(". ")
        terminal.send("+ 1?\n")
        terminal.expect("\n> ")
        terminal.ask(f"/save {file}")
        terminal.send("/exit\n")
        assert terminal.end()[0] == 0
    whole = json.loads(file.read_text("utf-8"))
    said = [m["content"] for m in whole["messages"] if m["role"] == "user"]
    assert said == ["What is\n12 + 30?", "What is 1 \n+ 1?"]
    assert whole["system"] == "Be brief."
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "/regen" in history.read_text("utf-8")


@POSIX
def test_ctrl_c_keeps_the_stopped_answer_and_leaves_the_second_time(
    state: dict[str, str], tmp_path: Path, tiny_model: Path
) -> None:
    file = tmp_path / "talk.json"
    command = [PROGRAM, "chat", "-m", tiny_model, "-t", "1", "-c", "60000", "--temp", "0"]
    with Terminal([*command, "--ignore-eos", "--no-history", "--session", file], **state) as it:
        it.expect("> ")
        it.send("hello\n")
        it.expect("hello\n")
        it.expect_any()  # the answer begins
        it.interrupt()
        it.expect("(stopped)")
        it.expect("> ")
        it.send("half a li")
        it.expect("half a li")
        it.settle()
        it.interrupt()
        it.expect("(Ctrl-C again, Ctrl-D or /exit leaves)")
        it.expect("> ")
        it.settle()
        it.interrupt()
        assert it.end()[0] == 130
    messages = json.loads(file.read_text("utf-8"))["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert messages[1]["content"]
    assert not [*tmp_path.rglob("chat_history")]


@POSIX
def test_ctrl_d_leaves_and_a_single_turn_ends_by_itself(state: dict[str, str]) -> None:
    with Terminal([*CHAT, "--no-history"], **state) as terminal:
        terminal.expect("> ")
        terminal.send("\x04")
        assert terminal.end()[0] == 0
    with Terminal([*CHAT, "-st", ASK], **state) as terminal:
        code, shown = terminal.end()
        assert (code, shown.splitlines()[-1]) == (0, "42")


@POSIX
def test_reasoning_is_dimmed_hidden_and_never_in_a_pipe(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_cffi.cli import chat_session

    def answer(self: object, prompt: str) -> Iterator[tuple[str, str]]:
        yield "reasoning_content", "hm"
        yield "content", "\n\nyes"

    monkeypatch.setattr(chat_session.ChatSession, "answer", answer)
    assert run.text("chat", "hello") == "\n\nyes\n"
    monkeypatch.setattr("llama_cffi.cli.output.is_terminal", lambda stream: stream is sys.stdout)
    monkeypatch.setattr("llama_cffi.cli.output.has_colours", lambda stream: True)
    assert run.text("chat", "hello") == "\033[2mhm\033[0m\n\nyes\n"
    assert run.text("chat", "hello", "--hide-thinking") == "\n\nyes\n"
    monkeypatch.setattr("llama_cffi.cli.output.has_colours", lambda stream: False)
    assert run.text("chat", "hello") == "hm\n\nyes\n"


def test_messages_of_several_lines_end_with_the_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    def messages(text: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        with LineEditor(None, keeps=False) as editor:
            return [*iter(editor.read, None)]

    assert messages("a\nb\n") == ["a", "b"]
    assert messages('"""a\nb\n"""\nc') == ["a\nb", "c"]
    assert messages('"""a"""\n"""\nb') == ["a", "b"]
    assert messages("a\\\nb\\\n\nc") == ["a\nb\n", "c"]
    assert messages("a\\") == ["a"]
    assert capsys.readouterr().out == ""
