from __future__ import annotations

import random
import re
from typing import Any

import pytest
from support.random_schemas import Taker, random_pattern, random_text

from llama_cffi import GrammarError
from llama_cffi.grammars import LlamaGrammar
from llama_cffi.grammars.patterns import other_than, rewritten, whole


def taker(pattern: str, **more: Any) -> Taker:
    return Taker(LlamaGrammar.from_json_schema({"type": "string", "pattern": pattern, **more}))


def test_random_patterns_are_enforced_on_the_value() -> None:
    rng, n_inexact = random.Random(0), 0
    for _ in range(400):
        pattern, judge = random_pattern(rng)
        texts = [random_text(rng) for _ in range(8)]
        try:
            takes = taker(pattern).takes
        except GrammarError:  # because no string matches
            assert not any(map(judge.search, texts)), pattern
            continue
        is_exact = rewritten(pattern).is_exact
        n_inexact += not is_exact
        for text in texts:
            matches = bool(judge.search(text))
            loses_nul = matches and not is_exact and "\0" in text
            assert takes(text) == matches or loses_nul, (pattern, text)
    assert 0 < n_inexact < 60


@pytest.mark.parametrize(
    ("pattern", "fits", "others"),
    [
        (r'^[^\\/:*?"<>|]{1,12}$', ["a.txt", "é\n"], ['a"b', "a\\b", "a/b", "a:b", ""]),
        ('^[^"]*$', ["ab\\", "it's", "\x01\x1f\n"], ['a"b']),
        (r"^[^\\]*$", ['a"b'], ["a\\b"]),
        (r'^[^"\n]$', ["\t", "\\"], ['"', "\n"]),
        (r"^\P{L}$", ['"', "\\", "1", "\0"], ["é", "a"]),
        (r"^[^\p{Greek}]$", ["a", '"'], ["\u03b1"]),
        (r"^[\x01-\x1f]|x$", ["\x01", "\n!", "ax"], ['"', "\\"]),
        (r"^([\x00-\x0f]|[\x10-\x1f]|a)$", ["a", "\x07", "\x1f"], ['"', "\\", "b"]),
        (r"^\s$", [" ", "\t", "\u2003", "\ufeff"], ["a", "\u200b", '"']),
        (r"^\W$", ["é", '"', "\\"], ["a", "_", "0"]),
        (r"^[\b]$", ["\b"], ["b"]),
        (r"^\cJ\0\v$", ["\n\0\v"], ["J"]),
        (r"^[[&&a]$", ["[", "&", "a"], ["b", ""]),
        (r"^[a--c]$", None, None),
        (r"^[\d-x]$", ["-", "x", "7"], ["a"]),
        (r"^[\w~~]+$", ["a~"], ["-"]),
        (r'^{"a": [0-9]{1,2}}$', ['{"a": 12}'], ["{a: 12}"]),
        (r"^x{,2}$", ["", "xx"], ["xxx"]),
        (r"^\u00e9\x41\u{1F600}\ud83d\ude00$", ["éA😀😀"], ["éA😀"]),
        ("^.$", ["é", "😀", '"', "\\", "\0", "\u2028"], ["\n", "ab"]),
        ("^(?<year>[0-9]{4})(?P<stop>x)$", ["2024x"], ["2024"]),
        ("^(?i)ab$", ["AB"], ["ac"]),
        ("^(?:a|)$", ["a", ""], ["b"]),
        ("^a|b$", ["ax", "xb"], ["xa", "bx"]),
        ("", ["", "x"], []),
        (r"^[^]$", ["a", "\n", '"'], ["", "ab"]),
    ],
)
def test_classes_and_escapes_mean_what_they_mean_in_ecma_262(
    pattern: str, fits: list[str] | None, others: list[str] | None
) -> None:
    if fits is None or others is None:
        with pytest.raises(GrammarError, match="ends before it begins"):
            rewritten(pattern)
        return
    takes = taker(pattern).takes
    assert [text for text in fits if not takes(text)] == []
    assert [text for text in others if takes(text)] == []


@pytest.mark.parametrize(
    ("pattern", "has"),
    [
        ("(?=a)", "look-around"),
        ("(?<!a)b", "look-around"),
        (r"(a)\1", "backreferences"),
        (r"\bword", r"word boundary \\b"),
        ("a*+", "possessive"),
        ("(?>a)", r"'\(\?>'"),
        ("[]a]", "begins with"),
        ("[a", "without an end"),
        ("a\\", "backslash at the end"),
        (r"\ud800", "not a character"),
        (r"\q", r"escape \\q"),
        (r"\012", "octal"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_pattern(pattern: str, has: str) -> None:
    schema = {"properties": {"x": {"pattern": pattern}}}
    says = f"#/properties/x: .*{re.escape(repr(pattern))} has .*{has}"
    with pytest.raises(GrammarError, match=says):
        LlamaGrammar.from_json_schema(schema)


@pytest.mark.parametrize(
    ("schema", "fits", "others"),
    [
        ({"minLength": 2, "maxLength": 2}, ["ab", "😀é", '"\\', "\n\x01"], ["a", "😀", "abc"]),
        ({"pattern": '^[^"]+$', "maxLength": 2}, ["\\\\", "😀😀"], ['\\"', "abc", "😀😀😀"]),
        ({"pattern": "a", "minLength": 3}, ["\na\t"], ["a\n", "bcd"]),
    ],
)
def test_lengths_count_characters_of_the_value(
    schema: Any, fits: list[str], others: list[str]
) -> None:
    takes = Taker(LlamaGrammar.from_json_schema({"type": "string", **schema})).takes
    assert [text for text in fits if not takes(text)] == []
    assert [text for text in others if takes(text)] == []


def test_a_control_character_may_be_written_either_way() -> None:
    taken = taker('^[^"]$')
    assert all(map(taken.takes_text, [r'"\n"', r'"\u000a"', r'"\u000A"', r'"\\"', '"/"']))
    assert not any(map(taken.takes_text, [r'"\u0000"', r'"\""', '"\n"', '"\\"']))


def test_names_match_patterns_like_strings() -> None:
    schema = {"patternProperties": {'^[^"]$': {"type": "integer"}}, "additionalProperties": False}
    takes = Taker(LlamaGrammar.from_json_schema({"type": "object", **schema})).takes
    assert takes({"a": 1, "\\": 2})
    assert not takes({'"': 1})
    assert not takes({"ab": 1})


@pytest.mark.parametrize("texts", [[], [""], ["a", "ab", 'q"'], ["\n", "é", "😀x"]])
def test_all_texts_but_some(texts: list[str]) -> None:
    takes = taker(other_than(texts)).takes
    tried = {"", "a", "ab", "abc", "b", 'q"', 'q""', "\n", "é", "😀", "😀x", "\\", "\0"}
    assert {text for text in tried if not takes(text)} == set(texts)


def test_random_patterns_are_enforced_on_text_without_quotes() -> None:
    rng = random.Random(1)
    for _ in range(300):
        pattern, judge = random_pattern(rng)
        texts = [text for text in (random_text(rng) for _ in range(8)) if text]
        takes = Taker(LlamaGrammar.from_lark(f"start: /{whole(pattern)}/")).takes_text
        for text in texts:
            assert takes(text) == bool(judge.search(text)), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "fits", "others"),
    [
        ("^a|b$", ["ax", "xb"], ["xa", "bx"]),
        ("a|^b", ["xa", "bx"], ["xb"]),
        ("^(a|b)$", ["a", "b"], ["ab"]),
        (r"^a\$$", ["a$"], ["a"]),
        ("/[|]/", ["x/|/y"], ["//"]),
        ("^(?:a|(?i:b|c))$", ["a", "C"], ["A"]),
    ],
)
def test_anchors_of_each_alternative_count(
    pattern: str, fits: list[str], others: list[str]
) -> None:
    takes = Taker(LlamaGrammar.from_lark(f"start: /{whole(pattern)}/")).takes_text
    assert [text for text in fits if not takes(text)] == []
    assert [text for text in others if takes(text)] == []
