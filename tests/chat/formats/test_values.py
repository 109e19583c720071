"""Values in JSON, Python's and Gemma's notation are read as JSON, also where models err."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.answer_forms import double_quoted, gemma

from llama_cffi.chat.formats.arguments import ArgumentsWriter
from llama_cffi.chat.formats.values import ValueReader, normalised, scalar
from llama_cffi.chat.scanner import Parser, Scanner

TOKEN = '<|"|>'


def read(text: str, size: int | None = None, **how: Any) -> tuple[Any, bool, str]:
    """Return the value of a member `v`, whether it ended, and the text after it."""
    scanner, writer = Scanner(), ArgumentsWriter()
    parts = [writer.push('{"v": ')]
    ended: list[bool] = []

    def run() -> Parser[None]:
        reader = ValueReader(scanner, lambda piece: parts.append(writer.push(piece)), **how)
        ended.append((yield from reader.value()))

    parser = run()
    size = size or max(len(text), 1)
    for i in range(0, len(text), size):
        scanner.feed(text[i : i + size])
        next(parser, None)
    scanner.is_final = True
    next(parser, None)
    parts += [writer.push("}") if ended[0] else "", writer.close()]
    return json.loads("".join(parts)).get("v"), ended[0], scanner.take(len(text))


def same(text: str, **how: Any) -> tuple[Any, bool, str]:
    """Read whole and in pieces."""
    found = read(text, **how)
    assert all(read(text, size, **how) == found for size in (1, 2, 5))
    return found


# No lone surrogates: JSON text with them is not UTF-8.
_CHARACTERS = st.characters(exclude_categories=["Cs"])
_TEXT = st.text(_CHARACTERS | st.sampled_from("\"'\\{}[](),:=<>|` \n"), max_size=12)
_KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(_VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_json_is_read_exactly(value: object, is_ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    assert same(f"{text}</x>", ends=["</x>"]) == (value, True, "</x>")


@settings(max_examples=150, deadline=None)
@given(_VALUES, st.booleans())
def test_python_is_read_exactly(value: object, is_double: bool) -> None:
    text = double_quoted(value) if is_double else repr(value)
    assert same(f"[{text}]", is_python=True) == ([value], True, "")


@settings(max_examples=150, deadline=None)
@given(_VALUES, st.booleans())
def test_gemma_is_read_exactly(value: object, has_quoted_keys: bool) -> None:
    text = gemma(value, TOKEN, has_quoted_keys)
    assert same(f"[{text}]<end>", quote=TOKEN, ends=["<end>"]) == ([value], True, "<end>")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["{", "}", "[", "]", "(", ")", '"', "'", ",", ":", "=", "\\", "\\n", "a", "1", " ",
             "\n", TOKEN, "<end>", "<", "None", "r'", "'''", "\\x4", "\\u00", "\\N{", "é"]
        ),
        max_size=12,
    ),
    st.booleans(),
)  # fmt: skip
def test_any_text_is_read_alike_however_it_is_split(pieces: list[str], is_python: bool) -> None:
    same("".join(pieces), quote=TOKEN, ends=["<end>"], is_python=is_python)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a': 'it is', \"b\": 'say \"x\"'}", {"a": "it is", "b": 'say "x"'}),
        ("{a: True, b: None, c: False}", {"a": True, "b": None, "c": False}),
        ("{a = 1, 'b'='c'}", {"a": 1, "b": "c"}),
        ('{"a": 1, }', {"a": 1}),
        ('[1, 2,]', [1, 2]),
        ('{"a": 1 "b": 2}', {"a": 1, "b": 2}),
        ('{"a": oops what, "b": x(1, [2])}', {"a": "oops what", "b": "x(1, [2])"}),
        ('{"a": NaN, "b": -Infinity}', {"a": None, "b": None}),
        ('{"a": "say "hi", ok", "b": 1}', {"a": 'say "hi", ok', "b": 1}),
        ('{"a": "<a href="x">y</a>"}', {"a": '<a href="x">y</a>'}),
        ('{"a": "l1\nl2\t"}', {"a": "l1\nl2\t"}),
        (r'{"a": "\d+\.", "b": "it\'s"}', {"a": r"\d+\.", "b": "it's"}),
        (r"""{"a": "\ud83d\ude00", 'b': '\x41\u00e9'}""", {"a": "😀", "b": "Aé"}),
        ("{a: 02134, b: +5, c: 1_000, d: .5, e: 3., f: 0x1F}",
         {"a": 2134, "b": 5, "c": 1000, "d": 0.5, "e": 3.0, "f": 31}),
        ("{a: 2024-01-05, b: 10:30}", {"a": "2024-01-05", "b": "10:30"}),
    ],
)  # fmt: skip
def test_what_is_nearly_json(text: str, value: object) -> None:
    assert same(text) == (value, True, "")
    assert json.loads(normalised(text) or "") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1, 'x')", [1, "x"]),
        ("{'a', 'b'}", ["a", "b"]),
        ("{1: 'x', 'y': {}}", {"1": "x", "y": {}}),
        (r"""[r'\d', b'z', f"{x}", u'é']""", [r"\d", "z", "{x}", "é"]),
        ("""['''a'b"c\n''', \"\"\"d''\"\"\"]""", ["a'b\"c\n", "d''"]),
        ("['a' 'b'\n\"c\"]", ["abc"]),
        (r"['\x41\101\t\N{BULLET}\U0001F600\q']", ["AA\t•😀\\q"]),
        ("[Paris, a.b, 02134, -1.5e+3]", ["Paris", "a.b", 2134, -1500.0]),
        ("['sed -n '360,450p' /x', 1]", ["sed -n '360,450p' /x", 1]),
    ],
)
def test_python_literals(text: str, value: object) -> None:
    assert same(text, is_python=True) == (value, True, "")


@pytest.mark.parametrize("text", ["f(1)", "1+2", "[g(x)]", "{'a': b + c}", "[x for x in y]", "a b"])
def test_expressions_are_no_literals(text: str) -> None:
    assert not same(f"[{text}]", is_python=True)[1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{s:weather in Tokyo<|\"|>}", {"s": "weather in Tokyo"}),
        ("{s:Paris, France<|\"|>,n:5}", {"s": "Paris, France", "n": 5}),
        ("{s:<|\"|>code with }],p:<|\"|>a.txt<|\"|>}", {"s": "code with }]", "p": "a.txt"}),
        ("{s:<|\"|>look<|\"|>n:90}", {"s": "look", "n": 90}),
        ("{s:'x'<|\"|>}", {"s": "x"}),
        ("{s:<|\"|>say <|\"|>hi<|\"|> now<|\"|>}", {"s": "say <|\"|>hi<|\"|> now"}),
        ("{s:<|\"|>a, b:<|\"|>,n:5}", {"s": "a, b:", "n": 5}),
        ("{a:[\"x\",'y, z',w v]}", {"a": ["x", "y, z", "w v"]}),
    ],
)  # fmt: skip
def test_quotes_that_gemma_forgets(text: str, value: object) -> None:
    assert same(f"{text}<end>", quote=TOKEN, ends=["<end>"]) == (value, True, "<end>")


@pytest.mark.parametrize(
    ("text", "value", "rest"),
    [
        ('{"a": "x"<end>', {"a": "x"}, "<end>"),
        ('{"a": {"b": [1<end>y', {"a": {"b": [1]}}, "<end>y"),
        ('{"a": "x"} tail', {"a": "x"}, " tail"),
        ('{"a": 1]]', {"a": 1}, "]]"),
        ('{"a": "x', {"a": "x"}, ""),
        ('{"a": "x\\', {"a": "x"}, ""),
        ('{"a": 1, "b', {"a": 1}, ""),
        ("nothing<end>", "nothing", "<end>"),
    ],
)
def test_what_breaks_off_is_kept_up_to_there(text: str, value: object, rest: str) -> None:
    found, _, left = same(text, ends=["<end>"])
    assert (found, left) == (value, rest)


def test_an_end_marker_in_a_string_is_text() -> None:
    text = '{"a": "x<end>y", "b": "<end>"}<end>'
    value = {"a": "x<end>y", "b": "<end>"}
    assert same(text, ends=["<end>"]) == (value, True, "<end>")


def test_a_key_without_a_value_is_unread() -> None:
    scanner = Scanner()
    scanner.feed('{"a": 1, "b" 2}')
    scanner.is_final = True
    reader = ValueReader(scanner, lambda _: None)
    assert next(reader.value(), None) is None
    assert reader.unread + scanner.take(9) == '"b" 2}'


def test_words_are_text_where_the_schema_allows_only_text() -> None:
    schema = {
        "type": "object",
        "properties": {
            "s": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "l": {"type": "array", "items": {"$ref": "#/$defs/Zip"}},
            "n": {"type": "integer"},
        },
        "$defs": {"Zip": {"enum": ["90210", "10001"]}},
    }
    text = "{s: 90210, l: [90210, 10001], n: 90210}"
    value = {"s": "90210", "l": ["90210", "10001"], "n": 90210}
    assert same(text, schema={"properties": {}})[0] == {**value, "s": 90210, "l": [90210, 10001]}
    found: list[str] = []
    scanner = Scanner()
    scanner.feed(text)
    scanner.is_final = True
    next(ValueReader(scanner, found.append, schema).value(), None)
    assert json.loads("".join(found)) == value


def test_scalars() -> None:
    string, nullable = frozenset({"string"}), frozenset({"string", "null"})
    assert [scalar(word, string) for word in ("90210", "true", "1e5")] == [
        '"90210"', '"true"', '"1e5"',
    ]  # fmt: skip
    assert [scalar(word, nullable) for word in ("null", "None", "none")] == [
        "null", "null", '"none"',
    ]  # fmt: skip
    assert scalar("12345678901234567890123") == "12345678901234567890123"
    assert scalar("1e999") == "1e999"  # as JSON has it
    assert scalar("0" + "9" * 5000) == f'"0{"9" * 5000}"'


def test_deep_values_do_not_exhaust_the_stack() -> None:
    for text in ("[" * 5000, '{"a":' * 5000, "[" * 150 + "]" * 150):
        assert read(text)[1] == (text[-1] == "]")
