"""Labels are one token each in the place of the reply, in vocabularies of both kinds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import pytest
from support.tiny_gguf import write_tiny

from llama_cffi import Model, ValidationError
from llama_cffi.binding import Vocab
from llama_cffi.decisions.labels import find_labels

CHATML = "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
INST = "[INST] Hello?\nAnswer Yes or No only. [/INST]"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
YES_NO = [("Yes", "No")]


def sentencepiece(words: Sequence[str]) -> list[str]:
    return ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words]


def write_sentencepiece(path: Path, words: Sequence[str]) -> Path:
    def edit(writer: gguf.GGUFWriter) -> None:
        keys, tokens = writer.kv_data[0], sentencepiece(words)
        del keys["tokenizer.ggml.pre"], keys["tokenizer.ggml.merges"]
        for key, value in {
            "model": "llama",
            "tokens": tokens,
            "token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
            "bos_token_id": 1,
            "eos_token_id": 2,
        }.items():
            keys[f"tokenizer.ggml.{key}"].value = value
        keys["llama.vocab_size"].value = len(tokens)
        for name in ("token_embd.weight", "output.weight"):
            tensor = writer.tensors[0][name].tensor
            writer.tensors[0].pop(name)
            writer.add_tensor(name, tensor.repeat(2, 0)[: len(tokens)])
        writer.add_token_scores([-float(i) for i in range(len(tokens))])

    return write_tiny(path, edit=edit, chat_template=None)


@pytest.fixture(scope="module")
def bytes_only(model: Model) -> Vocab:
    """256 byte tokens and three control tokens."""
    return model.vocab


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocab]:
    """Byte tokens, and whole words as single tokens."""
    more = ["Yes", "No", *(a + b for a in "ABCDEFGHIJKLM" for b in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")]
    path = write_tiny(tmp_path_factory.mktemp("models") / "words.gguf", words=more)
    with Model(path, vocab_only=True) as model:
        yield model.vocab


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocab]:
    """SentencePiece: `▁Yes`, `▁A` to `▁Z` and `▁`, as in Llama 2."""
    more = ["▁", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "▁Y", "es", "▁N", "o", "▁Yes", "▁No"]
    more += [f"▁{letter}" for letter in "ABCDEFGHIJKLM"]
    path = write_sentencepiece(tmp_path_factory.mktemp("models") / "spm.gguf", more)
    with Model(path) as model:
        yield model.vocab


def check(vocab: Vocab, prompt: str, n: int, spaced: bool = False) -> tuple[str, ...]:
    """Find *n* labels and verify them in the whole prompt."""
    labels = find_labels(vocab, prompt, n, special=SPECIAL, spaced=spaced)
    before = vocab.tokenize(prompt, False, True)
    assert len(set(labels.texts)) == len(set(labels.tokens)) == n
    spaces = set()
    for text, token in zip(labels.texts, labels.tokens, strict=True):
        spelled = vocab.detokenize([token], keep_space=True)
        assert spelled.strip() == text
        spaces.add(spelled != text)
        assert vocab.tokenize(prompt + spelled, False, True) == [*before, token]
    assert len(spaces) == 1, "all labels have the same form"
    return labels.texts


@pytest.mark.parametrize("n", [2, 3, 26])
def test_up_to_26_options_are_letters_from_a(bytes_only: Vocab, words: Vocab, n: int) -> None:
    for vocab in (bytes_only, words):
        assert "".join(check(vocab, CHATML, n)) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:n]


def test_more_options_get_pairs_of_letters_small_letters_and_numbers(
    bytes_only: Vocab, words: Vocab
) -> None:
    assert check(words, CHATML, 255)[24:30] == ("Y", "Z", "AA", "AB", "AC", "AD")
    assert check(bytes_only, CHATML, 62)[-11:] == ("z", *"0123456789")


def test_yes_and_no_are_labels_where_they_are_one_token(bytes_only: Vocab, words: Vocab) -> None:
    assert find_labels(words, CHATML, 2, YES_NO, special=SPECIAL).texts == ("Yes", "No")
    assert find_labels(bytes_only, CHATML, 2, YES_NO, special=SPECIAL).texts == ("A", "B")


def test_sentencepiece_labels_carry_the_space_that_the_reply_begins_with(spm: Vocab) -> None:
    labels = find_labels(spm, INST, 2, YES_NO, special=(), spaced=True)
    assert [spm.token_to_piece(token) for token in labels.tokens] == [b" Yes", b" No"]
    assert check(spm, INST, 13, spaced=True) == tuple("ABCDEFGHIJKLM")
    after_line = find_labels(spm, CHATML, 3, special=())
    assert [spm.token_to_piece(token) for token in after_line.tokens] == [b"A", b"B", b"C"]


def test_labels_without_a_space_serve_where_too_few_have_one(spm: Vocab) -> None:
    labels = find_labels(spm, INST, 26, special=(), spaced=True)
    assert spm.token_to_piece(labels.tokens[25]) == b"Z"


def test_a_label_that_merges_with_the_prompt_is_no_label(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def merge(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.merges"].value = [": A"]

    path = tmp_path_factory.mktemp("models") / "merging.gguf"
    write_tiny(path, words=[":A"], edit=merge)
    with Model(path, vocab_only=True) as model:
        assert check(model.vocab, "Answer:", 3) == ("B", "C", "D")


@pytest.mark.parametrize(("n", "most"), [(63, 62), (255, 62)])
def test_a_vocabulary_with_too_few_labels_says_how_many(
    bytes_only: Vocab, n: int, most: int
) -> None:
    with pytest.raises(ValidationError, match=rf"has {n} options, .* only {most} labels"):
        find_labels(bytes_only, CHATML, n, special=SPECIAL)
