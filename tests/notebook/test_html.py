"""The parts of views: nothing in a text becomes markup, and everything in it can be seen."""

from __future__ import annotations

import html.parser
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cffi.notebook import html as parts
from llama_cffi.notebook.html import MAX_TOKENS
from llama_cffi.notebook.token_logprobs import TokenLogprob, visible

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</span></div><h1>",
    "&lt;b&gt; &amp;",
    "\x00\x1b[31m\x7f\x85",
    "\u202eright to left\u2066",
    "\ud800 alone",
    "line\nbreak\r\n\ttab",
]


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text; notices what is not closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("br", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(st.characters()))
def test_any_text_is_shown_and_none_of_it_becomes_markup(text: str) -> None:
    read = Reader(parts.paragraph(text) + parts.coloured([(text, text)]))
    assert read.tags == ["div", "div", "span"]
    assert read.text == parts.printable(text) + visible(text).replace("⏎", "⏎\n")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(text: str) -> None:
    whole = (
        parts.escape(text)
        + parts.paragraph(text, mono=True)
        + parts.badge(text)
        + parts.details(text, parts.dim(text))
        + parts.table([[parts.label(text)]], [parts.chip(1) + parts.escape(text)])
        + parts.stack([(0.5, "1", text)])
        + parts.coloured([(text, text)], [0])
        + parts.heat_map([TokenLogprob(text, -0.5, [(text, -1.0)])])
    )
    read = Reader(whole)
    assert {*read.tags} <= {"span", "div", "details", "summary", "table", "tr", "td", "th", "wbr"}
    assert {name for name, _ in read.attributes} == {"style", "title"}
    whole.encode()  # a lone surrogate could not be saved


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1m\r", "\\x1b[1m\\r"),
        ("\x7f\x85", "\\x7f\\x85"),
        ("\u202e", "\\u202e"),
        ("\ud800", "\\ud800"),
        ("a\u200db\u00a0é 漢\n", "a\u200db\u00a0é 漢\n"),
    ],
)
def test_control_characters_can_be_seen(text: str, shown: str) -> None:
    assert parts.printable(text) == shown


def test_white_space_of_tokens_can_be_seen() -> None:
    shown = Reader(parts.coloured([(text, "") for text in (" a", "\t", "b\n", "")])).text
    assert shown == "·a⇥b⏎\n∅"
    assert visible(" a") == "·a"


def test_a_text_keeps_its_spaces_and_line_breaks() -> None:
    assert Reader(parts.paragraph("a  b\n\tc")).text == "a  b\n\tc"


def test_alternatives_are_in_the_title() -> None:
    read = Reader(parts.heat_map([TokenLogprob("yes", math.log(0.75), [("no", math.log(0.25))])]))
    titles = [value for name, value in read.attributes if name == "title"]
    assert titles == ["“yes” 75.00%\n“no” 25.00%"]


def test_a_less_probable_token_has_a_stronger_tint() -> None:
    def alpha(p: float) -> float:
        shown = parts.heat_map([TokenLogprob("x", math.log(p), [])])
        return float(shown.split("hsla(")[1].split(",")[3].split(")")[0])

    assert alpha(1.0) == 0 < alpha(0.7) < alpha(0.3) < alpha(0.01)


@pytest.mark.parametrize("logprob", [None, -math.inf, math.nan, 1e-7])
def test_every_log_probability_has_a_tint(logprob: float | None) -> None:
    assert "x" in Reader(parts.heat_map([TokenLogprob("x", logprob, [])])).text


def test_many_tokens_are_cut_off_and_counted() -> None:
    n = MAX_TOKENS + 1234
    for shown in (
        parts.heat_map([TokenLogprob("q", -1.0, [])] * n),
        parts.coloured([("q", "")] * n),
    ):
        read = Reader(shown)
        assert read.text.count("q") == MAX_TOKENS
        assert "1,234 more tokens" in read.text
    assert "300,000 more characters" in parts.paragraph("q" * 500_000)
