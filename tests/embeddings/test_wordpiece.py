from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.minilm import minilm_model, references
from support.tiny_encoders import write_bert

from llama_cffi import Model, ValidationError
from llama_cffi.embeddings.wordpiece import WordPiece


@pytest.fixture(scope="module")
def minilm(shared_cache: Path) -> Iterator[Model]:
    with Model(minilm_model(shared_cache), vocab_only=True) as model:
        yield model


@pytest.fixture(scope="module")
def wordpiece(minilm: Model) -> WordPiece:
    return WordPiece(minilm)


def test_tokens_are_those_of_the_tokenizers_package(wordpiece: WordPiece) -> None:
    texts, tokens, _ = references()
    assert [wordpiece.tokenize(text) for text in texts] == tokens
    assert [wordpiece.tokenize(text.encode(), False) for text in texts] == [
        ids[1:-1] for ids in tokens
    ]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=0x17F, exclude_categories=["Cs", "Cc"]), max_size=80))
def test_latin_text_is_tokenized_as_in_c(minilm: Model, wordpiece: WordPiece, text: str) -> None:
    assert wordpiece.tokenize(text) == minilm.vocab.tokenize(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_every_text_has_tokens(minilm: Model, wordpiece: WordPiece, text: str) -> None:
    tokens = wordpiece.tokenize(text)
    assert (tokens[0], tokens[-1]) == (101, 102)
    assert all(minilm.vocab.check(token) == token for token in tokens)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        # From the package tokenizers.
        ("\uc548\ub155", [1463, 30006, 30021, 29992, 30010, 30025]),
        ("e\u0301\u200b\u00e9\u0000\ufffd", [25212]),
        ("[SEP]", [1031, 19802, 1033]),
        ("a" * 101, [100]),
        ("", []),
    ],
)
def test_pieces(wordpiece: WordPiece, text: str, pieces: list[int]) -> None:
    assert wordpiece.tokenize(text, add_special=False) == pieces


def test_case_and_accents_as_in_the_file(tmp_path: Path) -> None:
    path, _ = write_bert(tmp_path / "bert.gguf")

    def tokens(text: str, **normalizer: bool) -> list[int]:
        overrides = {f"tokenizer.ggml.normalizer.{k}": v for k, v in normalizer.items()}
        with Model(path, kv_overrides=overrides or None) as model:
            return WordPiece(model).tokenize(text, add_special=False)

    assert tokens("A b \u00e9") == [104, 105, 108]
    assert tokens("A b \u00e9", lowercase=False) == [100, 105, 100]
    assert tokens("A b \u00e9", strip_accents=False) == [104, 105, 100]
    assert tokens("A b \u00e9", lowercase=False, strip_accents=True) == [100, 105, 108]


def test_bad_text(wordpiece: WordPiece) -> None:
    for text in ("\ud800", b"\xff", None):
        with pytest.raises(ValidationError):
            wordpiece.tokenize(text)  # type: ignore[arg-type]
