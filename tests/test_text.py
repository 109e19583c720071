from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llama_cffi.text import Utf8Stream


def stream(parts: list[bytes]) -> str:
    decoder = Utf8Stream()
    return "".join([*map(decoder.push, parts), decoder.flush()])


@given(st.text(), st.lists(st.integers(0, 400)))
def test_split_anywhere(text: str, cuts: list[int]) -> None:
    data = text.encode("utf-8", "replace")
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    parts = [data[a:b] for a, b in pairwise(edges)]
    assert stream(parts) == stream([bytes([b]) for b in data]) == data.decode()


@given(st.lists(st.binary(max_size=5)))
def test_bytes_that_are_no_utf8(parts: list[bytes]) -> None:
    assert stream(parts) == b"".join(parts).decode("utf-8", "replace")


@given(st.text(min_size=1).map(lambda t: t.encode("utf-8", "replace")))
def test_only_whole_characters_come_out(data: bytes) -> None:
    decoder, out = Utf8Stream(), ""
    for i, byte in enumerate(data):
        out += decoder.push(bytes([byte]))
        assert data[: i + 1].startswith(out.encode())


def test_unfinished_character() -> None:
    decoder = Utf8Stream()
    assert decoder.push("é".encode()[:1]) == ""
    assert decoder.flush() == "\ufffd"
