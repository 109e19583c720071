"""Values without quotes are what their schema allows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_cffi.chat.formats.unquoted import is_text, read_unquoted
from llama_cffi.schema import ANY_TYPE

TEXT, NULLABLE = {"string"}, {"string", "null"}
LOOKALIKES = [
    "90210",
    "true",
    "1e5",
    "[1]",
    '{"a": 1}',
    '"a"',
    "'a'",
    " 1 ",
    "\n",
    "",
    "Nothing",
    "-0",
]


@pytest.mark.parametrize("text", LOOKALIKES)
def test_text_stays_text(text: str) -> None:
    for types in (TEXT, NULLABLE):
        assert json.loads(read_unquoted(text, frozenset(types))) == text


@pytest.mark.parametrize(
    ("text", "types", "expected"),
    [
        ("null", TEXT, "null"),
        ("None", TEXT, "None"),
        ("null", NULLABLE, None),
        ("\nNone\n", NULLABLE, None),
        ("140.0", {"integer"}, 140.0),
        (" 7 ", {"integer"}, 7),
        ("forty", {"integer"}, "forty"),
        ('"7"', {"integer"}, 7),
        ('"x7"', {"integer"}, "x7"),
        ("True", {"boolean"}, True),
        ('"[1, 2]"', {"array"}, [1, 2]),
        ("['a', None]", {"array"}, ["a", None]),
        ("(1, 2)", {"array"}, [1, 2]),
        ("{'a': True}", {"object"}, {"a": True}),
        ("{1, 2}", {"array"}, "{1, 2}"),
        ("true", {"string", "integer"}, "true"),
        ("90210", {"string", "integer"}, 90210),
        ("'a'", {"string", "integer"}, "'a'"),
        ('{"a": 1}', {"string", "object"}, {"a": 1}),
        ("{a: 1}", {"string", "object"}, "{a: 1}"),
        ("90210", ANY_TYPE, 90210),
        ("None", ANY_TYPE, None),
        ('"a"', ANY_TYPE, "a"),
        ("forty two", ANY_TYPE, "forty two"),
        ("NaN", ANY_TYPE, "NaN"),
        ("[" * 5000, {"array"}, "[" * 5000),
    ],
)
def test_other_values_are_json_or_python_of_an_allowed_type(
    text: str, types: set[str], expected: Any
) -> None:
    found = json.loads(read_unquoted(text, frozenset(types)))
    assert (found, type(found)) == (expected, type(expected))


def test_what_is_text() -> None:
    assert [is_text(frozenset(types)) for types in (TEXT, NULLABLE)] == [True, True]
    assert not any(is_text(frozenset(types)) for types in ({"null"}, ANY_TYPE, ()))
