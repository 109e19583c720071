from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.gbnf_texts import GRAMMARS, Judges, texts, write_vocabulary
from support.tiny_gguf import write_tiny

from llama_cffi.binding import Candidates, Grammar, Model
from llama_cffi.errors import GrammarError
from llama_cffi.gbnf import lexemes
from llama_cffi.gbnf.lark import to_lark
from llama_cffi.grammars import Constraint, LlamaGrammar
from llama_cffi.grammars.matcher import Matcher
from llama_cffi.grammars.tokens import Tokens

TEXTS = {name: [*texts(grammar, 60, random.Random(name))] for name, grammar in GRAMMARS.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("words") / "words.gguf"
    every = (text for known in TEXTS.values() for text in known)
    with Model(write_vocabulary(path, every, random.Random(0)), vocab_only=True) as model:
        yield model


def lexemes_of(grammar: str) -> int:
    return to_lark(grammar).count(": /")


@pytest.mark.parametrize("name", GRAMMARS)
def test_llguidance_agrees_with_c(model: Model, name: str) -> None:
    judges = Judges(model, GRAMMARS[name])
    verdicts = [judges.verdicts(text) for text in TEXTS[name]]
    assert [(mine, text) for (mine, _), text in zip(verdicts, TEXTS[name], strict=True)] == [
        (other, text) for (_, other), text in zip(verdicts, TEXTS[name], strict=True)
    ]
    assert {verdict.split(",")[0] for verdict, _ in verdicts} >= {"yes", "no"}


@pytest.mark.parametrize("name", GRAMMARS)
def test_llguidance_agrees_with_single_character_lexemes(
    model: Model, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fallback for grammars in which finding longer lexemes would take too long."""
    monkeypatch.setattr(lexemes, "_WORK", 0)
    # A distinct source: equal ones are compiled only once per model.
    judges = Judges(model, f"{GRAMMARS[name]}\n# single")
    for text in TEXTS[name]:
        mine, other = judges.verdicts(text)
        assert mine == other, text


# llama.cpp's engine rejects tokens that it would parse in too many ways.
@pytest.mark.parametrize("name", sorted(GRAMMARS.keys() - {"begins alike"}))
def test_masks_equal_those_of_c(model: Model, name: str) -> None:
    """Except control tokens, and partial characters, which C accepts where none can follow.

    Where the continuation is forced, only the model's own tokenization of it is allowed.
    """
    native = Grammar(model, GRAMMARS[name])
    matcher = Matcher(model, LlamaGrammar.from_string(GRAMMARS[name]))
    known = Tokens.of(model)
    whole = [t for t, piece in enumerate(known.pieces) if t not in known.special and is_text(piece)]
    for text in TEXTS[name][:8]:
        native.reset()
        matcher.reset()
        for token in known.spell(text.encode())[:20]:
            candidates = Candidates(model)
            candidates.fill(np.zeros(len(model.vocab), np.float32))
            native.apply(candidates)
            array = np.sort(candidates.array, order="id")
            mine, other = matcher.allowed()[whole], np.isfinite(array["logit"])[whole]
            assert not (mine & ~other).any(), text
            assert matcher.forced() or (mine == other).all(), text
            native.accept(token)
            matcher.accept(token)


def is_text(piece: bytes) -> bool:
    try:
        return "\0" not in piece.decode()
    except UnicodeDecodeError:
        return False


# Lexemes


@pytest.mark.parametrize(
    ("grammar", "n"),
    [
        ('root ::= [a-z]+ (", " [a-z]+)* "."', 1),  # a single lexeme
        ('root ::= "(" root ")" | [a-z]+', 3),
        ('root ::= "(" root ")" [a-z]+ | [a-z]+', 3),  # no lexeme continues with what follows
        ('root ::= "(" root ")" | [a-z]+ root?', 3),  # a letter ends one and begins another
        ('root ::= "<" root ">" | "<<" root ">>" | "a"', 3),
    ],
)
def test_lexemes_are_maximal(grammar: str, n: int) -> None:
    assert lexemes_of(grammar) == n


def test_a_lexeme_is_cut_where_another_ends() -> None:
    # `[é]+` may end before è, whose first byte is the same as that of é.
    assert "(?:\\x{e9})+" not in to_lark('root ::= "." | [é]+ x\nx ::= "è" root "!"')
    assert "(?:\\x{e9})+" in to_lark('root ::= "." | [é]+ x\nx ::= "—" root "!"')


def test_right_recursive_lists_may_be_long(model: Model) -> None:
    """An Earley parser keeps an item for each step of a right recursion."""
    for grammar in (
        'root ::= "a" root | "b" x\nx ::= "(" root ")" | ""',
        'root ::= "a" x | "b"\nx ::= "a" root | "(" root ")"',
    ):
        matcher = Matcher(model, LlamaGrammar.from_string(grammar))
        for token in Tokens.of(model).spell(b"a" * 20_000):
            matcher.accept(token)


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= r0\n"
        + "".join(f'r{i} ::= "a" r{i + 1} r{i + 1}\n' for i in range(20))
        + 'r20 ::= "b"',
        "root ::= r0\n"
        + "".join(f'r{i} ::= "a" r{i + 1} "b"\n' for i in range(900))
        + 'r900 ::= "c"',
        "root ::= r0\n"
        + "".join(f'r{i} ::= "a" r{i + 1} | "z"\n' for i in range(900))
        + 'r900 ::= "c" r0',
        "root ::= " + "".join(f'"{chr(97 + i % 26)}" (' for i in range(190)) + '"x"' + ")*" * 190,
        "root ::= " + "(" * 90 + '"x" root? ' + '"y")*' * 90,
        'root ::= "(" root ")" | [ab]* "a" ' + "[ab] " * 40,
        'root ::= "(" root ")" | ' + " | ".join(f'"{i}" [a-z]* "{i}"' for i in range(300)),
        'root ::= ("(" root ")"){0,9000} ' + "[a-z]{9000} " * 7,
    ],
)
def test_large_grammars_are_compiled_in_time(model: Model, grammar: str) -> None:
    start = time.process_time()
    matcher = Matcher(model, LlamaGrammar.from_string(grammar))
    assert matcher.allowed().any()
    assert time.process_time() - start < 20


# Differences from C's engine


def test_grammars_without_finite_strings_are_rejected() -> None:
    for grammar in ('root ::= "a" root', 'root ::= "a" "\\x00"', "root ::= [\\uD800-\\uDFFF]"):
        with pytest.raises(GrammarError, match="line 1:1: no finite string matches 'root'"):
            LlamaGrammar.from_string(grammar)


def test_dead_ends_are_avoided(model: Model) -> None:
    grammar = (
        'root ::= "a" ("\\x00" | [\\uD800-\\uDFFF] "b" | root never)? | "c"\nnever ::= "\\x00"'
    )
    native, matcher = Grammar(model, grammar), Matcher(model, LlamaGrammar.from_string(grammar))
    a, c = (Tokens.of(model).spell(letter)[0] for letter in (b"a", b"c"))
    for judge in (native, matcher):
        judge.accept(a)
        assert judge.complete
    assert native.allows(c)
    assert not matcher.allows(c)


def test_literals_match_control_tokens(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tool.gguf", control=["<tool>", "</tool>"])
    with Model(path, vocab_only=True) as model:
        grammar = LlamaGrammar.from_string('root ::= "a<tool>" [^<]+ "</tool>"?')
        start, end = (
            model.vocab.tokenize(name, parse_special=True) for name in ("<tool>", "</tool>")
        )
        for before in (start, model.vocab.tokenize("<tool>")):
            constraint = Constraint(model, grammar)
            for token in [*model.vocab.tokenize("a"), *before]:
                assert constraint.allows(token)
                constraint.accept(token)
            assert not constraint.allows(start[0])  # a control token does not match [^<]+
            assert not constraint.allows(end[0])
            constraint.accept(model.vocab.tokenize("x")[0])
            assert constraint.allows(end[0])
            constraint.accept(end[0])
            assert constraint.ended
        lazy = Constraint(
            model, LlamaGrammar.from_string('root ::= "<tool>" "x"'), triggers=["<tool>"]
        )
        for token in [*model.vocab.tokenize("free "), *start]:
            lazy.accept(token)
        assert not lazy.waiting
        assert not lazy.complete
        assert lazy.forced_tokens() == model.vocab.tokenize("x")
