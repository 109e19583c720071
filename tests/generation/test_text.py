"""Text in pieces: the same result for every split, and the same as a plain reference's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_cffi import ValidationError
from llama_cffi.generation.text import Flusher, JsonCompletion, StopStrings, ThinkFilter, Utf8Stream

cuts = st.lists(st.integers(0, 120), max_size=8)


def splits(data: bytes, cuts: list[int]) -> list[list[bytes]]:
    """*data* cut at some places, whole, and byte by byte, with empty pieces between."""
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    single = [piece for b in data for piece in (bytes([b]), b"")]
    return [[data[a:b] for a, b in pairwise(edges)], [data], single]


def through(filter: StopStrings | ThinkFilter, parts: list[bytes]) -> bytes:
    return b"".join([*map(filter.push, parts), filter.flush()])


# UTF-8


def stream(parts: list[bytes]) -> str:
    decoder = Utf8Stream()
    return "".join([*map(decoder.push, parts), decoder.flush()])


@given(st.text(), cuts)
def test_utf8_split_anywhere(text: str, cuts: list[int]) -> None:
    data = text.encode("utf-8", "replace")
    for parts in splits(data, cuts):
        assert stream(parts) == data.decode()


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


# Stop strings


def first_stop(text: bytes, stops: list[bytes]) -> tuple[bytes, bytes | None]:
    """The text before the first stop string, and that one: `bytes.find`, then the shortest."""
    places = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if not places:
        return text, None
    start, _, stop = min(places)
    return text[:start], stop


letters = st.text("ab\n#é", max_size=60)
few_stops = st.lists(st.text("ab\n#é", min_size=1, max_size=5), max_size=6)


@given(letters, few_stops, cuts)
@example("abcd", ["abcd", "bc"], [])
@example("abcx", ["abcd", "bc"], [])
@example("abc", ["abcd", "bc"], [])
@example("xabc", ["abb", "ab"], [])
@example("aaaab", ["aab", "ab", "a b"], [])
def test_stops_are_found_where_bytes_find_finds_them(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    data = text.encode()
    before, stop = first_stop(data, [stop.encode() for stop in stops])
    for parts in splits(data, cuts):
        search = StopStrings(stops)
        assert through(search, parts) == before
        assert search.found == (None if stop is None else stop.decode())
        if stop is not None:
            assert through(search, [b"more", b"a"]) == b""


@given(letters, few_stops)
def test_no_more_is_held_back_than_may_begin_a_stop(text: str, stops: list[str]) -> None:
    search, out = StopStrings(stops), b""
    for i, byte in enumerate(text.encode()):
        out += search.push(bytes([byte]))
        if search.found is not None:
            break
        held = text.encode()[len(out) : i + 1]
        assert not held or any(stop.encode().startswith(held) for stop in stops)


def test_stops_may_be_bytes_and_are_reported_as_given() -> None:
    search = StopStrings([b"\xff", "é", b"\xc3\xa9"])
    assert (search.push(b"a\xc3"), search.push(b"\xa9b"), search.found) == (b"a", b"", "é")
    search = StopStrings([b"\xff"])
    assert (search.push(b"a\xff"), search.found) == (b"a", b"\xff")


def test_thousands_of_stops() -> None:
    stops = [f"<{i:x}>" for i in range(5000)] + ["<" * 3000]
    text = b"<zz><<<0" * 500
    search = StopStrings(stops)
    assert through(search, splits(text, [])[2]) == text
    assert search.found is None
    search = StopStrings(stops)
    assert through(search, [text, b" ", b"<12", b"34", b"> on"]) == text + b" "
    assert search.found == "<1234>"


@pytest.mark.parametrize(
    "wrong", [[""], [b""], [3], ["a\0"], [b"\0"], ["\ud800"], "ab", b"ab", 3, None, [None]]
)
def test_what_is_no_stop_string(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        StopStrings(wrong)


# JSON

KEYS = ("done", "next_step", 'q"{ü')
keys = st.sampled_from([*KEYS, "x", "don", "ü"])
strings = st.text('done"\\{}[]:, \n\té😀/', max_size=12) | keys
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | strings, inner, max_size=3),
    max_leaves=8,
)
reasoning = st.sampled_from(
    ["", " \n", "\n<think>\n</think>", '<think> {"done": 1} </thin </think>\n<think></think>']
)
prose = st.sampled_from(
    [
        "",
        "\n",
        "```json\n",
        "So: ",
        "the",
        "<thin",
        "</think>",
        "`",
        '5" of ',
        "\\",
        "}",
        "a [note] ",
        "(see {x}) ",
        '["done"] ',
        "{[}] ",
        '{"status": "done"}, then ',
    ]
)
after = st.sampled_from(["", " ", "}", '{"done": 1}', "\n```", " and so on", "]", ","])


def dumped(value: Any, style: int) -> str:
    separators = ((", ", ": "), (",", ":"), (" ,\n", "\t:\n "))[style % 3]
    return json.dumps(value, ensure_ascii=style > 2, separators=separators)


def has_key(value: Any, keys: tuple[str, ...]) -> bool:
    """Whether an object in *value*, at any depth, has one of the keys."""
    if isinstance(value, dict):
        return any(key in keys or has_key(inner, keys) for key, inner in value.items())
    return isinstance(value, list) and any(has_key(inner, keys) for inner in value)


def end_of_answer(data: bytes, keys: tuple[str, ...]) -> int | None:
    """Where the first JSON with a key ends, read by the standard library from the whole text."""
    text = data.decode()
    thinking = re.match(r"(\s*<think>.*?</think>)*", text, re.DOTALL)
    at = thinking.end() if thinking else 0
    while bracket := re.compile(r"[{\[]").search(text, at):
        try:
            value, at = json.JSONDecoder(strict=False).raw_decode(text, bracket.start())
        except json.JSONDecodeError:
            at = bracket.end()
        else:
            if has_key(value, keys):
                return len(text[:at].encode())
    return None


def completion(parts: list[bytes], keys: tuple[str, ...] = KEYS) -> int | None:
    json_end, seen = JsonCompletion(keys), 0
    for part in parts:
        end = json_end.push(part)
        if end is not None:
            assert not json_end.armed
            assert 0 < end <= len(part)
            assert json_end.push(b'{"done": 1}') is None
            return seen + end
        seen += len(part)
    return None


@given(reasoning, prose, values, after, st.integers(0, 5), cuts)
def test_complete_json_ends_where_the_standard_library_ends_it(
    before: str, prose: str, value: Any, after: str, style: int, cuts: list[int]
) -> None:
    data = (before + prose + dumped(value, style) + after).encode()
    expected = end_of_answer(data, KEYS)
    if isinstance(value, (dict, list)) and has_key(value, KEYS):
        assert expected is not None
    for parts in splits(data, cuts):
        assert completion(parts) == expected


@given(reasoning, prose, st.dictionaries(keys, values, min_size=1, max_size=3), st.data())
def test_unfinished_json_is_not_complete(
    before: str, prose: str, value: dict[str, Any], data: st.DataObject
) -> None:
    text = (before + prose + dumped([value], data.draw(st.integers(0, 5)))).encode()
    text = text[: data.draw(st.integers(0, len(text) - 1))]
    for parts in splits(text, []):
        assert completion(parts) is None


@given(prose, values, cuts)
def test_json_in_reasoning_that_the_prompt_opened_does_not_count(
    prose: str, value: Any, cuts: list[int]
) -> None:
    draft = dumped({"done": value}, 0).replace("</think>", "")
    data = (prose.replace("</think>", "") + draft + "</think>").encode()
    answer = b'so {"done": 1}'
    for parts in splits(data + answer + b"x", cuts):
        json_end = JsonCompletion(KEYS, is_thinking=True)
        found = [json_end.push(part) for part in parts]
        read = sum(map(len, parts[: next(i for i, end in enumerate(found) if end is not None)]))
        assert read + next(filter(None, found)) == len(data + answer)


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ('{"done": 1}', True),
        ('{"d\\u006fne": 1}', True),
        ('{"' + "".join(f"\\u{ord(c):04x}" for c in "next_step") + '": 1}', True),
        ('{"done": 1, "done": 2}', True),
        ('{"x": NaN, "done": -Infinity}', True),
        ('{"x": "done", "y": ["done"], "z": {"Done": 1}}', False),
        ('{"x": {"y": [{"done": 1}]}}', True),
        ('[{"done": true}]', True),
        ('[[1, {"a": 2}], {"next_step": []}]', True),
        ('Here it is: {"done": true}', True),
        ('```json\n{"done": true}', True),
        ('["done": 1]', False),
        ('{"x": "\\"done\\": 1"}', False),
        ('{"xdone": 1}', False),
        ('{"done": 1]', False),
        ('{"\\ud800": 1, "done": 1}', True),
        ('{"\\ux": 1, "done": 1}', True),
        ('{"' + "x" * 5000 + 'done": 1, "next_step": {}}', True),
        ('{"' + "\\" * 5000 + '": 1}', False),
        ("{" * 5000 + "}" * 5000, False),
        ('["done"]', False),
        ("{}", False),
    ],
)
def test_json_cases(text: str, complete: bool) -> None:
    for parts in splits(text.encode() + b"}", []):
        assert completion(parts) == (len(text) if complete else None)


def test_invalid_utf8_in_json() -> None:
    text = b'{"\xff\\n": "\xc3", "done\\ud800": 1, "\xff": 1, "done": "\xe2"}'
    assert completion([text]) == len(text)
    assert completion([text.replace(b'"done"', b'"\xffdone\\n"')]) is None


def test_no_keys_and_wrong_keys() -> None:
    assert not JsonCompletion(()).armed
    assert completion([b'{"": 1}'], ("",)) == 7
    assert completion([b'{"a": {"b": 1}}'], ("",)) is None
    assert JsonCompletion(()).push(b'{"done": 1}') is None
    assert completion([b'{"\\ud83d\\ude00": 1}'], ("😀",)) == 19
    for wrong in ("done", [3], [b"done"], ["\ud800"], 3):
        with pytest.raises(ValidationError):
            JsonCompletion(wrong)  # type: ignore[arg-type]


# <think> blocks

pieces = st.sampled_from(
    ["<think>", "</think>", "<", "think>", "</", "<thi", " ", "\n\t", "a", "é", "<<think>"]
)


@given(st.lists(pieces, max_size=12).map("".join), cuts)
@example("<think>x</think> \n<think>y</think>\n z", [])
def test_thinking_is_left_out(text: str, cuts: list[int]) -> None:
    data = text.encode()
    expected = re.sub(rb"<think>.*?(</think>\s*|\Z)", b"", data, flags=re.DOTALL)
    for parts in splits(data, cuts):
        assert through(ThinkFilter(), parts) == expected


@given(st.lists(pieces, max_size=12).map("".join), cuts)
def test_text_that_begins_inside_thinking(text: str, cuts: list[int]) -> None:
    data = text.encode()
    opened = splits(b"<think>" + data, [])[1]
    for parts in splits(data, cuts):
        assert through(ThinkFilter(is_inside=True), parts) == through(ThinkFilter(), opened)


@given(st.lists(st.sampled_from(["[", "]", "a", " "]), max_size=12).map("".join), cuts)
def test_other_tags(text: str, cuts: list[int]) -> None:
    data = text.encode()
    expected = re.sub(rb"\[.*?(\]\s*|\Z)", b"", data, flags=re.DOTALL)
    for parts in splits(data, cuts):
        assert through(ThinkFilter("[", b"]"), parts) == expected


def test_what_is_no_tag() -> None:
    for wrong in ("", b"", 3, "\0"):
        with pytest.raises(ValidationError):
            ThinkFilter(open=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValidationError):
            ThinkFilter(close=wrong)  # type: ignore[arg-type]


# Flush rules


@given(st.lists(st.binary(max_size=9)), *[st.integers(0, 6)] * 3, st.lists(st.integers(0, 3)))
def test_flusher_follows_its_rules(
    parts: list[bytes], max_bytes: int, max_tokens: int, max_ms: int, steps: list[int]
) -> None:
    now_ms = 0
    got: list[bytes] = []
    flusher = Flusher(got.append, max_bytes, max_tokens, max_ms, clock=lambda: now_ms / 1000)
    expected: list[bytes] = []
    waiting, n_tokens, last_ms = b"", 0, 0
    for part, step in zip(parts, steps + [1] * len(parts), strict=False):
        now_ms += step
        flusher.push(part)
        waiting, n_tokens = waiting + part, n_tokens + 1
        full = max_bytes and len(waiting) >= max_bytes
        many = max_tokens and n_tokens >= max_tokens
        late = max_ms and now_ms / 1000 - last_ms / 1000 >= max_ms / 1000
        if waiting and (full or many or late):
            expected.append(waiting)
            waiting, n_tokens, last_ms = b"", 0, now_ms
        assert got == expected
    flusher.flush()
    flusher.flush()
    assert b"".join(got) == b"".join(parts)
    assert b"" not in got


def test_flusher_defaults_and_the_real_clock() -> None:
    got: list[bytes] = []
    flusher = Flusher(got.append)
    for part in (b"a", b"", b"bc"):
        flusher.push(part)
    assert got == [b"a", b"bc"]
    flusher = Flusher(got.append, max_bytes=0, max_tokens=0, max_ms=0)
    flusher.push(b"x" * 1000)
    assert got == [b"a", b"bc"]
    flusher.flush()
    assert got == [b"a", b"bc", b"x" * 1000]


@pytest.mark.parametrize("deliver", [Flusher.flush, lambda flusher: flusher.push(b"c")])
def test_a_callback_that_fails_got_its_bytes(deliver: Callable[[Flusher], None]) -> None:
    def fail(data: bytes) -> None:
        got.append(data)
        if len(got) == 1:
            raise KeyError(3)

    got: list[bytes] = []
    flusher = Flusher(fail, max_bytes=3, max_tokens=0, max_ms=0)
    flusher.push(b"ab")
    with pytest.raises(KeyError):
        deliver(flusher)
    flusher.push(b"d")
    flusher.flush()
    assert got[1:] == [b"d"]


def test_leading_blocks_only() -> None:
    for text, expected in {
        "<think>a</think>b <think>c</think>": "b <think>c</think>",
        " <think>a</think> <think>b</think> c": " c",
        "a <think>b</think>": "a <think>b</think>",
        "<thin": "<thin",
        "<thing>": "<thing>",
        "<think>a": "",
    }.items():
        for size in (1, 2, 3, len(text)):
            think = ThinkFilter()
            think.is_leading_only = True
            parts = [text[i : i + size].encode() for i in range(0, len(text), size)]
            assert b"".join([*map(think.push, parts), think.flush()]).decode() == expected
    think = ThinkFilter()
    found = think.push(b"a ")
    think.is_leading_only = True  # text came before
    assert found + think.push(b"<think>b</think>") == b"a <think>b</think>"
