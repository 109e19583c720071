from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.tiny_gguf import write_tiny

from llama_cffi import Engine
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
def test_invalid_text(vocab: Vocab, text: object) -> None:
    with pytest.raises(ValidationError):
        vocab.tokenize(text)  # type: ignore[arg-type]


def test_special_tokens_only_on_request(vocab: Vocab) -> None:
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


def test_cached_results_are_checked_too(vocab: Vocab) -> None:
    """1.0 and True have the hash of 1, and a closed model answers nothing."""
    assert not vocab.is_eog(1)
    with pytest.raises(ValidationError):
        vocab.is_eog(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        vocab.is_eog([1])  # type: ignore[arg-type]


def test_closed(tiny_model: Path) -> None:
    model = Model(tiny_model)
    vocab = model.vocab
    assert vocab.is_eog(258)
    assert vocab.eog_tokens == {258} | {t for t in range(259) if vocab.is_eog(t)}
    model.close()
    calls = (vocab.is_eog, vocab.is_control, vocab.score, vocab.attr, vocab.text)
    for call in (*(lambda c=c: c(258) for c in calls), lambda: vocab.eog_tokens, lambda: vocab.sep):
        with pytest.raises(ValidationError, match="closed"):
            call()


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_every_property_of_tokens(child: Child, tmp_path: Path, build: str) -> None:
    def edit(writer) -> None:  # type: ignore[no-untyped-def]
        writer.add_mask_token_id(7)
        writer.add_pad_token_id(9)
        writer.add_sep_token_id(10)
        writer.add_eot_token_id(257)
        writer.add_add_eos_token(True)
        for part, token in {"pre": 11, "suf": 12, "mid": 13, "rep": 15, "sep": 16}.items():
            writer.add_uint32(f"tokenizer.ggml.fim_{part}_token_id", token)
        writer.add_uint32("tokenizer.ggml.prefix_token_id", 11)  # their names until b3995
        writer.add_uint32("tokenizer.ggml.suffix_token_id", 12)
        writer.add_uint32("tokenizer.ggml.middle_token_id", 13)

    path = write_tiny(tmp_path / "rich.gguf", edit=edit)
    bare = write_tiny(
        tmp_path / "bare.gguf",
        edit=lambda w: (
            w.kv_data[0].__getitem__("tokenizer.ggml.model").__setattr__("value", "no_vocab")
        ),
    )
    code = """
        import json, sys
        from llama_cffi import ValidationError
        from llama_cffi.binding import Model
        v = Model(sys.argv[1]).vocab
        print(json.dumps({
            "special": [v.mask, v.pad, v.sep, v.eot, v.add_eos, v.add_sep],
            "fim": [v.fim_pre, v.fim_suf, v.fim_mid, v.fim_pad, v.fim_rep, v.fim_sep],
            "type": v.type, "score": v.score(3), "eog": sorted(v.eog_tokens),
            "attr": [sorted(v.attr(3)), sorted(v.attr(258))],
            "ends": v.tokenize("a")[-1],
        }))
        v = Model(sys.argv[2]).vocab
        refused = 0
        for call in (v.is_control, v.text, v.score, v.attr):
            try:
                call(1)
            except ValidationError:
                refused += 1
        print(json.dumps([v.type, refused, v.is_eog(1), v.mask, v.nl]))
    """
    result = child(code, path, bare, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    rich, none = map(json.loads, result.stdout.splitlines())
    assert rich["special"] == [7, 9, 10, 257, True, False]
    assert rich["fim"] == [11, 12, 13, None, 15, 16]
    assert (rich["type"], rich["score"], rich["ends"]) == ("bpe", 0.0, 258)
    assert {257, 258} <= set(rich["eog"])
    assert rich["attr"] == [["normal"], ["control"]]
    assert none == ["none", 4, False, None, None]


def test_other_integer_types(vocab: Vocab) -> None:
    assert vocab.detokenize(np.array([65, 66])) == vocab.detokenize([65, 66])
    assert vocab.is_eog(np.int64(258))
    assert vocab.token_to_piece(True) == vocab.token_to_piece(1)


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_a_megabyte_without_spaces(child: Child, tiny_model: Path, build: str) -> None:
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
            assert "at most 4194304 are allowed" in str(e)
        assert threading.stack_size() == before
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")


def test_vocabulary_that_cannot_spell(tmp_path: Path) -> None:
    """C looks up the token of a byte without checking that it exists."""

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


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model with a vocabulary of SentencePiece: `▁` for spaces, bytes as <0x..>."""

    def edit(writer: gguf.GGUFWriter) -> None:
        keys = writer.kv_data[0]
        words = ["▁", "▁▁", "▁a", "▁the", "he", "th", "a", "b", "t", "h", "e", "é"]
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
        tokens[3 : 3 + len(words)] = words  # bytes 0 to 11 never occur in the texts below
        keys["tokenizer.ggml.model"].value = "llama"
        keys["tokenizer.ggml.tokens"].value = tokens
        kinds = [2, 3, 3, *[6] * 256]
        kinds[3 : 3 + len(words)] = [1] * len(words)
        keys["tokenizer.ggml.token_type"].value = kinds
        writer.add_token_scores([0.0] * 3 + [-float(i) for i in range(256)])
        for name, token in (("bos", 1), ("eos", 2)):
            keys[f"tokenizer.ggml.{name}_token_id"].value = token

    path = write_tiny(tmp_path_factory.mktemp("spm") / "spm.gguf", edit=edit)
    with Model(path) as model:
        assert (model.vocab.type, model.vocab.bos, model.vocab.adds_space) == ("spm", 1, True)
        yield model


SPACED = ("a", " a", "  a", "a ", "the the", " ", "   ", "é", "日本", "ab ☃", "", "</s>", "x" * 40)


@pytest.mark.parametrize("text", SPACED)
def test_detokenize_removes_the_space_of_sentencepiece(sentencepiece: Model, text: str) -> None:
    vocab, library = sentencepiece.vocab, sentencepiece.library
    tokens = vocab.tokenize(text, add_special=False)
    buffer = library.ffi.new("char[]", 256)
    n = library.lib.llama_detokenize(vocab._live(), tokens, len(tokens), buffer, 256, False, False)
    assert vocab.detokenize(tokens) == library.ffi.buffer(buffer, n)[:].decode() == text
    assert vocab.detokenize(tokens, keep_space=True) == (f" {text}" if text else "")
    assert vocab.detokenize([1, *tokens]) == text  # BOS, as transformers skips it
    assert vocab.detokenize([1, *tokens], special=True).startswith("<s> " if text else "<s>")


def test_streamed_text_is_the_detokenized_answer(sentencepiece: Model) -> None:
    """An answer continues its prompt, so its first space is part of it."""
    with Engine(sentencepiece, n_ctx=64, n_threads=1) as engine:
        prompt = engine.tokenize("the")
        for text in (" a the", "b é", "   h", " é☃"):
            for skip_forced in (True, False):
                options = {"grammar": f'root ::= "{text}"', "skip_forced": skip_forced}
                steps = [*engine.steps(prompt, 40, **options)]
                tokens = [step.token for step in steps if step.token is not None]
                assert "".join(step.text for step in steps) == text
                assert engine.detokenize(tokens, keep_space=True) == text
                assert engine.detokenize(tokens) == text.removeprefix(" ")


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_a_byte_pair_vocabulary_adds_no_space(child: Child, tiny_model: Path, build: str) -> None:
    code = """
        import sys
        from llama_cffi.binding import Model
        vocab = Model(sys.argv[1]).vocab
        assert not vocab.adds_space
        assert vocab.detokenize(vocab.tokenize(" a")) == " a"
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")
