"""A call's arguments are a JSON object, whatever the model writes and wherever it stops."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_cffi.chat.formats.arguments import ArgumentsWriter


def written(pieces: Iterable[str]) -> tuple[str, bool]:
    """Return what is written of the pieces, and whether it is complete."""
    writer = ArgumentsWriter()
    parts = [writer.push(piece) for piece in pieces]
    return "".join(parts) + writer.close(), writer.is_complete


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(_TEXT, _VALUES, max_size=3),
    st.booleans(),
    st.sampled_from([None, 2]),
    st.data(),
)
def test_json_is_written_as_it_is_and_completed_where_it_is_cut(
    value: dict[str, object], is_ascii: bool, indent: int | None, data: st.DataObject
) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    assert written([text]) == written(text) == (text, True)
    end = data.draw(st.integers(0, len(text) - 1))
    cut, is_complete = written([text[:end]])
    assert isinstance(json.loads(cut), dict)
    assert not is_complete


_BITS = ["{", "}", "[", "]", '"', ",", ":", " ", "\n", "a", "1", "true", "nul",
         "\\", "\\n", "\\u", "\\ud83d", "\\ude00", "00e9",
         '"a": ', '"a"', '"b": 2', "-", "NaN", "\x01", "é"]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(_BITS), max_size=14))
def test_any_text_gives_an_object_however_it_is_split(pieces: list[str]) -> None:
    pieces = ["{", *pieces]
    text, is_complete = written(pieces)
    assert isinstance(json.loads(text), dict)
    text.encode()
    assert written(["".join(pieces)]) == (text, is_complete)


@pytest.mark.parametrize(
    ("text", "expected", "is_complete"),
    [
        ("", {}, False),
        ("[1]", {}, False),
        ('{"a": oops, "b": [1, x, 2]}', {"b": [1, 2]}, False),
        ('{"a" 1, "b": 2}', {"b": 2}, False),
        ('{"a": {x: [1, "}"]}, "b": 2}', {"a": {}, "b": 2}, False),
        ('{"a": [1, {"b": 2}', {"a": [1, {"b": 2}]}, False),
        ('{"a": [1}', {"a": [1]}, False),
        ('{"a": 02134, "b": 2}', {"b": 2}, False),
        ('{"a": 1} {"b": 2}', {"a": 1}, False),
        ('{"a": [1, 2,], }', {"a": [1, 2]}, True),
        ('{"a": "1\n2\t\\d\\\'"}', {"a": "1\n2\t\\d'"}, True),
        (
            '{"a": "x\\ud83d", "b": "\\ude00\\ud83d\\ude00"}',
            {"a": "x\ufffd", "b": "\ufffd😀"},
            True,
        ),
        ('{"a": "x\\u00', {"a": "x"}, False),
        ('{"a": "x\\', {"a": "x"}, False),
        ('{"a": "x", "b', {"a": "x"}, False),
        ('{"a": "x", "b": tru', {"a": "x"}, False),
        ('{"a": ' * 300, None, False),
    ],
)
def test_what_is_no_json_does_not_take_the_rest_with_it(
    text: str, expected: object, is_complete: bool
) -> None:
    for pieces in ([text], text):
        found, was_complete = written(pieces)
        assert was_complete is is_complete
        assert expected is None or json.loads(found) == expected
        json.loads(found)


def test_keys_wait_for_their_values_and_texts_for_nothing() -> None:
    writer = ArgumentsWriter()
    steps = [
        ('{"te', "{"),
        ('xt": ', ""),
        ('"a lo', '"text": "a lo'),
        ("ng\\u00", "ng"),
        ("e9 one", "\\u00e9 one"),
        ('", "n": 1', '"'),
        ('2, "b"', ', "n": 12'),
        (': {"c": [t', ', "b": {"c": ['),
    ]
    assert [writer.push(step) for step, _ in steps] == [wanted for _, wanted in steps]
    assert writer.close() == "]}}"
