"""`llama-cffi tokenize`: ids, pieces, counts, and back to the same bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import PROGRAM, Runner

from llama_cffi import Model, demo

TEXT = "Héllo <|im_end|>\n  12 + 30\t\N{GRINNING FACE}\n"


@pytest.fixture(scope="module")
def demo_model() -> Iterator[Model]:
    with Model(demo.model_path(), vocab_only=True) as model:
        yield model


def test_ids_are_those_of_the_vocabulary(run: Runner, demo_model: Model, tmp_path: Path) -> None:
    wanted = demo_model.vocab.tokenize(TEXT, True, True)
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT.encode())
    listed = f"[{', '.join(map(str, wanted))}]\n"
    assert run.text("tokenize", TEXT) == listed
    assert run.text("tokenize", "-p", TEXT, "--ids") == listed
    assert run.text("tokenize", "-f", file) == listed
    assert run.text("tokenize", stdin=TEXT) == listed
    assert run.text("tokenize", "--stdin", stdin=TEXT) == listed
    assert run.text("tokenize", "-f", "-", stdin=TEXT) == listed
    assert run.text("tokenize", TEXT, "--count") == f"{len(wanted)}\n"
    assert run.text("tokenize", TEXT, "--show-count").endswith(f"tokens: {len(wanted)}\n")
    assert run.json("tokenize", TEXT, "--count") == {"count": len(wanted)}
    plain = demo_model.vocab.tokenize(TEXT, True, False)
    assert run.json("tokenize", TEXT, "--no-parse-special")["tokens"] == plain != wanted


def test_pieces_join_to_the_text(run: Runner) -> None:
    found = run.json("tokenize", TEXT)
    pieces = [p.encode() if isinstance(p, str) else bytes(p) for p in found["pieces"]]
    assert b"".join(pieces).decode() == TEXT
    assert found["count"] == len(pieces)
    lines = run.text("tokenize", "a\n", "--pieces").splitlines()
    assert [line.split(" -> ")[1] for line in lines] == ["'a'", r"'\n'"]
    assert int(lines[0].split()[0]) == run.json("tokenize", "a")["tokens"][0]
    assert run.text("tokenize", r"a\n\\", "-e") == run.text("tokenize", "a\n\\")


@pytest.mark.parametrize("text", [TEXT, " a", "", "\r\n\r\n"])
def test_detokenize_gives_the_same_bytes_through_pipes(text: str) -> None:
    ids = subprocess.run([PROGRAM, "tokenize"], input=text.encode(), stdout=subprocess.PIPE)
    assert ids.returncode == 0
    if not text:
        assert ids.stdout == b"[]\n"
        return
    back = subprocess.run(
        [PROGRAM, "tokenize", "--detokenize"], input=ids.stdout, stdout=subprocess.PIPE
    )
    assert (back.returncode, back.stdout) == (0, text.encode())


def test_a_bos_that_was_added_is_not_in_the_text(run: Runner, tmp_path: Path) -> None:
    from support.tiny_gguf import write_tiny

    def add_bos(writer: object) -> None:
        writer.kv_data[0]["tokenizer.ggml.add_bos_token"].value = True  # type: ignore[attr-defined]

    model = write_tiny(tmp_path / "bos.gguf", edit=add_bos)
    ids = run.text("tokenize", "-m", model, "ab")
    assert ids == "[256, 97, 98]\n"
    assert run.text("tokenize", "-m", model, "ab", "--no-bos") == "[97, 98]\n"
    assert run.text("tokenize", "-m", model, "-d", ids.strip()) == "ab"
    assert run.text("tokenize", "-m", model, "-d", "256 97", "--no-bos") == "<|endoftext|>a"
    assert run.json("tokenize", "-m", model, "-d", "256,97") == {"text": "a", "count": 1}


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (["-d", "1, x"], "", "'x' is not a token id"),
        (["-d", "[]"], "", "there is no token id in the input"),
        (["-d", "-p", "[-1]"], "", "'-1' is not a token id"),
        (["-d", "99999999"], "", "99999999"),
        (["-f", "nowhere.txt"], "", "cannot read nowhere.txt: No such file or directory"),
        ([], b"\xff", "stdin is not UTF-8 text: byte 0xff at offset 0"),
        (["-m", "nowhere.gguf", "a"], "", "no model file at nowhere.gguf"),
    ],
)
def test_wrong_input_is_one_sentence(
    args: list[str], stdin: str | bytes, message: str, run: Runner
) -> None:
    assert message in run.error("tokenize", *args, stdin=stdin)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a", "-p", "b"], "give the text once"),
        (["a", "-f", "b"], "give the text once"),
        (["a", "--stdin"], "leave out the other text"),
        (["a", "b"], "unrecognized arguments: b"),
        (["a", "--count", "--pieces"], "not allowed with"),
        (["--piece", "-x"], "unrecognized arguments: -x"),
    ],
)
def test_wrong_arguments_are_usage_errors(args: list[str], message: str, run: Runner) -> None:
    assert message in run.usage("tokenize", *args)


def test_no_text_on_a_terminal_is_a_usage_error(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_cffi.cli.inputs.is_piped", lambda: False)
    assert "or pipe one in" in run.usage("tokenize")
