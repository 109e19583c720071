from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import MIDDLE, NEWEST, OLD, Child
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny

from llama_cffi.binding import Model, Vocab
from llama_cffi.errors import ValidationError


@pytest.fixture(scope="module")
def model(tiny_model: Path):
    with Model(tiny_model) as model:
        yield model


@pytest.fixture(scope="module")
def vocab(model: Model) -> Vocab:
    return model.vocab


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_round_trip(vocab: Vocab, text: str) -> None:
    tokens = vocab.tokenize(text)
    assert vocab.detokenize(tokens) == text
    assert b"".join(map(vocab.token_to_piece, tokens)) == text.encode()


def test_bytes_and_text_are_the_same(vocab: Vocab) -> None:
    expected = vocab.tokenize("héllo")
    for data in ("héllo".encode(), bytearray("héllo".encode()), memoryview("héllo".encode())):
        assert vocab.tokenize(data) == expected
    assert vocab.tokenize("") == vocab.tokenize(b"") == []


@pytest.mark.parametrize("text", [b"\xff\xfe", b"\xc3", "\ud800", None, 5, ["a"]])
def test_text_that_is_none(vocab: Vocab, text: object) -> None:
    with pytest.raises(ValidationError):
        vocab.tokenize(text)  # type: ignore[arg-type]


def test_special_tokens_only_when_asked(vocab: Vocab) -> None:
    assert vocab.tokenize("<|im_end|>", parse_special=True) == [258]
    assert 258 not in vocab.tokenize("<|im_end|>")
    assert vocab.token_to_piece(258) == b""
    assert vocab.token_to_piece(258, special=True) == b"<|im_end|>"
    assert vocab.text(258) == "<|im_end|>"
    assert vocab.is_control(258)
    assert vocab.is_eog(258)
    assert not vocab.is_eog(1)
    assert (vocab.bos, vocab.eos, vocab.add_bos, len(vocab)) == (256, 258, False, 259)


@pytest.mark.parametrize("token", [-1, 259, 2**31, 2**40, -(2**40), 1.5, float("nan"), "a", None])
def test_tokens_that_do_not_exist(vocab: Vocab, token: object) -> None:
    for call in (vocab.token_to_piece, vocab.is_eog, vocab.is_control, vocab.text):
        with pytest.raises(ValidationError):
            call(token)  # type: ignore[operator]
    with pytest.raises(ValidationError):
        vocab.detokenize([1, token])  # type: ignore[list-item]


def test_integers_of_other_kinds(vocab: Vocab) -> None:
    assert vocab.detokenize(np.array([65, 66])) == vocab.detokenize([65, 66])
    assert vocab.is_eog(np.int64(258))
    assert vocab.token_to_piece(True) == vocab.token_to_piece(1)


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_a_megabyte_without_a_space(child: Child, tiny_model: Path, build: str) -> None:
    """std::regex recurses for each character of a run; 20,000 overflow a common stack."""
    code = """
        import sys, threading
        from llama_cffi import ValidationError
        from llama_cffi.binding import Model
        vocab = Model(sys.argv[1]).vocab
        before = threading.stack_size()
        runs = ("a" * 1_000_000, "é" * 200_000, " " * 300_000, "\\n" * 100_000)
        for text in (*runs, "word " * 200_000):
            assert vocab.detokenize(vocab.tokenize(text)) == text
        try:
            vocab.tokenize("a" * (2**22 + 1))
        except ValidationError as e:
            assert "limit" in str(e)
        assert threading.stack_size() == before
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")


def test_vocabulary_that_cannot_spell(tmp_path: Path) -> None:
    """C looks up the token of a byte without checking that there is one."""

    def letters(writer) -> None:  # type: ignore[no-untyped-def]
        keys = writer.kv_data[0]
        keys["tokenizer.ggml.model"].value = "llama"
        words = ["▁", *"abcdefghijklmnopqrstuvwxyz", "é"]
        keys["tokenizer.ggml.tokens"].value = words + [f"w{i}" for i in range(259 - len(words))]
        keys["tokenizer.ggml.token_type"].value = [1] * 259

    with Model(write_tiny(tmp_path / "letters.gguf", edit=letters)) as model:
        assert model.vocab.detokenize(model.vocab.tokenize("h é")).strip() == "h é"
        for text in ("A", "ö", "a\nb"):
            with pytest.raises(ValidationError, match="no token for"):
                model.vocab.tokenize(text)


def test_model_without_vocabulary(tmp_path: Path) -> None:
    def none(writer) -> None:  # type: ignore[no-untyped-def]
        writer.kv_data[0]["tokenizer.ggml.model"].value = "no_vocab"

    with Model(write_tiny(tmp_path / "none.gguf", edit=none)) as model:
        for call in (
            lambda: model.vocab.tokenize("a"),
            lambda: model.vocab.token_to_piece(1),
            lambda: model.vocab.text(1),
        ):
            with pytest.raises(ValidationError, match="no vocabulary"):
                call()
