from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cffi.errors import ValidationError
from llama_cffi.text import Flusher, JsonCompletion, StopStrings, ThinkFilter, Utf8Stream

CUTS = st.lists(st.integers(0, 400), max_size=12)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """*data* split at *cuts*; empty pieces are part of it."""
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        yield data[start:end]


def single_bytes(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def both_ways(run: Callable[[list[bytes]], Any], data: bytes, cuts: list[int]) -> Any:
    """The result, which must be the same whole, cut and byte by byte."""
    whole = run([data])
    assert run(list(pieces(data, cuts))) == whole
    assert run(single_bytes(data)) == whole
    return whole


@given(st.binary(max_size=60), CUTS)
def test_utf8_equals_decoding_the_whole(data: bytes, cuts: list[int]) -> None:
    def run(parts: list[bytes]) -> str:
        stream = Utf8Stream()
        return "".join(map(stream.push, parts)) + stream.flush()

    assert both_ways(run, data, cuts) == data.decode("utf-8", "replace")


def test_utf8_hands_out_whole_characters() -> None:
    stream = Utf8Stream()
    assert [stream.push(b) for b in single_bytes("é€🙂".encode())] == [
        "", "é", "", "", "€", "", "", "", "🙂",
    ]  # fmt: skip
    assert stream.flush() == ""


def run_stops(stops: list[str]) -> Callable[[list[bytes]], tuple[bytes, str | bytes | None]]:
    def run(parts: list[bytes]) -> tuple[bytes, str | bytes | None]:
        finder, out = StopStrings(stops), b""
        for part in parts:
            out += finder.push(part)
        if finder.found is None:
            out += finder.flush()
        assert finder.flush() == b""
        return out, finder.found

    return run


def first_stop(text: bytes, stops: list[str]) -> tuple[bytes, str | None]:
    ends = [(i + len(s.encode()), i, s) for s in stops for i in [text.find(s.encode())] if i >= 0]
    if not ends:
        return text, None
    _, at, stop = min(ends)
    return text[:at], stop


@given(
    st.text("abé€", max_size=40),
    st.lists(st.text("abé€", min_size=1, max_size=4), max_size=5, unique=True),
    CUTS,
)
def test_stop_strings_equal_a_search_of_the_whole(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    data = text.encode()
    assert both_ways(run_stops(stops), data, cuts) == first_stop(data, stops)


def test_stop_strings_hold_back_no_more_than_needed() -> None:
    stops = StopStrings(["\n\nUser:", "<end>"])
    assert stops.push(b"Hello") == b"Hello"
    assert stops.push(b" you\n") == b" you"
    assert stops.push(b"\nUs") == b""
    assert stops.push(b"eless <en") == b"\n\nUseless "
    assert stops.push(b"d> tail") == b""
    assert stops.found == "<end>"
    assert stops.push(b"more") == stops.flush() == b""


def test_a_thousand_stops() -> None:
    stops = [f"stop number {i}." for i in range(1000)]
    assert run_stops(stops)(single_bytes(b"so stop number 77. yes")) == (
        b"so ",
        "stop number 77.",
    )


@pytest.mark.parametrize("stop", ["", b"", "a\0b", 3, None, "\ud800"])
def test_what_is_no_stop_string(stop: Any) -> None:
    with pytest.raises(ValidationError, match="stop"):
        StopStrings(["ok", stop])


def run_json(keys: tuple[str, ...]) -> Callable[[list[bytes]], int | None]:
    def run(parts: list[bytes]) -> int | None:
        finder, before = JsonCompletion(keys), 0
        for part in parts:
            end = finder.push(part)
            if end is not None:
                assert not finder.armed
                assert 0 < end <= len(part)
                return before + end
            before += len(part)
        return None

    return run


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab{}[]",:\\é\n', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["done", "a", '"done"', "{", "é"]), inner, max_size=3)
    ),
    max_leaves=12,
)
HEADS = st.sampled_from(
    ["", " \n\t", "<think>{no} </think>\n\n", "```json\n", "```\n ", "<think></think>```JSON \r\n"]
)


@given(VALUES, HEADS, st.text('} ]{"a\n', max_size=6), st.booleans(), CUTS)
def test_json_is_complete_where_a_decoder_ends(
    value: object, head: str, tail: str, ascii_only: bool, cuts: list[int]
) -> None:
    text = head + json.dumps(value, ensure_ascii=ascii_only)
    end = both_ways(run_json(("done", "x")), (text + tail).encode(), cuts)
    marked = isinstance(value, dict) and "done" in value
    assert end == (len(text.encode()) if marked else None)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ('{"done": true} and more', 14),
        ('{"next_step" : "x"}', 19),
        ('{"do\\u006ee": 1}', 16),
        ('{"a": "\\"done\\": }", "done": "}"}', 33),
        ('{"a": {"done": 1}} ', None),
        ('{"a": "done"}', None),
        ('["done"]', None),
        ('Answer: {"done": true}', None),
        ('{"a": 1} {"done": true}', None),
        ("```python\n{'done': 1}", None),
        ("<thinking>", None),
        ("<think>never closed {", None),
        ("", None),
    ],
)
def test_json_examples(text: str, end: int | None) -> None:
    data = text.encode()
    assert both_ways(run_json(("done", "next_step")), data, [3, 9]) == end


def test_json_disarms_as_soon_as_it_can() -> None:
    for text in ("Sure", "<b>", "``` python\n", "[1", "`a`", "{}"):
        finder = JsonCompletion(("done",))
        finder.push(text.encode())
        assert not finder.armed, text
    for text in (" ", "<", "<think>a", "``", "```js", '{"a'):
        finder = JsonCompletion(("done",))
        finder.push(text.encode())
        assert finder.armed, text
    with pytest.raises(ValidationError, match="json_stop"):
        JsonCompletion([3])  # type: ignore[list-item]


@given(st.text("<>/thinkab \n", max_size=30) | st.text("ab", max_size=5), CUTS, st.data())
def test_thinking_is_left_out(text: str, cuts: list[int], data: st.DataObject) -> None:
    for tag in ("<think>", "</think>", "<think>"):
        at = data.draw(st.integers(0, len(text)))
        if data.draw(st.booleans()):
            text = text[:at] + tag + text[at:]

    def run(parts: list[bytes]) -> bytes:
        think = ThinkFilter()
        return b"".join(map(think.push, parts)) + think.flush()

    expected = re.sub(r"<think>.*?(</think>[ \n]*|\Z)", "", text, flags=re.S)
    assert both_ways(run, text.encode(), cuts) == expected.encode()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 60)), max_size=30),
    st.integers(0, 12),
    st.integers(0, 5),
    st.integers(0, 100),
)
def test_flush_rules(
    steps: list[tuple[bytes, int]], max_bytes: int, max_tokens: int, max_ms: int
) -> None:
    clock, chunks = Clock(), []
    flusher = Flusher(chunks.append, max_bytes, max_tokens, max_ms, clock)
    held, tokens, last = b"", 0, 0.0
    for piece, ms in steps:
        clock.now += ms / 1000
        n = len(chunks)
        flusher.push(piece)
        held, tokens = held + piece, tokens + 1
        due = (
            (max_bytes and len(held) >= max_bytes)
            or (max_tokens and tokens >= max_tokens)
            or (max_ms and clock.now - last >= max_ms / 1000)
        )
        assert chunks[n:] == ([held] if due and held else [])
        if due:
            held, tokens, last = b"", 0, clock.now
    flusher.flush()
    flusher.flush()
    assert b"".join(chunks) == b"".join(piece for piece, _ in steps)
    assert all(chunks)
